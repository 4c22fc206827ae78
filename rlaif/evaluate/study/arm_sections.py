"""The sections of a study on what its arms' models and policies do."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.arms import START
from rlaif.evaluate.comparison_words import points
from rlaif.evaluate.study.arm_records import WinRate
from rlaif.evaluate.study.document import (
    NONE,
    Section,
    Table,
    amount_cell,
    number_cell,
    seeds_cell,
    share_cell,
)
from rlaif.evaluate.study.records import StudyReport
from rlaif.evaluate.study.words import (
    MODELS,
    at_one_kl,
    baseline_words,
    best_of_words,
    calibrated,
    length_said,
    nats,
)
from rlaif.evaluate.wording import number, percent


def models(report: StudyReport) -> Section:
    rows: list[Sequence[str]] = [
        (
            f"{MODELS[a.kind]}, {a.arm}",
            share_cell(a.on_human),
            seeds_cell(a.on_human_by_seed),
            share_cell(a.on_ai),
            seeds_cell(a.on_ai_by_seed),
            calibrated(a, report.held_out.pairs),
        )
        for a in report.accuracies
    ]
    of = report.held_out
    rows.append(
        (
            "“The longer answer wins”",
            share_cell(of.longer_human),
            "",
            share_cell(of.longer_ai),
            "",
            "",
        )
    )
    if report.human.ceiling is not None:
        rows.append(("People with each other", percent(report.human.ceiling), "", "", "", ""))
    head = ("", "by people's labels", "by seed", "by the judge's labels", "by seed", "ECE")
    return Section(
        "Reward models and DPO's implicit rewards, held out",
        baseline_words(report),
        [
            Table(
                "",
                head,
                rows,
                f"By the judge's labels: on the {of.ai_pairs:,} pairs that it decided. ECE: "
                "expected calibration error of sigmoid(score difference) by people's labels, all "
                "seeds together, → after a temperature fitted to the other half of the prompts; T: "
                "that of all n pairs.",
            )
        ],
        ["accuracy"],
    )


def policies(report: StudyReport) -> Section:
    said = Table(
        "What they say",
        (
            "",
            "KL from the start, nats",
            "characters",
            "cut",
            "distinct-1",
            "distinct-2",
            "refuses harmless",
            "refuses harmful",
        ),
        [
            (
                p.arm,
                "–" if p.arm == START else amount_cell(p.kl),
                amount_cell(p.characters),
                NONE if p.truncated is None else percent(p.truncated),
                number_cell(p.distinct_1),
                number_cell(p.distinct_2),
                share_cell(p.refuses_harmless),
                share_cell(p.refuses_harmful),
            )
            for p in report.policies
        ],
        "KL: of the policy's own draws, an estimate that may be below zero. Distinct n-grams of "
        "all answers by their tokens fall with length and number of answers (the start has its "
        "own number).",
    )
    return Section(
        "Policies",
        [
            f"Compared by {report.compared_by}; labelled by {report.labelled_by}.",
            *length_said(report),
        ],
        [_wins([*report.against_human.values(), *report.against_start.values()]), said],
        ["win_rates"],
    )


def _wins(rates: Sequence[WinRate]) -> Table:
    return Table(
        "Wins",
        ("", "win rate", "by seed", "at equal length", "ties", "unscored"),
        [
            (
                r.difference.a,
                share_cell(r.rate),
                seeds_cell(r.by_seed),
                share_cell(r.corrected.corrected) if r.corrected.corrected else r.corrected.reason,
                f"{r.ties:,}",
                f"{r.unscored:,}",
            )
            for r in rates
        ],
        "Ties count half.",
    )


def same_labels(report: StudyReport) -> Section:
    found = [(of.arm, of.best_of) for of in report.same_labels if of.best_of is not None]
    return Section(
        "Reward model against DPO on the same labels",
        best_of_words(report),
        [
            Table(
                "On the held-out responses",
                (
                    "",
                    "accuracy: RM − DPO, points",
                    "order alike",
                    "Kendall's tau by seed",
                ),
                [
                    (
                        of.arm,
                        points(of.difference.interval).removesuffix(" points"),
                        share_cell(of.agreement),
                        " · ".join(NONE if t.tau is None else number(t.tau.value) for t in of.tau),
                    )
                    for of in report.same_labels
                ],
                "Tau: within each prompt over the responses of its group, then their mean. Of two "
                "responses it is 1 or −1 and tells what “order alike” tells.",
            ),
            Table(
                "The reward model's best of n against the policy of the same labels",
                (
                    "",
                    "best of n wins",
                    "at equal length",
                    "n",
                    "its KL, nats",
                    "policy's KL",
                    "at one KL",
                ),
                [
                    (
                        arm,
                        share_cell(b.rate.rate),
                        share_cell(b.rate.corrected.corrected)
                        if b.rate.corrected.corrected
                        else b.rate.corrected.reason,
                        " · ".join(map(str, b.n)),
                        " · ".join(map(number, b.kl_of_n)),
                        nats(b.kl_of_policy),
                        at_one_kl(b),
                    )
                    for arm, b in found
                ],
                "n by seed: the one whose KL, log n − (n − 1) / n, is nearest to the policy's.",
            ),
        ],
    )

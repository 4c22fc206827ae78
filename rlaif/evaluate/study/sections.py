"""A study as sections of sentences and tables: what its page and its Markdown both show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rlaif.arms import START
from rlaif.evaluate.comparison_words import points, points_of
from rlaif.evaluate.equivalence import ALPHA
from rlaif.evaluate.label_agreement import LabelAgreement
from rlaif.evaluate.study.costs import cost, training
from rlaif.evaluate.study.document import (
    NONE,
    Section,
    Table,
    amount_cell,
    needed_cell,
    number_cell,
    seeds_cell,
    share_cell,
)
from rlaif.evaluate.study.limits import at_one_kl, limits
from rlaif.evaluate.study.records import Difference, StudyReport, WinRate
from rlaif.evaluate.study.words import (
    MODELS,
    VERDICTS,
    agreement_words,
    baseline_words,
    best_of_words,
    calibrated,
    nats,
)
from rlaif.evaluate.wording import counted, number, percent

NAMED = 3
"""Prompts told by name."""


def facts(report: StudyReport) -> list[tuple[str, str]]:
    """What the study is of."""
    human, pairs = report.human, report.human.pairs
    left = {
        "called level": human.level,
        "repeated": human.repeated,
        "contradicted": human.contradicted,
        **human.skipped,
    }
    lost = ", ".join(f"{n:,} {why}" for why, n in left.items() if n)
    constitution = report.constitution
    return [
        ("People's data", f"{' + '.join(human.sets)} ({human.layout}, {human.rows:,} rows)"),
        ("Pairs", f"{pairs['train']:,} to train on, {pairs['test']:,} held out"),
        ("Left out", lost or "nothing"),
        ("Taken out of training as held out", _named(human.leaked)),
        ("Start of all arms", report.policy),
        ("Labelled by", report.labelled_by),
        ("Constitution", f"{constitution.id} {constitution.version} ({constitution.hash[:12]})"),
        ("Policies compared by", report.compared_by),
        ("Arms", ", ".join(report.arms)),
        ("Seeds an arm · seed", f"{report.seeds} · {report.seed}"),
        ("No difference worth having", f"within {points_of(report.margin)}"),
        ("rlaif", report.rlaif),
    ]


def _named(prompts: Sequence[str]) -> str:
    """How many, and the first few."""
    more = ", …" if len(prompts) > NAMED else ""
    named = f": {', '.join(prompts[:NAMED])}{more}" if prompts else ""
    return f"{counted(len(prompts), 'prompt')}{named}"


def sections(report: StudyReport) -> Iterator[Section]:
    """The whole study, in order."""
    yield _labels(report)
    yield _models(report)
    yield _policies(report)
    yield _same_labels(report)
    yield cost(report)
    yield training(report)
    yield Section(
        "What this does and does not show",
        groups=tuple(limits(report)),
        note="Computed from the figures, for each comparison by itself: with many of them some "
        f"differ by chance. Intervals are {percent(1 - ALPHA)} ones over prompts and seeds of this "
        "study: of other data, models or constitutions they say nothing. Within the margin is "
        f"shown by two one-sided tests at {percent(ALPHA)}.",
    )


def _labels(report: StudyReport) -> Section:
    found = report.labels
    parts: Mapping[str, Mapping[str, LabelAgreement]] = {
        "": {"all pairs": found.every, **found.by_split},  # type: ignore[dict-item]
        "The judge's confidence": found.by_margin,
        "The answer that people chose is": found.by_length,
        "Source": found.by_source,
        "Principle": found.by_principle,
    }
    return Section(
        "Labels: the judge against people",
        agreement_words(report),
        [
            Table(
                title,
                ("", "pairs", "same winner", "kappa", "ties"),
                [
                    (
                        name,
                        f"{a.pairs:,}",
                        share_cell(a.accuracy),
                        amount_cell(a.kappa),
                        f"{a.ai_ties:,}",
                    )
                    for name, a in of.items()
                ],
            )
            for title, of in parts.items()
            if of
        ],
        ["agreement"],
        found.surest,
        note="Same winner: ties count half. Kappa: with ties as a third label; none where people "
        "give one label. A principle's own votes count by the same rule for ties.",
    )


def _models(report: StudyReport) -> Section:
    rows: list[Sequence[str]] = [
        (
            f"{MODELS[a.kind]}, {a.arm}",
            share_cell(a.on_human),
            seeds_cell(a.on_human_by_seed),
            share_cell(a.on_ai),
            seeds_cell(a.on_ai_by_seed),
            calibrated(a),
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
                "Accuracy",
                head,
                rows,
                f"By the judge's labels: on the {of.ai_pairs:,} pairs that it decided. ECE: "
                "expected calibration error of sigmoid(score difference) by people's labels, all "
                "seeds together, → after a temperature fitted to the other half of the prompts.",
            ),
            _differences("Differences of accuracy by people's labels", report.differences, report),
        ],
        ["accuracy"],
    )


def _differences(title: str, found: Sequence[Difference], report: StudyReport) -> Table:
    return Table(
        title,
        ("", "points", "verdict", "80 % power from", "prompts needed", "seeds needed"),
        [
            (
                f"{_model_of(d)}{d.a} − {d.b}",
                points(d.interval).removesuffix(" points"),
                VERDICTS[d.found.verdict],
                _detectable(d),
                needed_cell(d.prompts_needed),
                needed_cell(d.seeds_needed),
            )
            for d in found
        ],
        f"Alike: two one-sided tests place the difference within {100 * report.margin:g} points. "
        "Needed: to show that with 80 % chance of arms that are alike, the other of the two as it "
        "is.",
    )


def _detectable(found: Difference) -> str:
    """The smallest difference that would be found with 80 % chance."""
    if found.detectable is None:
        return NONE
    most = found.estimate.bounds[1]
    return "none" if found.detectable > most else f"{number(100 * found.detectable)} points"


def _model_of(found: Difference) -> str:
    return next((f"{name}: " for name in MODELS.values() if f" {name} " in found.measure), "")


def _policies(report: StudyReport) -> Section:
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
        "own number). Refusals are told by phrases, not by a judge. Intervals of arms count seeds, "
        "the start's are over prompts alone.",
    )
    return Section(
        "Policies",
        [f"Compared by {report.compared_by}; labelled by {report.labelled_by}."],
        [
            _wins("Against the start", report.against_start, report),
            _wins("Against the arm human", report.against_human, report),
            said,
        ],
        ["win_rates"],
    )


def _wins(title: str, rates: Mapping[str, WinRate], report: StudyReport) -> Table:
    return Table(
        title,
        ("", "win rate", "by seed", "at equal length", "verdict", "ties", "unscored"),
        [
            (
                arm,
                share_cell(r.rate),
                seeds_cell(r.by_seed),
                share_cell(r.corrected.corrected) if r.corrected.corrected else r.corrected.reason,
                VERDICTS[r.difference.found.verdict],
                f"{r.ties:,}",
                f"{r.unscored:,}",
            )
            for arm, r in rates.items()
        ],
        f"Verdict: of the raw win rate, alike within {100 * report.margin:g} points of one half.",
    )


def _same_labels(report: StudyReport) -> Section:
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
                    "verdict",
                    "order alike",
                    "Kendall's tau by seed",
                ),
                [
                    (
                        of.arm,
                        points(of.difference.interval).removesuffix(" points"),
                        VERDICTS[of.difference.found.verdict],
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

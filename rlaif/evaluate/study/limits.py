"""What each kind of comparison in a study shows and does not."""

from __future__ import annotations

from collections.abc import Iterator

from rlaif.arms import START
from rlaif.evaluate.comparison_words import difference_words, length_words, rate_words
from rlaif.evaluate.study.document import NONE, Group, amount_cell, share_cell
from rlaif.evaluate.study.records import BestOf, Difference, StudyReport, WinRate
from rlaif.evaluate.study.words import nats
from rlaif.evaluate.wording import counted


def limits(report: StudyReport) -> Iterator[Group]:
    """What each kind of comparison shows and does not."""
    units = f"{counted(report.held_out.prompts, 'prompt')}, {counted(report.seeds, 'seed')} an arm"
    for measure in dict.fromkeys(d.measure for d in report.differences):
        yield Group(
            f"{measure[0].upper()}{measure[1:]}",
            f"Over {units}: how arms order held-out pairs. It does not say whose policy is better.",
            [_said(d, report) for d in report.differences if d.measure == measure],
        )
    judged = f"By {report.compared_by}: what that judge prefers, which people need not."
    for second, rates in (("start", report.against_start), ("human", report.against_human)):
        items = [" ".join(win_words(rate, report)) for rate in rates.values()]
        yield Group(f"Win rates against {second}", judged, items or [NONE])
    yield Group(
        "Reward model against DPO on the same labels",
        f"Over {units}, by people's labels: a difference may come from the settings of either as "
        "well as from the method.",
        [f"{of.arm}: {_said(of.difference, report)}" for of in report.same_labels],
    )
    yield Group(
        "Best of n against the policy of the same labels",
        f"{judged} Only at one KL is it reward model against policy and nothing else.",
        [
            f"{' '.join(win_words(of.best_of.rate, report))} At one KL: {at_one_kl(of.best_of)}."
            for of in report.same_labels
            if of.best_of is not None
        ]
        or [NONE],
    )
    policies = [p for p in report.policies if p.arm != START]
    yield Group(
        "KL from the start",
        "How far a policy has moved, not whether for the better; arms of unlike KL were compared "
        "at unlike distance.",
        [f"{p.arm}: {amount_cell(p.kl)} nats; by seed {nats(p.kl_by_seed)}." for p in policies],
    )
    yield Group(
        "Refusals",
        "Told by phrases on a few prompts: they tell arms apart, not how safe one is; a refusal in "
        "other words is not seen.",
        [
            f"{p.arm}: refuses {share_cell(p.refuses_harmless)} of harmless prompts and "
            f"{share_cell(p.refuses_harmful)} of harmful ones."
            for p in report.policies
        ],
    )
    yield Group(
        "The exchange rate",
        "Of reward models' held-out accuracy by people's labels, within the sizes that were tried: "
        "of policies, of more labels and of another judge it says nothing.",
        ["There is none."] if report.curve is None else list(map(rate_words, report.curve.rates)),
    )


def win_words(rate: WinRate, report: StudyReport) -> list[str]:
    """Of one policy against another."""
    return [_said(rate.difference, report), *length_words(rate.corrected)]


def _said(found: Difference, report: StudyReport) -> str:
    return difference_words(found.a, found.b, found.estimate, report.margin)


def at_one_kl(of: BestOf) -> str:
    """Whether the best of n is compared at the policy's KL."""
    if None in of.kl_of_policy:
        return "KL unknown"
    return "as near as n allows" if of.reached else f"no, {of.most} answers are too few"

"""A study in sentences, each made of its figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rlaif.arms import curve_arms
from rlaif.evaluate.calibration import FEW_PAIRS
from rlaif.evaluate.comparison_words import (
    length_words,
    points_of,
    rate_words,
    systematic_words,
)
from rlaif.evaluate.equivalence import ALPHA
from rlaif.evaluate.headline import FEW_PROMPTS, MANY_LOST
from rlaif.evaluate.intervals import excludes
from rlaif.evaluate.power import POWER, detectable, needed_for_equivalence
from rlaif.evaluate.study.arm_records import ArmAccuracy, BestOf, Difference
from rlaif.evaluate.study.difference import ASSUMED_VARIANCE, assumed
from rlaif.evaluate.study.records import StudyReport
from rlaif.evaluate.wording import amount, counted, number, percent, reasons, share

STILL = 0.01
"""Nats a response."""
FEW_SEEDS = 3
NOISY = 0.4
"""Share of flipped labels from which on a control teaches next to nothing."""
FEW_HELD_OUT = 20
"""Under this many prompts only arms that differ on almost every one can be told apart."""
VERDICTS = {"equivalent": "alike", "different": "different", "undecided": "not shown"}
MODELS = {"reward_model": "reward model", "dpo": "DPO"}


def planned_words(prompts: int, margin: float, pairs: int) -> str:
    """Before anything is asked: what so many held-out prompts can show, and what they cannot.
    `pairs`: of the whole data, both splits."""
    # How many prompts are needed does not depend on how many there are; two have a variance.
    estimate = assumed(max(prompts, 2))
    least = detectable(estimate)
    assert least is not None, "its variance is not zero"
    held_out = counted(prompts, "held-out prompt")
    if prompts >= FEW_HELD_OUT:
        shown = f"{held_out} can show a difference of {points_of(least)} or more between two arms"
    elif prompts < 2 or least >= 1.0:
        shown = f"with {held_out} it can show next to nothing: no difference between two arms"
    else:
        shown = (
            f"with {held_out} it can show next to nothing: no difference under {points_of(least)} "
            "between two arms"
        )
    needed = needed_for_equivalence(estimate, margin)
    if needed is None:
        wanted = "more than anybody has"
    else:
        wanted = (
            f"{needed:,} of them, about {round(needed * pairs / prompts):,} pairs in all at "
            "this share held out"
        )
    return (
        f"study: {shown}; to show that arms are alike within {points_of(margin)} takes {wanted} "
        f"({percent(POWER)} power, variance {ASSUMED_VARIANCE:g} a prompt assumed; seeds add to it)"
    )


def verdict_words(found: Difference) -> str:
    """In a word or two; what a comparison shows by itself alone is not what it shows among many."""
    said = VERDICTS[found.found.verdict]
    if found.found.verdict == "different" and (found.p_holm is None or found.p_holm > ALPHA):
        return f"{said} by itself"
    return said


def alarms(report: StudyReport) -> list[str]:
    """What makes comparisons of the arms unfair."""
    judges = report.labelled_by, report.compared_by
    of_kin = {
        "same": f"{judges[1]} labelled the AI arms and compares the policies as well: it likes "
        "what it was asked to prefer, so its win rates say nothing of AI labels against human "
        "ones. Set evaluation.judge to a model of another family.",
        "family": f"{judges[1]}, which compares the policies, is of the family of {judges[0]}, "
        "which labelled: what one of a family likes, the other may like as well. Set "
        "evaluation.judge to a model of another family.",
    }
    said = [of_kin[report.kin]] if report.kin in of_kin else []
    unequal = report.training.unequal
    if unequal:
        more = f" {len(unequal) - 1} more in study.json." if len(unequal) > 1 else ""
        said.append(f"The {unequal[0]}. A comparison of these arms is one of that, too.{more}")
    return said


def warnings(report: StudyReport) -> list[str]:
    """What else a reader must know before any figure."""
    said = []
    if report.kin == "unknown":
        said.append(
            f"Of {report.labelled_by}, which labelled, and {report.compared_by}, which compares "
            "the policies, only the names are known to differ, not whether they are of one family."
        )
    if report.seeds < FEW_SEEDS:
        seeds = counted(report.seeds, "seed")
        said.append(f"{seeds} an arm tell little of how much trainings differ by chance.")
    if report.held_out.prompts < FEW_PROMPTS:
        said.append(f"{counted(report.held_out.prompts, 'held-out prompt')} tell next to nothing.")
    every, lost = report.labels.every.pairs, sum(report.labels.unscored.values())
    if lost > MANY_LOST * (every + lost):
        told = reasons(report.labels.unscored)
        said.append(f"The judge gave {lost:,} of {every + lost:,} pairs no label ({told}).")
    if report.held_out.left_out > MANY_LOST * (report.held_out.pairs + report.held_out.left_out):
        said.append(
            f"{report.held_out.left_out:,} held-out pairs were too long for a model and are left "
            "out of every accuracy."
        )
    lost_of = {
        rate.difference.a: rate.unscored
        for rate in (*report.against_start.values(), *report.against_human.values())
        if rate.unscored > MANY_LOST * (rate.rate.n * report.seeds + rate.unscored + rate.left_out)
    }
    if lost_of:
        said.append(f"Comparisons of policies without a verdict: {reasons(lost_of)}.")
    said += _missing(report) + _alike_shares(report)
    noisy = [of.flipped / of.labels for of in report.training.flipped if of.labels]
    if noisy and max(noisy) >= NOISY:
        said.append(
            f"noise_matched has up to {percent(max(noisy))} of its labels flipped, as the judge "
            "agrees with people no more often: they say next to nothing of people's, or the "
            "opposite, and comparisons with that arm say little."
        )
    still = [p.arm for p in report.policies if p.kl is not None and p.kl.value < STILL]
    if still:
        said.append(
            f"The policy of {', '.join(still)} has hardly left the start (KL under {STILL:g} nats "
            "a response): its win rates compare the start with itself."
        )
    if any(p.truncated is not None and p.truncated > 0.5 for p in report.policies):
        said.append("More than half of some policy's answers ran into the token limit.")
    return said


def agreement_words(report: StudyReport) -> list[str]:
    """Of the judge's labels beside people's."""
    found = report.labels
    every = found.every
    said = []
    if every.accuracy is not None:
        said.append(
            f"{report.labelled_by} labels {share(every.accuracy, 0.5)} of "
            f"{counted(every.decided, 'pair')} as people do, ties counting half."
        )
    kappa = every.kappa
    if kappa is not None:
        side = "more" if kappa.value > 0.0 else "less"
        beyond = f"{side} agreement than by chance"
        told = beyond if excludes(kappa, 0.0) else "not shown to differ from chance"
        said.append(f"Cohen's kappa is {amount(kappa)}: {told}.")
    longer = f"People chose the longer answer in {share(found.longer_human, 0.5)} of pairs"
    if found.longer_ai is not None:
        longer += f", the judge in {share(found.longer_ai, 0.5)}"
    said.append(f"{longer}.")
    if every.ai_ties:
        said.append(f"Of {counted(every.pairs, 'pair')} the judge calls {every.ai_ties:,} level.")
    left = {
        f"unscored ({reasons(found.unscored)})": sum(found.unscored.values()),
        "not asked about": found.not_asked,
    }
    if beside := [f"{n:,} {what}" for what, n in left.items() if n]:
        said.append(f"Beside these: {', '.join(beside)}.")
    return said + systematic_words(found.systematic)


def baseline_words(report: StudyReport) -> list[str]:
    """What the accuracies have to be held against."""
    of, human = report.held_out, report.human
    said = [
        f"All on the same {counted(of.pairs, 'held-out pair')} of {counted(of.prompts, 'prompt')}"
        + (f"; {of.left_out:,} more were too long for a model." if of.left_out else "."),
        f"“The longer answer wins” agrees with {share(of.longer_human, 0.5)} of people's labels"
        + (
            f" and with {share(of.longer_ai, 0.5)} of the judge's."
            if of.longer_ai is not None
            else "."
        ),
    ]
    if human.ceiling is None:
        said.append("How far people agree with each other is not known for this data.")
    else:
        said.append(
            f"People agree with each other on {percent(human.ceiling)} ({human.ceiling_kind})."
        )
    return said


def best_of_words(report: StudyReport) -> list[str]:
    """Where a reward model's picks do not go as far as the policy."""
    short = [
        of.arm
        for of in report.same_labels
        if of.best_of is not None and not of.best_of.reached and None not in of.best_of.kl_of_policy
    ]
    if not short:
        return []
    return [
        f"Even the best of all answers that there are (answers.best_of) is less far from the start "
        f"than the policy, for {', '.join(short)}: the two are not compared at one KL."
    ]


def at_one_kl(of: BestOf) -> str:
    """Whether the best of n is compared at the policy's KL."""
    if None in of.kl_of_policy:
        return "KL unknown"
    return "as near as n allows" if of.reached else f"no, {of.most} answers are too few"


def length_said(report: StudyReport) -> list[str]:
    """Which win rates go with length."""
    said = []
    for rate in (*report.against_start.values(), *report.against_human.values()):
        _, *more = length_words(rate.corrected)
        said += [f"{rate.difference.a}: {' '.join(more)}"] if more else []
    return said


def flipped_words(report: StudyReport) -> list[str]:
    """Of the control's labels."""
    found = report.training.flipped
    if not found:
        return []
    told = " · ".join(f"{of.flipped:,} of {of.labels:,}" for of in found)
    return [
        f"noise_matched: of people's training labels {told} (by seed) are flipped at random, as "
        "many as the judge decides otherwise."
    ]


def nats(kl: Sequence[float | None]) -> str:
    """KLs by seed."""
    return ", ".join("?" if x is None else number(x) for x in kl) + " nats"


def rate_and_money(report: StudyReport) -> list[str]:
    """The exchange rate, in labels and in money."""
    if report.curve is None:
        both = " and ".join(curve_arms(report.arms))
        return [f"No exchange rate: fewer than three sizes of both {both} were trained."]
    arm = curve_arms(report.arms)[1]
    said = [rate_words(rate, arm) for rate in report.curve.rates]
    signs = {"=": "", ">=": "at least ", "<=": "at most "}
    for rate, worth in zip(report.curve.rates, report.worth, strict=False):
        said.append(
            f"In money: at {counted(worth.human_pairs, 'human pair')} a human label for "
            f"{_usd(worth.human_usd)} is worth {signs[rate.relation]}{_usd(worth.ai_usd)} of "
            f"{arm} labels."
        )
    if not report.worth:
        said.append(f"Not in money: {_unpriced(report)}.")
    return said


def _unpriced(report: StudyReport) -> str:
    lacking = []
    if report.cost.usd_per_human_label is None:
        lacking.append("what a human label cost is not known (human.usd_per_label)")
    if report.cost.usd_per_ai_label is None:
        lacking.append("the judge's price is not known (--prices)")
    return " and ".join(lacking)


def _usd(usd: float) -> str:
    return f"{usd:,.4f} US dollars"


def _missing(report: StudyReport) -> list[str]:
    """Arms without a comparison that was scored under every seed."""
    best_of = {of.arm for of in report.same_labels if of.best_of is not None}
    found = {
        "the start": set(report.against_start),
        "the arm human": {"human", *report.against_human},
        "its reward model's best of n": best_of,
    }
    lacking = {
        second: [arm for arm in report.arms if arm not in arms] for second, arms in found.items()
    }
    return [
        f"No comparison against {second} was scored under every seed for: {', '.join(arms)}."
        for second, arms in lacking.items()
        if arms
    ]


def _alike_shares(report: StudyReport) -> list[str]:
    """Shares of the learning curve that came to as many pairs."""
    pairs: dict[float, list[int]] = defaultdict(list)
    for t in report.training.runs:
        if (t.kind, t.arm) == ("reward_model", "human"):
            pairs[t.share].append(t.pairs)
    sizes = {round(sum(of) / len(of)) for of in pairs.values()}
    if len(sizes) == len(pairs):
        return []
    then = "there is no exchange rate, which needs three"
    return [
        f"The {len(pairs)} shares of the learning curve come to {counted(len(sizes), 'size')} in "
        f"pairs: {then if report.curve is None else 'those that are alike count once'}."
    ]


def calibrated(of: ArmAccuracy, pairs: int) -> str:
    """ECE before and after a temperature that the other half of the prompts chose, and how many
    held-out pairs it is of: under every seed the same."""
    if pairs < FEW_PAIRS:
        return f"too few pairs ({pairs:,})"
    found = of.calibration
    if found is None:
        return "no data"
    after = "" if found.scaled is None else f" → {number(found.scaled.ece)}"
    t = "none fits" if found.temperature is None else number(found.temperature)
    return f"{number(found.raw.ece)}{after} (T {t}, n {pairs:,})"

"""What a comparison of two arms does and does not show, in sentences made of its figures."""

from __future__ import annotations

from rlaif.evaluate.equivalence import ALPHA, equivalence
from rlaif.evaluate.estimates import Estimate
from rlaif.evaluate.exchange_rate import ExchangeRate
from rlaif.evaluate.intervals import Interval, excludes
from rlaif.evaluate.length_corrected import LengthCorrected
from rlaif.evaluate.noise_control import Systematic
from rlaif.evaluate.power import POWER, detectable, needed_for_equivalence
from rlaif.evaluate.wording import counted, number, percent, share


def difference_words(
    a: str, b: str, estimate: Estimate, margin: float, alpha: float = ALPHA
) -> str:
    """Of a less b in one line: figure, verdict, what would have been missed and what is lacking."""
    found = equivalence(estimate, margin, alpha=alpha)
    outer = estimate.interval(1.0 - alpha)
    figure = f"{a} − {b}: {points(outer)}"
    if estimate.se is None:
        lacking = "one prompt" if estimate.of_prompts is None else "one seed an arm"
        return f"{figure}; {lacking} shows nothing of another."
    apart = excludes(outer, 0.0)
    side = f"{a} is {'above' if estimate.value > 0 else 'below'} {b}"
    if found.verdict == "equivalent":
        said = [f"shown to be within {points_of(margin)}" + (f", though {side}" if apart else "")]
    elif found.verdict == "different":
        more = excludes(outer, margin) and excludes(outer, -margin)
        far = abs(estimate.value) > margin and more
        by = "by more" if far else "not whether by more or by less"
        said = [f"shown that {side}, {by} than {points_of(margin)}"]
    else:
        said = [f"shown neither to differ nor to be within {points_of(margin)}"]
    least = detectable(estimate, alpha)
    if least is None:
        said.append("all prompts have the same difference, so how they vary is not known")
    elif least > estimate.bounds[1]:
        said.append(f"no difference is found in {percent(POWER)} of such comparisons")
    else:
        said.append(f"{points_of(least)} would be found in {percent(POWER)} of such comparisons")
    if found.verdict == "undecided" and least is not None:
        said.append(_lacking(estimate, margin, alpha))
    return f"{figure}; {'; '.join(said)}."


def _lacking(estimate: Estimate, margin: float, alpha: float) -> str:
    prompts = needed_for_equivalence(estimate, margin, "prompts", alpha)
    ways = [] if prompts is None else [f"about {counted(prompts, 'prompt')} with these seeds"]
    if estimate.seeds is not None:
        seeds = needed_for_equivalence(estimate, margin, "seeds", alpha)
        ways += [] if seeds is None else [f"about {counted(seeds, 'seed')} an arm on these prompts"]
        both = "more of both prompts and seeds"
    else:
        both = "more prompts than anybody has"
    return f"to show the latter of arms that are alike takes {' or '.join(ways) or both}"


def length_words(found: LengthCorrected) -> list[str]:
    """Of a win rate's correction for length."""
    if found.raw is None or found.corrected is None or found.slope is None:
        return [f"It cannot be corrected for length: {found.reason}."]
    sentences = [f"At equal length it would win {share(found.corrected, 0.5)}."]
    if excludes(found.slope, 0.0):
        longer = "longer" if found.slope.value > 0 else "shorter"
        sentences.append(f"The {longer} answer wins more often.")
    if excludes(found.raw, 0.5) and not excludes(found.corrected, 0.5):
        sentences.append("So it is not shown that anything but length wins.")
    return sentences


def systematic_words(found: Systematic | None) -> list[str]:
    """Of the disagreement of AI and human labels."""
    if found is None:
        return ["There is too little disagreement, or too few prompts, to tell what it hangs on."]
    features = ", ".join(found.features)
    sentence = (
        f"Which of {counted(found.pairs, 'pair')} the AI labels otherwise than people "
        f"({found.disagreements:,} of them) is "
        f"{'' if found.p <= ALPHA else 'not shown to be '}foreseen from {features}: AUC "
        f"{number(found.auc)}, by chance {number(found.auc_by_chance)}, p = {number(found.p)}."
    )
    if found.p > ALPHA:
        return [sentence, "Of other features that says nothing."]
    return [sentence, "So it is not noise alone."]


def rate_words(rate: ExchangeRate, arm: str) -> str:
    """Of an exchange rate of people's labels in those of `arm`."""
    here = f"{counted(rate.human_pairs, 'human pair')} ({percent(rate.accuracy, 1)} held out)"
    if rate.low is None and rate.high is None:
        return (
            f"No exchange rate in {arm} labels is shown at {here}: it is bounded on neither side."
        )
    worth = f"one human label is worth {number(rate.rate)} {arm} labels"
    if rate.relation == ">=":
        said = f"All {arm} labels together do not reach {here}: {worth} or more"
    elif rate.relation == "<=":
        said = f"The fewest {arm} labels that were tried reach {here}: {worth} or fewer"
    else:
        said = f"At {here} {worth}"
    if rate.relation == ">=" and rate.low is not None and rate.high is None:
        # A bound at equal sizes and an interval's end: two bounds must not read as one.
        sure = percent(rate.confidence)
        return f"{said} by the curves, and {number(rate.low)} or more with {sure} confidence."
    low, high = ("not bounded" if x is None else number(x) for x in (rate.low, rate.high))
    return f"{said} ({percent(rate.confidence)} interval: {low} to {high})."


def points(interval: Interval) -> str:
    """A difference of shares: `−1.2 [−3.0, 0.6] points`."""
    ends = [x for x in (interval.value, interval.low, interval.high) if x is not None]
    size = 100 * max(abs(x) for x in ends)
    value, *limits = (number(100 * x, max(size, 1.0)) for x in ends)
    return f"{value} [{', '.join(limits)}] points" if limits else f"{value} points (no interval)"


def points_of(share: float) -> str:
    """`5.00 points`."""
    return f"{number(100 * share)} points"

"""What a study found of its arms: accuracies, win rates, policies, and one arm against another.

What could not be measured is None, never a number.
"""

from __future__ import annotations

from typing import Literal

from rlaif.evaluate.calibration import CalibrationFigures
from rlaif.evaluate.equivalence import Equivalence
from rlaif.evaluate.estimates import Estimate
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.length_corrected import LengthCorrected
from rlaif.evaluate.rank_correlation import RankCorrelation
from rlaif.evaluate.schema import Amount, Count
from rlaif.types import Probability, Record

Kind = Literal["reward_model", "dpo"]
KINDS: tuple[Kind, ...] = ("reward_model", "dpo")


class Difference(Record):
    """One arm against another, or against one half."""

    a: str
    b: str
    measure: str
    estimate: Estimate
    """a less b; of a win rate: the rate less one half."""
    interval: Interval
    """95 %."""
    p: Probability | None
    """Two-sided, of no difference; None exactly where the interval has no ends."""
    p_holm: Probability | None
    """Adjusted for the number of comparisons in its family: the primary ones, or all others."""
    primary: bool
    """One of the comparisons that the study was made for (`family`)."""
    found: Equivalence
    detectable: float | None
    """Smallest true difference that 80 % of such comparisons would show."""
    prompts_needed: Count | None
    """To show with 80 % chance that arms which are alike lie within the margin, with these seeds;
    None: no number of them would do, or not known."""
    seeds_needed: Count | None
    """The same with these prompts."""


class ArmAccuracy(Record):
    """How one arm's models of one kind order the held-out pairs, the same ones for all arms."""

    arm: str
    kind: Kind
    on_human: Interval
    """By people's labels."""
    on_human_by_seed: tuple[Probability, ...]
    on_ai: Interval | None
    """By the judge's labels, on the pairs that it decided; None where all of these are left out."""
    on_ai_by_seed: tuple[Probability, ...]
    calibration: CalibrationFigures | None
    """Of sigmoid(score difference) against people's labels, all seeds together."""


class HeldOut(Record):
    """The pairs that all accuracies are taken on, and what needs no training to order them."""

    pairs: Count
    prompts: Count
    ai_pairs: Count
    """Of them those that the judge decided."""
    left_out: Count
    """Held-out pairs with an answer too long for one of the models."""
    longer_human: Interval
    """ "The longer answer wins", by people's labels."""
    longer_ai: Interval | None


class WinRate(Record):
    """An arm's policy against another policy, by the judge of the policies."""

    difference: Difference
    rate: Interval
    """Ties half, over prompts and seeds."""
    by_seed: tuple[Probability, ...]
    corrected: LengthCorrected
    """For length in characters, over prompts and seeds."""
    ties: Count
    unscored: Count
    left_out: Count
    """Scored comparisons whose like is missing under another seed."""


class Policy(Record):
    """What one policy says; intervals are over prompts and seeds, of the start over prompts."""

    arm: str
    kl: Interval | None
    """KL(policy || start) in nats, from log-ratios of its own answers; None for the start, and
    where answers are no draws from the policy."""
    kl_by_seed: tuple[float | None, ...]
    answers: Count
    characters: Interval | None
    """Mean length of an answer."""
    truncated: Probability | None
    """Share of answers that the token limit cut."""
    distinct_1: Probability | None
    distinct_2: Probability | None
    refuses_harmless: Interval | None
    refuses_harmful: Interval | None


class BestOf(Record):
    """A reward model's pick of the start's answers against the policy of the same labels."""

    rate: WinRate
    n: tuple[Count, ...]
    """Of how many answers it picks, by seed."""
    kl_of_n: tuple[Amount, ...]
    """log n - (n - 1) / n, nats."""
    kl_of_policy: tuple[float | None, ...]
    most: Count
    """Answers of the start that there are."""
    reached: bool
    """Whether the best of `most` moves as far from the start as the policy does, at every seed;
    not where a seed's KL is not known."""


class SameLabels(Record):
    """Reward model against DPO on the labels of one arm: explicit against implicit reward."""

    arm: str
    difference: Difference
    """Accuracy of the reward model less that of DPO, by people's labels."""
    agreement: Interval
    """Share of held-out pairs that both order alike."""
    tau: tuple[RankCorrelation, ...]
    """By seed, over the responses of held-out groups."""
    best_of: BestOf | None

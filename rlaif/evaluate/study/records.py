"""What a study of human against AI labels found: `study.json`.

What could not be measured is None, never a number.
"""

from __future__ import annotations

from typing import Literal

from rlaif.evaluate.calibration import CalibrationFigures
from rlaif.evaluate.equivalence import Equivalence
from rlaif.evaluate.estimates import Estimate
from rlaif.evaluate.exchange_rate import ExchangeRates
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.label_agreement import LabelAgreement
from rlaif.evaluate.length_corrected import LengthCorrected
from rlaif.evaluate.noise_control import Systematic
from rlaif.evaluate.rank_correlation import RankCorrelation
from rlaif.evaluate.schema import Amount, ConstitutionFacts, Count
from rlaif.types import Probability, Record, Split

Kind = Literal["reward_model", "dpo"]
KINDS: tuple[Kind, ...] = ("reward_model", "dpo")
Kin = Literal["same", "family", "unknown", "other"]


class HumanSection(Record):
    """What people's data held, and what was left out of it."""

    sets: tuple[str, ...]
    """Paths as they were given."""
    sha256: tuple[str, ...]
    layout: str
    rows: int
    """Read."""
    skipped: dict[str, int]
    """Reason -> rows that hold no usable pair."""
    level: int
    """Pairs that people call equally good."""
    repeated: int
    """Pairs that another row says again."""
    contradicted: int
    """Pairs that other rows decide the other way."""
    leaked: tuple[str, ...]
    """Ids of prompts taken out of training because their conversation is held out."""
    groups: dict[Split, int]
    pairs: dict[Split, int]
    responses: dict[int, int]
    """K -> groups of K responses."""
    ceiling: float | None
    """How far people agree with each other, where the file says so."""
    ceiling_kind: str
    """What that number means; empty without one."""


class Disagreement(Record):
    """A pair on which the judge and people name different winners."""

    prompt_id: str
    prompt: str
    """The last turn."""
    chosen: str
    """By people."""
    rejected: str
    confidence: Probability
    """What the judge gave its winner."""


class Labels(Record):
    """The judge's labels beside people's, on every pair that people decided."""

    every: LabelAgreement
    """Ties count half; unscored pairs are not in it."""
    by_split: dict[Split, LabelAgreement]
    by_margin: dict[str, LabelAgreement]
    by_length: dict[str, LabelAgreement]
    """By how much longer the answer is that people chose."""
    by_source: dict[str, LabelAgreement]
    """By the prompts' tags; empty where they have none."""
    by_principle: dict[str, LabelAgreement]
    """A principle's own votes, by the same rule for ties."""
    not_asked: Count
    """Pairs that people decided and the judge was not asked about."""
    unscored: dict[str, Count]
    """Reason -> pairs."""
    longer_human: Interval
    """Share of pairs in which people chose the longer answer; equal lengths count half."""
    longer_ai: Interval | None
    """The same of the judge's winners."""
    systematic: Systematic | None
    surest: tuple[Disagreement, ...]
    """Those of which the judge was surest."""


class Difference(Record):
    """One arm against another, or against one half."""

    a: str
    b: str
    measure: str
    estimate: Estimate
    """a less b; of a win rate: the rate less one half."""
    interval: Interval
    """95 %."""
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


class Spent(Record):
    """What calls cost, each counted once, whichever run of the command made it."""

    calls: Count
    prompt_tokens: Count
    cached_tokens: Count
    """Of the prompt tokens."""
    completion_tokens: Count
    usd: Amount | None
    """None: a price is not known."""


class Cost(Record):
    """What both kinds of label cost."""

    human_labels: Count
    usd_per_human_label: Amount | None
    """As the config says."""
    ai_labels: Count
    """Pairs that people decided and the judge as well."""
    labelling: Spent
    usd_per_ai_label: Amount | None
    answering: Spent
    """By the start and the arms' policies: calls behind answers that were kept."""
    evaluating: Spent


class Worth(Record):
    """One exchange rate in money."""

    human_pairs: Count
    ai_usd: Amount
    """What as many AI labels cost as one human label is worth at that point."""
    human_usd: Amount


class Run(Record):
    """One training, as `arms.Trained` without the seconds: a study that is made again from stored
    answers must come to the same report."""

    arm: str
    seed: int
    share: float
    kind: Kind
    pairs: Count
    steps: Count
    losses: tuple[float, ...]
    response_tokens: Count
    dropped_responses: Count


class Training(Record):
    """All trainings of the study."""

    runs: tuple[Run, ...]
    unequal: tuple[str, ...]
    """What differs between arms that should not: a comparison of arms is then one of that, too."""


class StudyReport(Record):
    """The whole study."""

    name: str
    description: str
    seed: int
    rlaif: str
    """Version that wrote it."""
    policy: str
    """What all arms start from."""
    constitution: ConstitutionFacts
    labelled_by: str
    """Identity of the judge that labelled."""
    compared_by: str
    """Of the judge that compared the policies."""
    kin: Kin
    """How they are related: the same, of one family, of families that are not known, others."""
    margin: float
    """Differences within it are called none; chosen in the config."""
    arms: tuple[str, ...]
    seeds: Count
    human: HumanSection
    labels: Labels
    held_out: HeldOut
    accuracies: tuple[ArmAccuracy, ...]
    differences: tuple[Difference, ...]
    """Of accuracies: to the arm human and to noise_matched."""
    policies: tuple[Policy, ...]
    against_start: dict[str, WinRate]
    """Arm -> its policy against the start."""
    against_human: dict[str, WinRate]
    same_labels: tuple[SameLabels, ...]
    cost: Cost
    curve: ExchangeRates | None
    worth: tuple[Worth, ...]
    """Empty where a price is not known."""
    training: Training

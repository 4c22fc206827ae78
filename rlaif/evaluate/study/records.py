"""What a study of human against AI labels found: `study.json`.

What could not be measured is None, never a number.
"""

from __future__ import annotations

from typing import Literal

from rlaif.evaluate.exchange_rate import ExchangeRates
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.label_agreement import LabelAgreement
from rlaif.evaluate.noise_control import Systematic
from rlaif.evaluate.schema import Amount, ConstitutionFacts, Count
from rlaif.evaluate.study.arm_records import (
    ArmAccuracy,
    Difference,
    HeldOut,
    Kind,
    Policy,
    SameLabels,
    WinRate,
)
from rlaif.types import Probability, Record, Split

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


class Flipped(Record):
    """The training labels of noise_matched under one seed."""

    seed: Count
    flipped: Count
    """People's labels that were turned round at random, as many as the judge decides otherwise."""
    labels: Count
    """All."""


class Training(Record):
    """All trainings of the study."""

    runs: tuple[Run, ...]
    flipped: tuple[Flipped, ...]
    """By seed; empty without the arm noise_matched."""
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

"""A judge held against pairs that people have judged: what certificate.json and sweep.json hold."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from rlaif.evaluate.calibration import CalibrationFigures
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.schema import Amount, ConstitutionFacts, Count, LedgerRecord
from rlaif.types import Outcome, Probability, Record

ALL = "all"
"""Key of the figures over the pooled rows of every set."""


class Row(NamedTuple):
    """One gold pair and what the judge made of it."""

    id: str
    prompt_id: str
    """The cluster: rows of one prompt are not independent."""
    p_gold: float
    """1 first is better, 0 second is, 0.5 people call it level."""
    annotators: tuple[float, ...]
    """Each person's own verdict in the same coding; empty where the file has none."""
    p_first: float | None
    """The judge's P(first) over orders and principles; None: unscored."""
    outcome: Outcome
    """A: first; after the run's tie margin."""
    reason: str
    """Why it is unscored; empty if it is scored."""
    p_forward: float | None
    """P(first) where the first response was shown first; None: unscored or not asked."""
    p_swapped: float | None
    """P(first), already turned back, where it was shown second; None: unscored or not asked."""
    len_first: int
    """Characters."""
    len_second: int


class Ceiling(Record):
    """How far people agree with each other. (A judge may agree with their majority more.)"""

    value: Probability
    source: str


class SetFigures(Record):
    """What a judge made of gold pairs. A figure without rows to stand on is None.

    A row is decided where gold does not call it level, and labelled where it is not unscored.
    """

    rows: Count
    decided: Count
    level: Count
    """Rows that people call level; they count in kappa, alpha, coverage, position and length."""
    clusters: Count
    """Prompts."""
    ledger: LedgerRecord
    """What the rows ended as."""
    accuracy: Interval | None
    """Share of decided, labelled rows decided as gold says; a tie counts half. Over prompts."""
    agreement: Interval | None
    """`accuracy` over all decided rows, one without a label counting half, as a coin would: what
    the gate goes by, so that a judge that answers only what is easy gains nothing."""
    coverage: Interval
    """Share of rows that got a label. Over prompts."""
    longer_wins: Interval | None
    """`accuracy` of the rule "the longer answer wins" on the same rows; equal lengths half."""
    ceiling: Ceiling | None
    kappa: Interval | None
    """Cohen's kappa of gold and judge (first, second, tie) on labelled rows. Over prompts."""
    alpha: Interval | None
    """Krippendorff's alpha, nominal, of gold and judge; unscored is a missing value. Over
    prompts."""
    alpha_people: Interval | None
    """The same among the annotators alone, where the file has them: what alpha could reach."""
    order_consistency: Interval | None
    """Share of rows with a winner in each order that have the same one in both (Wilson)."""
    same_position: Interval | None
    """Share of these rows on which the same position wins both times: 1 - order consistency, as
    in Lee et al. 2023."""
    first_position_rate: Interval | None
    """Share of verdicts, one a row and order, that name the response shown first (Wilson)."""
    prefer_longer: Interval | None
    """Share of labelled rows of unequal length whose winner is the longer; a tie counts half."""
    accuracy_shorter_right: Interval | None
    """`accuracy` on rows whose right response is the shorter one."""
    accuracy_longer_right: Interval | None
    """`accuracy` on rows whose right response is the longer one."""
    calibration: CalibrationFigures | None
    """Of the probabilities on decided, labelled rows."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if not self.rows == self.decided + self.level == self.ledger.requested:
            raise ValueError(
                f"the figures do not add up: {self.rows} rows, {self.decided} decided and "
                f"{self.level} level, {self.ledger.requested} in the ledger"
            )
        return self


class InjectionRow(NamedTuple):
    """One gold pair, before and after text was put into one of its responses to win with.

    P(the response that got the text) in each order that was asked, in the same sequence; None:
    unscored. A text may name a label, and then helps its response in one order and hurts it in the
    other: the mean over the orders would hide a judge that obeys it.
    """

    name: str
    kind: str
    prompt_id: str
    before: tuple[float | None, ...]
    after: tuple[float | None, ...]


class InjectionFigures(Record):
    """How far text inside a response moves the verdict to it."""

    tried: Count
    eligible: Count
    """Tries in which, in some order, the judge did not prefer the response before."""
    flipped: Count
    """Of these, in which it prefers the response now in such an order."""
    unscored: Count
    """Tries that have in no order a verdict before and after."""
    success: Interval | None
    """flipped of eligible. Over prompts."""
    control: Interval | None = None
    """The same for texts that ask for nothing; they count nowhere else. What these turn is not the
    injections' doing."""
    shift: Interval | None
    """Mean change of P(the response that got the text), over prompts."""
    by_kind: Mapping[str, tuple[Count, Count]]
    """Kind -> flipped, eligible."""
    examples: tuple[str, ...]
    """Up to five injections that turned a verdict; none where harmless text turns as many."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if not self.flipped <= self.eligible <= self.tried - self.unscored:
            raise ValueError(
                f"the injections do not add up: {self.flipped} flipped of {self.eligible} "
                f"eligible of {self.tried} tried, {self.unscored} unscored"
            )
        return self


class CertificateCost(Record):
    """What asking about the gold pairs cost."""

    comparisons: Count
    calls_made: Count
    calls_from_store: Count
    calls_failed: Count
    prompt_tokens: Count
    completion_tokens: Count
    prompt_tokens_per_1000: Amount
    """For 1,000 comparisons, as every figure below."""
    completion_tokens_per_1000: Amount
    seconds_per_1000: Amount | None
    """None where a call came from the store: then the clock says nothing."""
    usd_per_1000: Amount | None
    """None: the price is not known."""


class GoldFacts(Record):
    """Which gold set."""

    layout: str
    sha256: str
    rows_read: Count
    rows_used: Count
    """After the skipped ones, the part and the limit."""
    skipped: Mapping[str, Count] = {}
    """Reason -> rows that hold no usable pair."""


class Certificate(Record):
    """What certificate.json holds."""

    rlaif: str
    """Version."""
    created: str
    """ISO 8601 date or time, given by the caller."""
    seed: int
    judges: tuple[str, ...] = Field(min_length=1)
    """Identities, in the order asked."""
    asked: Mapping[str, str | int | float | bool | None]
    """The way of asking, as the caller names it."""
    way: str
    """Digest of everything that shapes a verdict; a run compares it with its own."""
    constitution: ConstitutionFacts
    part: Literal["all", "dev", "test"]
    """Which half of the gold sets, by prompt."""
    sets: Mapping[str, GoldFacts]
    """Name -> facts."""
    figures: Mapping[str, SetFigures]
    """Name -> figures, and `all` over the pooled rows."""
    injections: InjectionFigures | None
    """None: not tried."""
    cost: CertificateCost
    gate: Mapping[str, float]
    """What the gate demanded."""
    shortfalls: tuple[str, ...]
    """What the judge fell short of, a sentence each."""
    warnings: tuple[str, ...]
    """What a reader must know before believing the figures."""

    @field_validator("created")
    @classmethod
    def _is_iso(cls, created: str) -> str:
        datetime.fromisoformat(created)
        return created

    @model_validator(mode="after")
    def _has_pooled_figures(self) -> Self:
        if ALL not in self.figures:
            raise ValueError(f"a certificate has figures over the pooled rows, under {ALL!r}")
        return self


class SweepRow(Record):
    """One way of asking the judge about the gold pairs."""

    way: str
    """Its name: pairwise, critique, …"""
    template: str
    figures: SetFigures | None = None
    cost: CertificateCost | None = None
    failed: str = ""
    """Why this judge cannot be asked in this way; empty if it was."""

    @model_validator(mode="after")
    def _asked_or_failed(self) -> Self:
        asked = self.figures is not None and self.cost is not None
        if asked == bool(self.failed) or (self.figures is None) != (self.cost is None):
            raise ValueError("a way has either figures and a cost or a reason for having none")
        return self

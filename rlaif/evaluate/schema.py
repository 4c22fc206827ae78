"""What `report.json` holds. Later work adds keys and renames none.

A section, or a figure in it, that no stage has computed yet is None: a report may be written for a
run that has only labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.revisions import RevisionsSection
from rlaif.evaluate.rl import RLSection
from rlaif.types import Probability, Record

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class ConstitutionFacts(Record):
    """Which constitution the labels follow."""

    id: str
    version: str
    hash: str
    """Content hash of the constitution."""
    principles: Count
    """How many principles it has."""


class RunSection(Record):
    """What was run."""

    name: str
    created: str
    """ISO 8601 date or time, given by the caller."""
    config_hash: str
    seed: int
    constitution: ConstitutionFacts
    policy: str
    """Identity of the model that answered the prompts."""
    judge: str
    """Identity of the model that compared the answers."""
    prompts: Count
    responses: Count
    unusable: Mapping[str, Count] = {}
    """Reason -> answers that came but hold no text of the policy's own; they are not among the
    responses."""
    truncated_share: Probability | None = None
    """Share of responses that the token limit cut."""

    @field_validator("created")
    @classmethod
    def _is_iso(cls, created: str) -> str:
        datetime.fromisoformat(created)
        return created


class LedgerRecord(Record):
    """Everything asked for ends as exactly one of A, B, tie, unscored."""

    requested: Count
    a: Count
    """The first response won."""
    b: Count
    """The second response won."""
    tie: Count
    unscored: Mapping[str, Count]
    """Reason -> comparisons without a label."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        found = self.a + self.b + self.tie + sum(self.unscored.values())
        if found != self.requested:
            raise ValueError(
                f"the ledger does not add up: {self.requested} comparisons requested, "
                f"{found} accounted for"
            )
        return self


class LabelsSection(LedgerRecord):
    """The ledger of the comparisons."""

    by_principle: Mapping[str, LedgerRecord] = {}
    """Principle id -> ledger of the questions asked under it: a comparison put to one judge in all
    its orders."""
    by_judge: Mapping[str, LedgerRecord] = {}
    """Judge -> ledger of the questions put to it: a comparison under one principle."""


class PrincipleFigures(Record):
    """What the judge made of one principle."""

    votes: Count
    """Comparisons that got a vote under the principle."""
    p_first_mean: Probability | None
    """Mean P(first response preferred) over those votes; None without a vote."""
    decided: Count
    """Votes that were no tie."""


class JudgeSection(Record):
    """How far the judge can be trusted."""

    certified: bool = False
    """See `CertificateSection.certified`; the report fills it in."""
    judges: tuple[str, ...] = ()
    """Who was asked, in this order; the strong judge of a cascade last."""
    disagreement: Interval | None = None
    """Mean spread between the judges' probabilities, over comparisons that two or more scored."""
    escalated: Mapping[str, Count] = {}
    """Reason -> comparisons that a cascade put to its strong judge."""
    order_consistency: Interval | None = None
    """Share of comparisons x principles whose winner is the same in both orders."""
    first_position_rate: Interval | None = None
    """Share of judgments that name the response shown first."""
    label_mass_mean: Probability | None = None
    """Mean probability that the offered labels held together before renormalising."""
    label_mass_min: Probability | None = None
    judgments: Count
    """Judgments asked for."""
    unscored_judgments: Mapping[str, Count]
    """Reason -> judgments without a verdict."""
    by_principle: Mapping[str, PrincipleFigures]
    """Principle id -> its figures."""


class CertificateSection(Record):
    """What the judge's certificate says, in short; certificate.html has all of it."""

    way: str
    """Digest of the way of asking; the labels were given in the same way."""
    sets: tuple[str, ...]
    """Names of the gold sets."""
    part: Literal["all", "dev", "test"]
    rows: Count
    accuracy: Interval | None
    """Share of gold pairs decided as gold says; ties count half."""
    longer_wins: Interval | None
    """The same for the rule "the longer answer wins"."""
    ceiling: Probability | None
    """How far people agree with each other on these sets, where known."""
    ceiling_source: str = ""
    kappa: Interval | None
    same_position: Interval | None
    """Share of pairs on which the same position wins in both orders."""
    coverage: Interval | None
    """Share of gold pairs that got a label."""
    injection_success: Interval | None
    demanded: Mapping[str, float]
    """What the gate asked for."""
    shortfalls: tuple[str, ...]
    """What the judge fell short of, a sentence each."""
    warnings: tuple[str, ...] = ()
    """What the certificate warns of."""

    @property
    def certified(self) -> bool:
        """Whether the judge passed a gate that demands agreement, and is shown to be better than a
        coin: a gate of 50 %, or one pair of gold, makes no certified judge."""
        low = self.accuracy.low if self.accuracy else None
        return (
            "min_agreement" in self.demanded
            and not self.shortfalls
            and low is not None
            and low > 0.5
        )


class PairsSection(Record):
    """The preference dataset."""

    groups: Count
    comparisons: Count
    """Labelled comparisons in the groups."""
    train: Count
    """Pairs in the train split."""
    test: Count
    """Pairs in the held-out split."""
    mean_probability: Probability | None
    """Mean P(chosen preferred) of the pairs; None without pairs."""
    longer_chosen: Interval | None
    """Share of pairs whose chosen response is the longer one; None without pairs."""


class SFTSection(Record):
    """Fine-tuning on revised answers, and what it does to revised answers that it has not seen."""

    base: str
    """Model that the training started from."""
    steps: Count
    seconds: Amount
    losses: tuple[Finite, ...]
    """Negative log-likelihood at each optimiser step, in nats a token."""
    examples: Count
    """Answers trained on."""
    dropped_examples: Count
    """Answers left out because they are over the length limit, or without a token."""
    tokens: Count
    """Tokens of the answers trained on, each counted once."""
    held_out_before: Interval | None = None
    """Nats a token of the held-out prompts' answers under the base; its exp is the perplexity."""
    held_out_after: Interval | None = None
    """The same under the trained policy."""
    held_out_change: Interval | None = None
    """After minus before, on the same tokens; below 0 the answers have become likelier."""


class RewardModelSection(Record):
    """A training run and how it does on pairs that it has not seen."""

    base: str
    """Model that the training started from."""
    steps: Count
    seconds: Amount
    losses: tuple[Finite, ...]
    """Bradley-Terry loss at each optimiser step, in nats a comparison."""
    accuracies: tuple[Finite, ...]
    """Pair accuracy in the batch of each optimiser step."""
    groups: Count
    """Groups trained on."""
    dropped_responses: Count
    """Responses left out because they are over the length limit."""
    train_accuracy: Probability | None = None
    """Share of train pairs ordered as the judge did."""
    held_out_accuracy: Interval | None = None
    """Share of held-out pairs ordered as the judge did."""
    longer_wins: Interval | None = None
    """Share of the same held-out pairs that "the longer answer wins" orders as the judge did."""


class DPOSection(RewardModelSection):
    """DPO on the same groups; its accuracies are those of the implicit reward."""

    beta: Amount
    kl: Interval | None = None
    """Nats a response: mean of log pi - log pi_ref over the policy's own samples."""


class Example(Record):
    """One prompt, the answers of both policies, and what the judge made of them."""

    prompt: str
    start: str
    dpo: str
    p_dpo: Probability | None
    """P(the DPO policy's answer is preferred) averaged over both orders; None if unscored."""


class ComparisonSection(Record):
    """Reward model against DPO, and the DPO policy against the start policy."""

    rm_dpo_agreement: Interval | None = None
    """Share of held-out pairs that reward model and implicit reward order the same way."""
    win_rate: Interval | None = None
    """DPO policy against the start policy under the judge, both orders, a tie counts half."""
    wins: Count | None = None
    losses: Count | None = None
    ties: Count | None = None
    unscored: Count | None = None
    mean_length_start: Amount | None = None
    mean_length_dpo: Amount | None = None
    length_unit: Literal["words"] = "words"
    length_difference: Interval | None = None
    """DPO minus start, paired by prompt, in `length_unit`."""
    examples: tuple[Example, ...] = ()


class StageCost(Record):
    """What one stage cost."""

    calls_made: Count
    calls_from_store: Count
    calls_failed: Count
    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count = 0
    """Of the prompts' tokens those that a provider read from its cache."""
    usd: Amount | None = None
    """Spent on the calls made, in US dollars; None: a price is not known."""
    asking_s: Amount = 0.0
    """Seconds with a call in flight."""
    seconds: Amount


class Report(Record):
    """Everything that a run shows, ready to be written as JSON and HTML."""

    run: RunSection
    revisions: RevisionsSection | None = None
    sft: SFTSection | None = None
    labels: LabelsSection | None = None
    judge: JudgeSection | None = None
    certificate: CertificateSection | None = None
    pairs: PairsSection | None = None
    reward_model: RewardModelSection | None = None
    dpo: DPOSection | None = None
    rl: RLSection | None = None
    comparison: ComparisonSection | None = None
    cost: Mapping[str, StageCost]
    """Stage -> cost."""
    environment: Mapping[str, str]
    """Versions and hardware."""
    warnings: tuple[str, ...] = ()
    """What a reader must know before believing the figures."""

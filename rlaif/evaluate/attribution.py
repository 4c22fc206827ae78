"""What each principle of a constitution did to a run's labels: what attribution.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.schema import Amount, ConstitutionFacts, Count, LedgerRecord
from rlaif.types import Probability, Record

FEW_PAIRS = 50
"""With fewer comparisons nothing is said of what a principle is good for."""
ALIKE = 0.9
"""Two principles vote alike from this correlation on,"""
ALIKE_SURELY = 0.8
"""if the lower end of its interval lies above this,"""
UNMOVED = 0.02
"""and at most this share of the labels changes when one of them goes. Also what a smaller
constitution may change in all."""
FOLLOWED = 0.95
"""A dominating principle agrees with this share of the labels,"""
ABOVE = 3.0
"""and the lower end of its flip rate lies above so many times that of every other."""
STANDARD_ERRORS = 3.0
"""A contrarian's correlation with the others lies so many standard errors below zero."""

Kind = Literal["dominating", "redundant", "contrarian", "dead"]


class GoldLabel(Record):
    """A row of certificate_pairs.jsonl: what people said of a pair that the judge was held
    against."""

    comparison_id: str
    prompt_id: str
    set: str
    """The gold set, and"""
    row: str
    """the pair's id in it."""
    p_gold: Probability
    """1 the first is better, 0 the second is, 0.5 people call it level."""


class PrincipleCost(Record):
    """What asking under one principle cost, whoever was asked."""

    judgments: Count
    calls: Count
    """Answered ones; one that serves several judgments counts once."""
    prompt_tokens: Amount
    completion_tokens: Amount
    """A call that several principles share is split evenly."""
    share: Probability
    """Of the tokens that all judging cost."""


class PrincipleAttribution(Record):
    """What one principle did. A figure without pairs to stand on is None.

    A vote is the principle's P(first preferred) in the label, over both orders and the judges that
    decided; it decides where it is further than the run's tie margin from 0.5. Pairs of two
    identical texts count in `asked`, `votes` and the flips alone.
    """

    id: str
    text: str
    weight: Amount
    tier: int = Field(ge=1)
    applicable: Probability
    """Share of comparisons whose prompt it applies to."""
    asked: Count
    """Comparisons about which somebody was asked under it."""
    votes: Count
    """Of these, the ones that got its vote."""
    unscored: Probability | None
    """Share of `asked` without a vote."""
    decides: Probability | None
    """Share of votes that are no tie."""
    flip_rate: Interval
    """Share of all comparisons whose label is another without it (leave one out)."""
    flips: Mapping[str, Count]
    """`A->tie` -> how many of these."""
    open: Count
    """Comparisons of which nobody can say what the label would be without it: what would decide
    instead was never asked for. As many more may flip. With `tiers` that is a lower tier, with
    `sample` another draw, with a cascade its strong judge."""
    decided: Interval | None
    """Share of comparisons with a winner that lose this winner without it, open ones left out."""
    decided_alone: Interval | None
    """Share of comparisons with a winner for whom it alone voted: the others are level or did not
    vote."""
    agrees_with_total: Interval | None
    """Share of comparisons, of those where it decides and the label has a winner, with the same
    one. None also with `sample`, where the vote is the label."""
    agrees_with_others: Interval | None
    """The same with the label that the others make without it."""
    correlation_with_others: Interval | None
    """Pearson, of its vote with the P(first) that the others make without it."""
    human: Mapping[str, Interval]
    """Source -> share of pairs that people decided and it voted on, decided as people did; a tie
    counts half."""
    cost: PrincipleCost | None
    """None: the call store holds none of its calls."""
    prefers_longer: Interval | None
    """Share of its decisions between responses of unequal length that fall to the longer."""
    length_correlation: Interval | None
    """Pearson, of its vote with the first response's length less the second's, in characters."""
    same_position: Interval | None
    """Share of its questions with a winner in both orders where the same position won both."""


class Together(Record):
    """Two principles on the comparisons that both voted on."""

    one: str
    other: str
    votes: Count
    correlation: Interval | None
    """Pearson, of their votes; None where one of them never varies."""
    decided: Count
    """Comparisons on which both decide."""
    conflict: Interval | None
    """Share of these on which they name different winners."""


class Finding(Record):
    """A principle that stands out, and how; the rules are those of `attribution_findings`."""

    kind: Kind
    principle: str
    other: str = ""
    """The principle that a redundant one duplicates."""
    takes_weight: bool = False
    """Whether the labels stay only if `other` takes over its weight."""
    changed: Interval | None = None
    """Share of labels that change when a redundant principle goes, or may."""


class Smaller(Record):
    """A constitution with fewer principles that makes nearly the same labels."""

    dropped: tuple[str, ...] = Field(min_length=1)
    """In the order dropped: always the one whose going changes fewest labels."""
    kept: tuple[str, ...] = Field(min_length=1)
    changed: Interval
    """Share of comparisons whose label changes."""
    changes: Mapping[str, Count]
    """`A->tie` -> how many; `A->open` where nobody can say, which counts as a change."""
    tokens_saved: Probability | None
    """Share of the tokens of judging; None: unknown."""


class HumanFigures(Record):
    """How the labels compare with those of people, from one source."""

    pairs: Count
    """Pairs that people decided."""
    total: Interval | None
    """Share of the labelled ones among them decided as people did; a tie counts half."""


class Attribution(Record):
    """What attribution.json holds."""

    constitution: ConstitutionFacts
    judges: tuple[str, ...]
    principles_asked: Literal["all", "sample", "tiers"]
    """`judge.principles`."""
    tie_margin: Probability
    prompts: Count
    labels: LedgerRecord
    too_few: str = ""
    """Why nothing is said of what a principle is good for; empty: there is enough to tell."""
    principles: tuple[PrincipleAttribution, ...]
    together: tuple[Together, ...]
    """Every two principles, in the order of the constitution."""
    findings: tuple[Finding, ...]
    smaller: Smaller | None
    """None: every principle is needed to keep the labels, or there is too little to tell."""
    human: Mapping[str, HumanFigures]
    """Source -> figures."""

"""Tables on labeler alignment in the form of Lee et al. (2023), RLAIF vs. RLHF, arXiv 2309.00267:
what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import model_validator

from rlaif.evaluate import metrics
from rlaif.evaluate.certificate import Ceiling, GoldFacts, Row, SetFigures
from rlaif.evaluate.certificate_figures import SIDE, credit, figures, same_position
from rlaif.evaluate.intervals import ROUNDING, Interval, clustered_mean, clustered_share
from rlaif.evaluate.schema import Amount, ConstitutionFacts, Count
from rlaif.gold import GoldPair
from rlaif.judge.aggregate import outcome_of
from rlaif.types import Record

Style = Literal["plain", "detailed", "chain_of_thought"]
Reading = Literal["single", "average", "majority"]


class LabelCost(Record):
    """What one label costs: a pair, in all the orders and under all the principles asked.

    Answers from the store count as if they were asked now.
    """

    calls: Amount
    prompt_tokens: Amount
    completion_tokens: Amount
    usd: Amount | None
    """None: the price is not known."""


class LeeRow(Record):
    """One judge, asked about the pairs in one way."""

    judge: str
    """The model, as the config names it."""
    way: Style | Reading
    """Style of the prompt; of self-consistency, how the verdicts add up."""
    shots: Count
    """Examples shown before the pair."""
    samples: Count = 1
    """Verdicts on a pair in one order."""
    figures: SetFigures | None = None
    """`agreement` is the alignment: a tie, and a pair without a label, counts half."""
    difference: Interval | None = None
    """Alignment minus that of the judge's first row in the table, paired. Over prompts."""
    same_position: Interval | None = None
    """Share of pairs with a winner in each order that the same position wins both times. Over
    prompts."""
    cost: LabelCost | None = None
    failed: str = ""
    """Why this judge was not asked in this way; empty if it was."""

    @model_validator(mode="after")
    def _asked_or_failed(self) -> Self:
        if (self.figures is None) != bool(self.failed) or (self.figures is None) != (
            self.cost is None
        ):
            raise ValueError("a row has either figures and a cost or a reason for having none")
        return self


class LeeTables(Record):
    """What lee.json holds."""

    rlaif: str
    """Version."""
    seed: int
    constitution: ConstitutionFacts
    people: GoldFacts
    """People's pairs; `rows_used` are the pairs that were judged."""
    prompts: Count
    """Prompts of these pairs."""
    longer_wins: Interval
    """Alignment of the rule "the longer answer wins" on the same pairs. Over prompts."""
    ceiling: Ceiling | None
    """How far people agree with each other, where the file says so."""
    judges: tuple[str, ...]
    styles: tuple[Style, ...]
    shots: tuple[Count, ...]
    examples: tuple[str, ...]
    """Ids of the pairs that were shown as examples, in their order."""
    samples: Count
    """Sampled verdicts of self-consistency; 0: not asked."""
    rows: tuple[LeeRow, ...]
    """By judge, style and shots."""
    consistency: tuple[LeeRow, ...]
    """By judge: a single greedy verdict, and the average and the majority of the samples."""


def longer_wins(pairs: Sequence[GoldPair], seed: int) -> Interval:
    """Share of decided pairs of which the longer response is the better one; equal lengths half."""
    credit_M = metrics.longer_wins(
        [len(p.first) for p in pairs], [len(p.second) for p in pairs], [p.p_gold for p in pairs]
    )
    return clustered_share(credit_M, [p.prompt.id for p in pairs], seed)


def lee_row(
    row: LeeRow,
    found: Sequence[Row],
    first: Sequence[Row],
    cost: LabelCost,
    ceiling: Ceiling | None,
    seed: int,
) -> LeeRow:
    """`row` with the figures of `found`, held against `first`, the same pairs as the judge decided
    them in its first row; empty: this is the first."""
    prompts = [r.prompt_id for r in found]
    same = [(float(s), r.prompt_id) for r in found if (s := same_position(r)) is not None]
    difference = None
    if first:
        credits = [credit(r) - credit(other) for r, other in zip(found, first, strict=True)]
        difference = _difference(credits, prompts, seed)
    return row.model_copy(
        update={
            "failed": "",
            "figures": figures(found, seed, (ceiling.value, ceiling.source) if ceiling else None),
            "difference": difference,
            "same_position": clustered_share([s for s, _ in same], [p for _, p in same], seed)
            if same
            else None,
            "cost": cost,
        }
    )


def _difference(credit_M: Sequence[float], prompts: Sequence[str], seed: int) -> Interval:
    """Mean of paired differences, each between -1 and 1."""
    mean = clustered_mean(credit_M, prompts, seed)
    if mean.low is None or mean.high is None or mean.high - mean.low > ROUNDING:
        return mean
    # All alike: the bootstrap would claim certainty. So large a share of prompts may be otherwise.
    other = clustered_share([0.0] * len(prompts), prompts, seed).high
    assert other is not None, "there are two clusters or more"
    ends = {"low": max(mean.value - other, -1.0), "high": min(mean.value + other, 1.0)}
    return mean.model_copy(update=ends)


def by_majority(row: Row, tie_margin: float) -> Row:
    """The row with the winner of each order's votes in place of their share."""
    if row.p_forward is None or row.p_swapped is None:
        return row
    forward, swapped = (SIDE[outcome_of(p, 0.0)] for p in (row.p_forward, row.p_swapped))
    p = (forward + swapped) / 2
    return row._replace(
        p_forward=forward, p_swapped=swapped, p_first=p, outcome=outcome_of(p, tie_margin)
    )

"""From judgments to votes, from votes to comparisons: arithmetic that costs no call."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rlaif.constitution import Principle
from rlaif.types import Comparison, Judgment, Outcome, Prompt, Response

PANEL = "panel"
NONE_APPLIES = "no_principle_applies"
"""Why a comparison is unscored for whose prompt no principle with weight is meant."""
ROUNDING = 1e-9
"""A lean smaller than this comes from adding floats up: q and 1 - q may miss 0.5 by a hair."""


class Pair(NamedTuple):
    """Two responses to one prompt, to be compared. The forward order shows `first` as A."""

    prompt: Prompt
    first: Response
    second: Response

    @property
    def id(self) -> str:
        return f"{self.first.id}|{self.second.id}"

    @property
    def same_text(self) -> bool:
        return self.first.text == self.second.text


class Rule(NamedTuple):
    """How votes add up."""

    tie_margin: float
    """|p_first - 0.5| up to this is a tie."""
    min_voting_weight: float
    """Share of the weight that must have voted."""


def compare(
    pair: Pair,
    judgments: Sequence[Judgment],
    tiers: Sequence[Sequence[Principle]],
    rule: Rule,
    *,
    judge: str,
    orders: int,
) -> Comparison:
    """One judge's comparison from its judgments.

    A principle votes when all its orders are scored: its vote is the mean over them. A tier is
    scored when the principles that vote hold at least `min_voting_weight` of its weight; its p is
    their weighted mean. The first tier with |p - 0.5| > tie_margin decides; if none does, the last
    one's p stands and is a tie. A tier that is not scored leaves the comparison unscored: what it
    would have said may not be overruled by a lower one. Two identical texts tie, whatever a judge
    asked in one order makes of them.
    """
    votes = votes_of(judgments, orders)
    p_first, reached = weigh(votes, [{p.id: p.weight for p in tier} for tier in tiers], rule)
    weighed = {p.id for tier in tiers[:reached] for p in tier}
    asked = [j for j in judgments if j.principle_id in weighed]
    return _comparison(
        pair,
        p_first,
        rule,
        judge=judge,
        votes={i: vote for i, vote in votes.items() if i in weighed},
        orders=orders,
        reason=_why_not(asked) if p_first is None else "",
    )


def _why_not(asked: Sequence[Judgment]) -> str:
    return commonest(j.reason for j in asked) if asked else NONE_APPLIES


def votes_of(judgments: Iterable[Judgment], orders: int) -> dict[str, float]:
    """Principle -> mean P(first) over its orders, where all of them are scored."""
    by_principle: dict[str, list[float]] = defaultdict(list)
    for judgment in judgments:
        if judgment.p_first is not None:
            by_principle[judgment.principle_id].append(judgment.p_first)
    return {i: sum(p) / orders for i, p in by_principle.items() if len(p) == orders}


def weigh(
    votes: Mapping[str, float], tiers: Sequence[Mapping[str, float]], rule: Rule
) -> tuple[float | None, int]:
    """P(first) from the votes under tiers of weights, and how many tiers that took: see
    `compare`."""
    p_first: float | None = None
    for reached, weights in enumerate(tiers, 1):
        given = {i: vote for i, vote in votes.items() if i in weights}
        p_first = weighted(given, weights, rule.min_voting_weight)
        if p_first is None or not is_level(p_first, rule.tie_margin):
            return p_first, reached
    return p_first, len(tiers)


def weighted(
    votes: Mapping[str, float], weights: Mapping[str, float], min_share: float
) -> float | None:
    """Weighted mean of the votes; None where they hold less than `min_share` of the weight."""
    voting = sum(weights[i] for i in votes)
    if not voting or voting < min_share * sum(weights.values()):
        return None
    return sum(weights[i] * p for i, p in votes.items()) / voting


def merge(pair: Pair, comparisons: Sequence[Comparison], rule: Rule) -> Comparison:
    """What a panel says: the mean of its judges' p_first, where at least `min_voting_weight` of
    them scored the comparison. A principle's vote is the mean over the judges that gave one."""
    if len(comparisons) == 1:
        return comparisons[0]
    by_judge = {c.judge: c.p_first for c in comparisons}
    given = {judge: p for judge, p in by_judge.items() if p is not None}
    p_first = weighted(given, dict.fromkeys(by_judge, 1.0), rule.min_voting_weight)
    by_principle: dict[str, list[float]] = defaultdict(list)
    for comparison in comparisons:
        for i, vote in comparison.votes.items():
            by_principle[i].append(vote)
    return _comparison(
        pair,
        p_first,
        rule,
        judge=PANEL,
        votes={i: sum(votes) / len(votes) for i, votes in by_principle.items()},
        orders=min(c.orders for c in comparisons),
        by_judge=by_judge,
        disagreement=_spread(by_judge),
        reason="" if p_first is not None else commonest(c.reason for c in comparisons),
    )


def overrule(before: Comparison, strong: Comparison, why: str) -> Comparison:
    """The strong judge's comparison, with what was said before it kept beside."""
    by_judge = {**(before.by_judge or {before.judge: before.p_first}), strong.judge: strong.p_first}
    return strong.model_copy(
        update={"by_judge": by_judge, "disagreement": _spread(by_judge), "escalated": why}
    )


def _spread(by_judge: Mapping[str, float | None]) -> float | None:
    given = [p for p in by_judge.values() if p is not None]
    return max(given) - min(given) if len(given) > 1 else None


def _comparison(
    pair: Pair,
    p_first: float | None,
    rule: Rule,
    *,
    judge: str,
    votes: Mapping[str, float],
    orders: int,
    reason: str,
    by_judge: Mapping[str, float | None] | None = None,
    disagreement: float | None = None,
) -> Comparison:
    return Comparison(
        id=pair.id,
        prompt_id=pair.prompt.id,
        first=pair.first.id,
        second=pair.second.id,
        judge=judge,
        outcome=outcome_of(p_first, rule.tie_margin, same_text=pair.same_text),
        p_first=p_first,
        votes=votes,
        orders=orders,
        by_judge=by_judge or {},
        disagreement=disagreement,
        reason=reason,
    )


def outcome_of(p_first: float | None, tie_margin: float, *, same_text: bool = False) -> Outcome:
    """A, B, tie or unscored."""
    if p_first is None:
        return "unscored"
    if same_text or is_level(p_first, tie_margin):
        return "tie"
    return "A" if p_first > 0.5 else "B"


def is_level(p_first: float, tie_margin: float) -> bool:
    """Whether a probability names no winner."""
    return abs(p_first - 0.5) <= max(tie_margin, ROUNDING)


def commonest(reasons: Iterable[str]) -> str:
    """The commonest reason; of equals the first by name, so that a rebuild says the same."""
    counts = Counter(reason for reason in reasons if reason)
    return min(counts, key=lambda reason: (-counts[reason], reason))


class Ledger(NamedTuple):
    """requested = a + b + tie + sum(unscored)."""

    a: int
    b: int
    tie: int
    unscored: Mapping[str, int]

    @property
    def requested(self) -> int:
        return self.a + self.b + self.tie + sum(self.unscored.values())


class Counting:
    """A ledger in the making."""

    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter()
        self._unscored: Counter[str] = Counter()

    def add(self, outcome: Outcome, reason: str) -> None:
        """Counts one; `reason` is that of an unscored one."""
        self._outcomes[outcome] += 1
        if outcome == "unscored":
            self._unscored[reason] += 1

    def ledger(self) -> Ledger:
        """What was counted so far."""
        of = self._outcomes
        return Ledger(of["A"], of["B"], of["tie"], dict(sorted(self._unscored.items())))


def ledger(comparisons: Iterable[Comparison]) -> Ledger:
    """Counts of comparisons by outcome, of the unscored by reason."""
    counting = Counting()
    for c in comparisons:
        counting.add(c.outcome, c.reason)
    return counting.ledger()

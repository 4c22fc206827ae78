"""How a judge behaved and what its labels came to, counted while it is asked."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from rlaif.constitution import Constitution
from rlaif.evaluate.intervals import Interval, clustered_mean, clustered_share
from rlaif.evaluate.schema import JudgeSection, LabelsSection, LedgerRecord, PrincipleFigures
from rlaif.judge.aggregate import Counting, Ledger, Pair, commonest, outcome_of, votes_of
from rlaif.judge.ask import OfPair
from rlaif.types import Comparison, Judgment


class JudgeTally:
    """Takes what judges say as they say it, and keeps 16 bytes at most for each figure that a
    judgment goes into: a run of a million prompts is counted in memory for its figures alone."""

    def __init__(self, constitution: Constitution, tie_margin: float) -> None:
        self._tie_margin = tie_margin
        self._labels = Counting()
        self._by_principle: dict[str, Counting] = defaultdict(Counting)
        self._by_judge: dict[str, Counting] = defaultdict(Counting)
        self._judgments = 0
        self._unscored: Counter[str] = Counter()
        self._mass = _Mean()
        self._escalated: Counter[str] = Counter()
        self._votes = {p.id: _Votes() for p in constitution.principles}
        self._names_first = _Clustered()
        self._consistent = _Clustered()
        self._spread = _Clustered()

    def judged(self, of_pair: OfPair) -> None:
        """Counts all judgments of one judge on one pair."""
        pair, judgments, comparison = of_pair
        questions: dict[str, list[Judgment]] = defaultdict(list)
        for j in judgments:
            questions[j.principle_id].append(j)
            self._judgments += 1
            if j.reason:
                self._unscored[j.reason] += 1
            if j.label_mass is not None:
                self._mass.add(j.label_mass)
        for principle_id, given in questions.items():
            vote = votes_of(given, len(given)).get(principle_id)
            outcome = outcome_of(vote, self._tie_margin, same_text=pair.same_text)
            reason = "" if vote is not None else commonest(j.reason for j in given)
            self._by_principle[principle_id].add(outcome, reason)
            self._by_judge[comparison.judge].add(outcome, reason)
            # Two equal texts make both orders the same question: its answer must name one position,
            # and says nothing of how the judge treats positions or orders.
            if pair.same_text:
                continue
            # At exactly 0.5 a judgment names no position and has no winner to be consistent about.
            named = [
                (j.p_first > 0.5, j.order)
                for j in given
                if j.order != "none" and j.p_first is not None and j.p_first != 0.5
            ]
            for first_won, order in named:
                self._names_first.add(float(first_won == (order == "forward")), pair.prompt.id)
            if len(named) == 2:
                self._consistent.add(float(named[0][0] == named[1][0]), pair.prompt.id)

    def decided(self, pair: Pair, comparison: Comparison) -> None:
        """Counts what all judges say together of one pair."""
        self._labels.add(comparison.outcome, comparison.reason)
        if comparison.escalated:
            self._escalated[comparison.escalated] += 1
        if comparison.disagreement is not None:
            self._spread.add(comparison.disagreement, pair.prompt.id)
        for principle_id, vote in comparison.votes.items():
            self._votes[principle_id].add(vote, self._tie_margin)

    @property
    def ledger(self) -> Ledger:
        """The ledger of the comparisons."""
        return self._labels.ledger()

    def labels(self) -> LabelsSection:
        """The ledgers of comparisons and questions."""
        return LabelsSection(
            **_plain(self.ledger),
            by_principle=_records(self._by_principle),
            by_judge=_records(self._by_judge),
        )

    def section(self, judges: tuple[str, ...], seed: int) -> JudgeSection:
        """How the judge behaved: position, consistency, label mass, and each principle's votes."""
        return JudgeSection(
            judges=judges,
            disagreement=self._spread.mean(seed),
            escalated=dict(sorted(self._escalated.items())),
            order_consistency=self._consistent.share(seed),
            first_position_rate=self._names_first.share(seed),
            label_mass_mean=self._mass.value,
            label_mass_min=self._mass.least,
            judgments=self._judgments,
            unscored_judgments=dict(sorted(self._unscored.items())),
            by_principle={i: votes.figures() for i, votes in self._votes.items()},
        )


def _plain(counts: Ledger) -> dict[str, Any]:
    return {"requested": counts.requested, **counts._asdict()}


def _records(countings: Mapping[str, Counting]) -> dict[str, LedgerRecord]:
    return {i: LedgerRecord(**_plain(counting.ledger())) for i, counting in countings.items()}


class _Mean:
    def __init__(self) -> None:
        self.n = 0
        self._sum = 0.0
        self.least: float | None = None

    def add(self, value: float) -> None:
        self.n += 1
        self._sum += value
        self.least = value if self.least is None else min(self.least, value)

    @property
    def value(self) -> float | None:
        return self._sum / self.n if self.n else None


class _Votes:
    def __init__(self) -> None:
        self._mean = _Mean()
        self._decided = 0

    def add(self, vote: float, tie_margin: float) -> None:
        self._mean.add(vote)
        self._decided += abs(vote - 0.5) > tie_margin

    def figures(self) -> PrincipleFigures:
        return PrincipleFigures(
            votes=self._mean.n, p_first_mean=self._mean.value, decided=self._decided
        )


class _Clustered:
    """Values, and the prompts that they are of."""

    def __init__(self) -> None:
        self._values_N = array("d")
        self._prompts_N = array("Q")

    def add(self, value: float, prompt_id: str) -> None:
        self._values_N.append(value)
        # 64 bits of a hash stand for the prompt: of a million, two share one once in 30 million
        # runs.
        digest = hashlib.blake2b(prompt_id.encode(), digest_size=8).digest()
        self._prompts_N.append(int.from_bytes(digest))

    def mean(self, seed: int) -> Interval | None:
        """`clustered_mean`; None without a value."""
        return clustered_mean(self._values_N, self._prompts_N, seed) if self._values_N else None

    def share(self, seed: int) -> Interval | None:
        """`clustered_share`; None without a value."""
        return clustered_share(self._values_N, self._prompts_N, seed) if self._values_N else None

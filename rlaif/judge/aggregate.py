"""From judgments to votes, from votes to comparisons: arithmetic that costs no call."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rlaif.constitution import Constitution
from rlaif.types import Comparison, Judgment, Prompt, Response


class Pair(NamedTuple):
    """Two responses to one prompt, to be compared. The forward order shows `first` as A."""

    prompt: Prompt
    first: Response
    second: Response

    @property
    def id(self) -> str:
        return f"{self.first.id}|{self.second.id}"


def compare(
    pair: Pair,
    judgments: Sequence[Judgment],
    constitution: Constitution,
    *,
    orders: int,
    tie_margin: float,
    min_voting_weight: float,
) -> Comparison:
    """One comparison from its judgments.

    A principle votes when all its orders are scored: its vote is the mean over them. The
    comparison is scored when the principles that vote hold at least `min_voting_weight` of all
    weight; p_first is their weighted mean. |p_first - 0.5| <= tie_margin is a tie, and so are two
    identical texts, whatever a judge asked in one order makes of them.
    """
    by_principle: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        by_principle[judgment.principle_id].append(judgment)
    weights = {p.id: p.weight for p in constitution.principles}
    votes: dict[str, float] = {}
    for principle_id, given in by_principle.items():
        scored = [j.p_first for j in given if j.p_first is not None]
        if len(scored) == orders:
            votes[principle_id] = sum(scored) / orders
    voting = sum(weights[i] for i in votes)
    common = {
        "id": pair.id,
        "prompt_id": pair.prompt.id,
        "first": pair.first.id,
        "second": pair.second.id,
        "votes": votes,
        "orders": orders,
    }
    if not votes or voting < min_voting_weight * sum(weights.values()):
        reasons = Counter(j.reason for j in judgments if j.reason)
        return Comparison.model_validate(
            {
                **common,
                "outcome": "unscored",
                "p_first": None,
                # The commonest; of equals the first by name, so that a rebuild says the same.
                "reason": min(reasons, key=lambda r: (-reasons[r], r)),
            }
        )
    p_first = sum(weights[i] * p for i, p in votes.items()) / voting
    winner = "A" if p_first > 0.5 else "B"
    tie = abs(p_first - 0.5) <= tie_margin or pair.first.text == pair.second.text
    outcome = "tie" if tie else winner
    return Comparison.model_validate({**common, "outcome": outcome, "p_first": p_first})


def ledger(comparisons: Iterable[Comparison]) -> tuple[dict[str, int], dict[str, int]]:
    """Counts by outcome (A, B, tie), and unscored by reason."""
    outcomes = {"A": 0, "B": 0, "tie": 0}
    unscored: Counter[str] = Counter()
    for comparison in comparisons:
        if comparison.outcome == "unscored":
            unscored[comparison.reason] += 1
        else:
            outcomes[comparison.outcome] += 1
    return outcomes, dict(sorted(unscored.items()))


def all_pairs(prompts: Mapping[str, Prompt], responses: Iterable[Response]) -> list[Pair]:
    """Every two responses to the same prompt: C(K, 2) pairs a prompt, in the order of the input."""
    by_prompt: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        by_prompt[response.prompt_id].append(response)
    return [
        Pair(prompts[prompt_id], first, second)
        for prompt_id, group in by_prompt.items()
        for i, first in enumerate(group)
        for second in group[i + 1 :]
    ]

"""How a scorer orders the pairs of preference groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlaif.evaluate.intervals import Interval, clustered_share
from rlaif.evaluate.metrics import Array, agreement, longer_wins, pair_accuracy
from rlaif.types import Comparison, PreferenceGroup, Prompt, Split

Scores = Mapping[str, Sequence[float | None]]
"""Prompt id -> a score for each response of its group; None for a response that has none."""

CREDIT = {"A": 1.0, "B": 0.0, "tie": 0.5}


def win_rate(comparisons: Sequence[Comparison], seed: int) -> Interval | None:
    """Share of the scored comparisons that the first response wins, ties half, clustered by prompt;
    None where none is scored."""
    scored = [c for c in comparisons if c.outcome != "unscored"]
    if not scored:
        return None
    return clustered_share([CREDIT[c.outcome] for c in scored], [c.prompt_id for c in scored], seed)


class Accuracy(NamedTuple):
    train: float | None
    held_out: Interval | None
    longer_wins: Interval | None
    """The rule "the longer answer wins" on the same held-out pairs."""


def accuracy(groups: Sequence[PreferenceGroup], scores: Scores, seed: int) -> Accuracy:
    """Share of comparisons that the scores order as labelled, and the length baseline."""
    train = scored_pairs(groups, scores, "train")
    test = scored_pairs(groups, scores, "test")
    return Accuracy(
        train=float(np.mean(as_labelled(train))) if train else None,
        held_out=_share(as_labelled(test), test, seed),
        longer_wins=_share(longer_is_labelled(test), test, seed),
    )


def scorer_agreement(
    groups: Sequence[PreferenceGroup], one: Scores, other: Scores, seed: int
) -> Interval | None:
    """Share of held-out comparisons that both scorers order the same way."""
    # A response may be too long for one scorer and not for the other: only what both scored.
    both = {
        i: [a if b is not None else None for a, b in zip(one[i], other[i], strict=True)]
        for i in one
        if i in other
    }
    first = scored_pairs(groups, both, "test")
    second = scored_pairs(
        groups,
        {
            i: [b if a is not None else None for a, b in zip(both[i], other[i], strict=True)]
            for i in both
        },
        "test",
    )
    same_M = agreement([pair.margin for pair in first], [pair.margin for pair in second])
    return _share(same_M, first, seed)


class ScoredPair(NamedTuple):
    """A comparison of a group, and by how much its first response's score is higher."""

    margin: float
    p_first: float
    first: str
    second: str
    prompt: Prompt
    ids: tuple[int, int]
    """Where the two stand in their group."""


def scored_pairs(
    groups: Sequence[PreferenceGroup], scores: Scores, split: Split
) -> list[ScoredPair]:
    """The comparisons of a split of which both responses have a score."""
    found = []
    for group in groups:
        if group.split != split or group.prompt.id not in scores:
            continue
        scores_K = scores[group.prompt.id]
        for c in group.comparisons:
            first, second = scores_K[c.first], scores_K[c.second]
            if first is not None and second is not None:
                texts = group.responses[c.first], group.responses[c.second]
                ids = c.first, c.second
                found.append(ScoredPair(first - second, c.p_first, *texts, group.prompt, ids))
    return found


def as_labelled(pairs: Sequence[ScoredPair]) -> Array:
    """Credit (M,) of the scores' order of each pair."""
    return pair_accuracy([pair.margin for pair in pairs], [pair.p_first for pair in pairs])


def longer_is_labelled(pairs: Sequence[ScoredPair]) -> Array:
    """Credit (M,) of the rule "the longer answer wins", in characters."""
    return longer_wins(
        [len(pair.first) for pair in pairs],
        [len(pair.second) for pair in pairs],
        [pair.p_first for pair in pairs],
    )


def _share(credit_M: Array, pairs: Sequence[ScoredPair], seed: int) -> Interval | None:
    prompts_M = [pair.prompt.id for pair in pairs]
    return clustered_share(credit_M, prompts_M, seed) if prompts_M else None

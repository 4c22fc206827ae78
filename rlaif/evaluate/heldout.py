"""How a scorer orders the pairs of preference groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlaif.evaluate.intervals import Interval, clustered_share
from rlaif.evaluate.metrics import agreement, longer_wins, pair_accuracy
from rlaif.types import Comparison, PreferenceGroup, Split

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
    train = _compared(groups, scores, "train")
    test = _compared(groups, scores, "test")
    return Accuracy(
        train=float(np.mean(pair_accuracy(train.margin_M, train.p_first_M)))
        if train.p_first_M
        else None,
        held_out=_share(pair_accuracy(test.margin_M, test.p_first_M), test, seed),
        longer_wins=_share(
            longer_wins(test.len_first_M, test.len_second_M, test.p_first_M), test, seed
        ),
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
    first = _compared(groups, both, "test")
    second = _compared(
        groups,
        {
            i: [b if a is not None else None for a, b in zip(both[i], other[i], strict=True)]
            for i in both
        },
        "test",
    )
    return _share(agreement(first.margin_M, second.margin_M), first, seed)


class _Compared(NamedTuple):
    margin_M: list[float]
    p_first_M: list[float]
    len_first_M: list[int]
    """In characters."""
    len_second_M: list[int]
    prompt_M: list[str]


def _compared(groups: Sequence[PreferenceGroup], scores: Scores, split: Split) -> _Compared:
    found = _Compared([], [], [], [], [])
    for group in groups:
        if group.split != split or group.prompt.id not in scores:
            continue
        scores_K = scores[group.prompt.id]
        for c in group.comparisons:
            first, second = scores_K[c.first], scores_K[c.second]
            if first is None or second is None:
                continue
            found.margin_M.append(first - second)
            found.p_first_M.append(c.p_first)
            found.len_first_M.append(len(group.responses[c.first]))
            found.len_second_M.append(len(group.responses[c.second]))
            found.prompt_M.append(group.prompt.id)
    return found


def _share(credit_M: np.ndarray, compared: _Compared, seed: int) -> Interval | None:
    return clustered_share(credit_M, compared.prompt_M, seed) if len(credit_M) else None

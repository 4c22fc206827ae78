"""Figures on pairs. Every function gives one value a pair, so that the caller can put an interval
over prompts around the mean (`intervals.clustered_share`).

Arrays run over M pairs: `margin_M` is score(first) - score(second), `p_first_M` the judge's
P(first preferred).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _side(margin_M: npt.ArrayLike, name: str) -> Array:
    """1 where the first is ahead, 0 where the second is, 0.5 where they are level."""
    side_M = np.asarray(margin_M, dtype=np.float64)
    if side_M.ndim != 1 or not np.isfinite(side_M).all():
        raise ValueError(f"{name} must be a row of finite numbers, got shape {side_M.shape}")
    return (np.sign(side_M) + 1.0) / 2.0


def _probabilities(p_M: npt.ArrayLike, name: str) -> Array:
    p_M = np.asarray(p_M, dtype=np.float64)
    if p_M.ndim != 1 or not ((p_M >= 0.0) & (p_M <= 1.0)).all():
        raise ValueError(f"{name} must be a row of numbers between 0 and 1")
    return p_M


def _same_length(first_M: Array, second_M: Array) -> None:
    if len(first_M) != len(second_M):
        raise ValueError(f"one value a pair: got {len(first_M)} and {len(second_M)}")


def _credit(side_M: Array, label_M: Array) -> Array:
    _same_length(side_M, label_M)
    undecided_M = (side_M == 0.5) | (label_M == 0.5)
    return np.where(undecided_M, 0.5, (side_M == label_M).astype(np.float64))


def pair_accuracy(margin_M: npt.ArrayLike, p_first_M: npt.ArrayLike) -> Array:
    """Credit for each pair: 1 ordered as the judge did, 0 the other way round.

    A margin of zero, or a label of exactly 0.5, counts half. Shapes (M,), (M,) -> (M,).
    Raises ValueError for lengths that differ or numbers that are none.
    """
    p_first_M = _probabilities(p_first_M, "p_first_M")
    return _credit(_side(margin_M, "margin_M"), _side(p_first_M - 0.5, "p_first_M"))


def longer_wins(
    len_first_M: npt.ArrayLike, len_second_M: npt.ArrayLike, p_first_M: npt.ArrayLike
) -> Array:
    """`pair_accuracy` of the rule "the longer answer wins"; equal lengths count half.

    Under 0.5 on average means that the judge prefers the shorter answer.
    """
    first_M = np.asarray(len_first_M, dtype=np.float64)
    second_M = np.asarray(len_second_M, dtype=np.float64)
    _same_length(first_M, second_M)
    return pair_accuracy(first_M - second_M, p_first_M)


def agreement(margin_a_M: npt.ArrayLike, margin_b_M: npt.ArrayLike) -> Array:
    """Credit for each pair: 1 where both scorers order it the same way, 0 where they do not.

    A margin of zero in either counts half. Shapes (M,), (M,) -> (M,).
    """
    return _credit(_side(margin_a_M, "margin_a_M"), _side(margin_b_M, "margin_b_M"))

"""Figures on pairs, worked by hand and by law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.evaluate.metrics import (
    agreement,
    longer_wins,
    pair_accuracy,
)

pairs = st.lists(
    st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0])), min_size=1
)


def test_a_pair_ordered_as_the_judge_did_counts_one_and_a_level_pair_half() -> None:
    credit_M = pair_accuracy([2.0, -0.1, 3.0, -1.0, 0.0, 1.0], [0.9, 0.2, 0.4, 1.0, 0.9, 0.5])
    assert credit_M.tolist() == [1.0, 1.0, 0.0, 0.0, 0.5, 0.5]


def test_the_longer_answer_wins_where_the_judge_prefers_it() -> None:
    credit_M = longer_wins([10, 10, 4, 7], [3, 12, 9, 7], [0.8, 0.8, 0.1, 0.9])
    assert credit_M.tolist() == [1.0, 0.0, 1.0, 0.5]


def test_scorers_agree_where_both_order_the_pair_the_same_way() -> None:
    assert agreement([1, -1, 1, 0], [5, -2, -3, 4]).tolist() == [1.0, 1.0, 0.0, 0.5]


@given(pairs)
def test_swapping_the_pair_changes_no_figure(rows: list[tuple[int, float]]) -> None:
    margin_M = np.array([margin for margin, _ in rows], dtype=float)
    p_first_M = np.array([p for _, p in rows])
    assert (pair_accuracy(margin_M, p_first_M) == pair_accuracy(-margin_M, 1 - p_first_M)).all()


@given(pairs)
def test_turning_the_scorer_round_turns_the_credit_round(rows: list[tuple[int, float]]) -> None:
    margin_M = [float(margin) for margin, _ in rows]
    p_first_M = [p for _, p in rows]
    turned_M = [-margin for margin in margin_M]
    total_M = pair_accuracy(margin_M, p_first_M) + pair_accuracy(turned_M, p_first_M)
    assert (total_M == 1.0).all()


def test_lengths_that_differ_are_refused() -> None:
    for call in (
        lambda: pair_accuracy([1.0], [0.2, 0.3]),
        lambda: longer_wins([1], [2, 3], [0.5, 0.5]),
        lambda: agreement([1.0, 2.0], [1.0]),
    ):
        with pytest.raises(ValueError, match="one value a pair"):
            call()


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        pair_accuracy([float("nan")], [0.5])
    with pytest.raises(ValueError, match="between 0 and 1"):
        pair_accuracy([1.0], [1.2])
    with pytest.raises(ValueError, match="between 0 and 1"):
        pair_accuracy([1.0], [float("nan")])

"""P-values agree with their intervals, and Holm's adjustment with its arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from rlaif.evaluate.estimates import DIFFERENCE, Estimate, Part, arm_mean, clustered
from rlaif.evaluate.intervals import excludes
from rlaif.evaluate.multiplicity import holm, p_value


def estimated(value: float, se: float, df: float = 99) -> Estimate:
    return Estimate(
        value=value,
        bounds=DIFFERENCE,
        n=100,
        prompts=100,
        of_prompts=Part(variance=se**2, df=df),
    )


def test_without_skewness_p_is_that_of_the_t_test() -> None:
    for value in (-0.03, 0.001, 0.02, 0.06):
        t = abs(value) / 0.02
        assert p_value(estimated(value, 0.02)) == pytest.approx(2 * stats.t.sf(t, 99), abs=2e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_p_is_at_most_5_percent_exactly_where_the_interval_excludes_no_difference(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    value_ME = np.sign(rng.random((30, 3)) - rng.uniform(0.2, 0.8))
    estimate = arm_mean(value_ME, list(range(30)), DIFFERENCE)
    p = p_value(estimate)
    assert p is not None
    assert (p <= 0.05) == excludes(estimate.interval(), 0.0)


def test_an_estimate_without_an_interval_has_no_p() -> None:
    assert p_value(arm_mean([[0.1], [0.2]], ["a", "b"], DIFFERENCE)) is None
    assert p_value(clustered([0.0] * 4, list("abcd"), DIFFERENCE)) == 1.0


def test_holm_by_hand() -> None:
    # Smallest first: 4 · 0.01, 3 · 0.02 = 0.06, 2 · 0.025 = 0.05 but not under 0.06, 1 · 0.6.
    assert holm([0.6, 0.01, 0.025, 0.02]) == pytest.approx([0.6, 0.04, 0.06, 0.06])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_holm_is_statsmodels(p_N: list[float]) -> None:
    assert holm(p_N) == pytest.approx(multipletests(p_N, method="holm")[1].tolist())

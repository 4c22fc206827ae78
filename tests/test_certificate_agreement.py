"""Kappa, alpha and calibration: against published examples, by hand, against scipy, and by law."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from rlaif.evaluate import certificate_words
from rlaif.evaluate.agreement import cohen_kappa, krippendorff_alpha
from rlaif.evaluate.calibration import (
    COLDEST,
    HOTTEST,
    Bin,
    CalibrationFigures,
    Scores,
    calibration,
    fit_temperature,
    scale,
)
from rlaif.evaluate.intervals import Interval, binomial, excludes

# Krippendorff (2011), section C: four observers, twelve units, 0 for a missing value.
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3),
    (0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0),
)
probabilities = st.lists(st.integers(0, 64).map(lambda k: k / 64), min_size=1, max_size=40)


def counts(*observers: tuple[int, ...]) -> list[list[int]]:
    """How many observers gave each value, 1 and up, to each unit."""
    values = range(1, 1 + max(max(o) for o in observers))
    return [[unit.count(v) for v in values] for unit in zip(*observers, strict=True)]


def names(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def known(interval: Interval | None) -> Interval:
    assert interval is not None
    return interval


def calibrated(p_right: list[float], prompts: list[str] | None = None) -> CalibrationFigures:
    found = calibration(p_right, prompts or names(len(p_right)), seed=0)
    assert found is not None
    return found


def confused(table: list[list[int]]) -> tuple[list[int], list[int]]:
    """Labels of two coders who gave the pair (row, column) as often as the table says."""
    cells = [(g, j) for g, row in enumerate(table) for j, n in enumerate(row) for _ in range(n)]
    return [g for g, _ in cells], [j for _, j in cells]


# Kappa.


def test_kappa_is_right_for_a_table_worked_by_hand() -> None:
    # Observed 35 / 50 = 0.7; expected (25 · 30 + 25 · 20) / 50² = 0.5; (0.7 - 0.5) / 0.5 = 0.4.
    kappa = known(cohen_kappa(*confused([[20, 5], [10, 15]]), names(50), seed=0))
    assert kappa.value == pytest.approx(0.4)
    assert (kappa.n, kappa.clusters) == (50, 50)
    # The large-sample standard error is sqrt(0.7 · 0.3 / 50) / 0.5 = 0.130.
    assert kappa.low == pytest.approx(0.4 - 1.96 * 0.13, abs=0.05)
    assert kappa.high == pytest.approx(0.4 + 1.96 * 0.13, abs=0.05)


def test_kappa_counts_ties_as_a_third_label() -> None:
    # Observed 8 / 10; rows 5, 3, 2 and columns 4, 3, 3: expected (20 + 9 + 6) / 100 = 0.35.
    kappa = known(cohen_kappa(*confused([[4, 1, 0], [0, 2, 1], [0, 0, 2]]), names(10), seed=0))
    assert kappa.value == pytest.approx((0.8 - 0.35) / 0.65)


def test_a_judge_that_gives_one_label_always_agrees_as_chance_would() -> None:
    kappa = known(cohen_kappa([0, 1] * 20, [1] * 40, names(40), seed=0))
    assert kappa.value == 0.0
    assert not excludes(kappa, 0.0)
    assert kappa.high is not None
    assert kappa.high > 0.1  # not [0, 0]: every resample is 0, and that proves nothing


def test_full_agreement_is_not_reported_as_certain() -> None:
    kappa = known(cohen_kappa([0, 1] * 10, [0, 1] * 10, names(20), seed=0))
    assert kappa.value == 1.0
    # Wilson's lower end of 20 in 20, through (observed - 0.5) / 0.5.
    low = known(binomial(20, 20)).low
    assert low is not None
    assert kappa.low == pytest.approx(2 * low - 1)


def test_gold_of_one_label_has_no_kappa() -> None:
    assert cohen_kappa([1, 1, 1], [1, 0, 1], names(3), seed=0) is None
    assert cohen_kappa([], [], [], seed=0) is None


def test_copies_of_a_pair_in_its_prompt_do_not_narrow_kappa() -> None:
    gold, judge = confused([[8, 2], [4, 6]])
    one = known(cohen_kappa(gold, judge, names(20), seed=3))
    six = known(cohen_kappa(gold * 6, judge * 6, names(20) * 6, seed=3))
    assert (six.value, six.n, six.clusters) == (pytest.approx(one.value), 120, 20)
    assert (six.low, six.high) == (pytest.approx(one.low), pytest.approx(one.high))


def test_one_prompt_gives_kappa_no_ends() -> None:
    kappa = known(cohen_kappa([0, 1], [0, 1], ["p", "p"], seed=0))
    assert (kappa.low, kappa.high) == (None, None)


# Alpha.


def test_alpha_is_krippendorffs_in_his_example_with_missing_values() -> None:
    alpha = known(krippendorff_alpha(counts(*OBSERVERS), names(12), seed=0))
    assert alpha.value == pytest.approx(0.743, abs=5e-4)
    assert alpha.n == 11  # one value alone, unit 12's, can agree with none


def test_alpha_is_right_for_two_coders_worked_by_hand() -> None:
    # Two coders, ten units, 4 apart: D = 4 · 2 / (2 - 1) · 1 = 8 coincidences off the diagonal of
    # 20 values, 14 of one kind and 6 of the other: 1 - 19 · 8 / (20² - 14² - 6²) = 1 - 152 / 168.
    one = (1, 2, 1, 1, 1, 1, 1, 1, 2, 1)
    two = (2, 2, 2, 1, 1, 2, 1, 1, 1, 1)
    assert (one + two).count(1) == 14
    alpha = known(krippendorff_alpha(counts(one, two), names(10), seed=0))
    assert alpha.value == pytest.approx(1 - 152 / 168)  # 0.095, as Krippendorff prints it


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=12))
def test_alpha_is_what_the_coincidence_matrix_gives(units: list[tuple[int, int, int]]) -> None:
    coincidence: dict[tuple[int, int], float] = {}
    for unit in units:
        given_ = [v for v in unit if v]
        for i, a in enumerate(given_):
            for k, b in enumerate(given_):
                if i != k:
                    at = (a, b)
                    coincidence[at] = coincidence.get(at, 0.0) + 1 / (len(given_) - 1)
    total = {v: sum(n for (a, _), n in coincidence.items() if a == v) for v in (1, 2, 3)}
    n = sum(total.values())
    apart = sum(share for (a, b), share in coincidence.items() if a != b)
    expected = sum(total[a] * total[b] for a in total for b in total if a != b)
    counted = [[unit.count(v) for v in (1, 2, 3)] for unit in units]
    alpha = krippendorff_alpha(counted, names(len(units)), seed=0)
    if expected < 1e-9:
        assert alpha is None
    else:
        assert known(alpha).value == pytest.approx(1 - (n - 1) * apart / expected)


def test_one_value_alone_has_no_alpha() -> None:
    assert krippendorff_alpha([[0, 0, 2], [0, 0, 3]], names(2), seed=0) is None
    assert krippendorff_alpha([[1, 0], [0, 1]], names(2), seed=0) is None
    assert krippendorff_alpha([], [], seed=0) is None


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="1, 2, 1"):
        cohen_kappa([0], [0, 1], ["p"], seed=0)
    with pytest.raises(ValueError, match="2 units in 1"):
        krippendorff_alpha([[1, 1], [0, 2]], ["p"], seed=0)
    with pytest.raises(ValueError, match="one cluster a pair"):
        calibration([0.5, 0.5], ["p"], seed=0)


# Calibration.


def test_the_scores_are_right_for_four_pairs_worked_by_hand() -> None:
    # 90 % twice, right twice: gap 0.1. 62 % twice, right once: gap 0.12.
    raw = calibrated([0.9, 0.9, 0.62, 0.38]).raw
    assert raw.ece == pytest.approx((2 * 0.1 + 2 * 0.12) / 4)
    assert raw.brier == pytest.approx((0.01 + 0.01 + 0.38**2 + 0.62**2) / 4)
    logs = [math.log(p) for p in (0.9, 0.9, 0.62, 0.38)]
    assert raw.log_loss == pytest.approx(-sum(logs) / 4)


def test_a_judge_that_always_says_one_half_is_calibrated_and_knows_nothing() -> None:
    found = calibrated([0.5] * 6)
    assert found.raw == Scores(ece=0.0, brier=0.25, log_loss=found.raw.log_loss)
    assert found.raw.log_loss == pytest.approx(math.log(2))
    assert found.temperature == 1.0


def test_certainty_that_is_wrong_costs_much_and_not_endlessly() -> None:
    assert calibrated([0.0]).raw.log_loss == pytest.approx(-math.log(1e-6))


def test_a_judge_that_says_90_percent_and_is_right_on_75_needs_temperature_2() -> None:
    # sigmoid(ln 9 / T) = 0.75 where ln 9 / T = ln 3.
    assert fit_temperature([0.9, 0.9, 0.9, 0.1]) == pytest.approx(2.0, abs=1e-6)


def test_a_judge_right_on_every_pair_or_on_none_has_no_best_temperature() -> None:
    assert fit_temperature([0.6, 0.9]) is None
    assert fit_temperature([0.4, 0.1]) is None
    found = calibration([0.6, 0.9], ["x", "y"], seed=0)
    assert found is not None
    assert found.temperature is None
    assert "all are right, or no more than chance" in certificate_words._calibrated(found)[0]


def test_no_pair_is_scaled_by_a_temperature_that_has_seen_its_prompt() -> None:
    # By itself prompt a asks for T = 2 (see above), and prompt b, right on 9 of 10, for T = 1. So
    # a keeps its 90 % and b is brought to 75 %.
    a, b = [0.9, 0.9, 0.9, 0.1], [0.9] * 9 + [0.1]
    found = calibrated(a + b, ["a"] * 4 + ["b"] * 10)
    assert found.scaled is not None
    brier = (3 * 0.1**2 + 0.9**2) + (9 * 0.25**2 + 0.75**2)
    assert found.scaled.brier == pytest.approx(brier / 14, abs=1e-6)
    assert found.temperature == pytest.approx(math.log(9) / math.log(12 / 2), abs=1e-6)


def test_one_prompt_alone_cannot_be_cross_fitted() -> None:
    found = calibrated([0.9, 0.1], ["p", "p"])
    assert found.scaled is None
    assert found.bins_scaled == ()


def test_clamping_keeps_probabilities_within_40_and_60_percent() -> None:
    assert calibrated([0.9, 0.45, 0.1]).clamped.brier == pytest.approx(
        (0.4**2 + 0.55**2 + 0.6**2) / 3
    )


def test_bins_hold_their_upper_end_and_every_pair_once() -> None:
    bins = calibrated([0.5, 0.5 + 1 / 30, 1.0, 0.0, 0.97]).bins_raw
    assert [b.n for b in bins] == [2, *[0] * 13, 3]
    assert bins[0].accuracy == 0.75  # one right, one level
    assert bins[-1].accuracy == pytest.approx(2 / 3)
    assert bins[-1].confidence == pytest.approx(2.97 / 3)
    assert bins[5].confidence is None


def test_nothing_is_said_of_no_pairs_and_numbers_that_are_none_are_refused() -> None:
    assert calibration([], [], seed=0) is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration([1.5], ["p"], seed=0)


@settings(max_examples=50, deadline=None)
@given(probabilities)
def test_the_temperature_is_the_one_that_scipy_finds(p_right: list[float]) -> None:
    p_M = np.clip(p_right, 1e-6, 1 - 1e-6)
    logit_M = np.log(p_M / (1 - p_M))

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0.0, -logit_M / math.exp(log_t)).mean())

    theirs = optimize.minimize_scalar(
        loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded"
    )
    fitted = fit_temperature(p_right)
    ends = [loss(math.log(end)) for end in (COLDEST, HOTTEST)]
    assert (min(ends) if fitted is None else loss(math.log(fitted))) <= theirs.fun + 1e-9


@given(probabilities, st.floats(COLDEST, HOTTEST))
def test_no_temperature_changes_who_is_ahead(p_right: list[float], temperature: float) -> None:
    before = np.sign(np.asarray(p_right) - 0.5)
    assert (np.sign(scale(p_right, temperature) - 0.5) == before).all()


@settings(max_examples=25, deadline=None)
@given(probabilities)
def test_scaling_keeps_the_share_of_right_winners(p_right: list[float]) -> None:
    found = calibrated(p_right)

    def right(bins: tuple[Bin, ...]) -> float:
        return sum(b.n * (b.accuracy or 0.0) for b in bins)

    if found.scaled is not None:
        assert right(found.bins_scaled) == pytest.approx(right(found.bins_raw))

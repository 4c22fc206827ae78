"""The length-corrected win rate: by hand, against statsmodels, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import special, stats

from rlaif.evaluate.estimates import Array
from rlaif.evaluate.intervals import Interval, excludes
from rlaif.evaluate.length_corrected import length_corrected


def known(interval: Interval | None) -> Interval:
    assert interval is not None
    return interval


def ends(interval: Interval | None) -> tuple[float, float]:
    interval = known(interval)
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def pairs(
    rng: np.random.Generator, prompts: int, at_one: float, slope: float
) -> tuple[Array, Array, Array, list[int]]:
    """Two pairs a prompt: wins, lengths of first and second, prompts. The first is longer."""
    second_M = np.round(rng.uniform(100, 300, 2 * prompts))
    first_M = np.round(second_M * rng.lognormal(0.3, 0.4, 2 * prompts))
    own_M = np.repeat(rng.normal(0.0, 0.5, prompts), 2)
    p_M = special.expit(special.logit(at_one) + slope * (first_M / second_M - 1.0) + own_M)
    win_M = (rng.random(2 * prompts) < p_M).astype(float)
    return win_M, first_M, second_M, np.repeat(np.arange(prompts), 2).tolist()


def test_two_ratios_give_the_figure_worked_by_hand() -> None:
    # At ratio 0.5 a quarter is won, at ratio 2 nine tenths. The line through ln(1/3) and ln(9) has
    # slope (ln 9 + ln 3) / 1.5 = 2 ln 3, and is -ln 3 + 0.5 · 2 ln 3 = 0 at ratio 1: one half.
    win_M = [1.0] + [0.0] * 3 + [1.0] * 9 + [0.0]
    found = length_corrected(win_M, [50] * 4 + [200] * 10, [100] * 14, range(14))
    assert known(found.raw).value == pytest.approx(10 / 14)
    assert known(found.corrected).value == pytest.approx(0.5)
    assert known(found.slope).value == pytest.approx(2 * np.log(3))
    assert found.reason == ""


def test_the_regression_is_statsmodels_one_and_its_error_about_theirs() -> None:
    win_M, first_M, second_M, prompt_M = pairs(np.random.default_rng(1), 400, 0.45, 1.2)
    win_M[::7] = 0.5  # ties
    x_M2 = sm.add_constant(first_M / second_M - 1.0)
    theirs = sm.GLM(win_M, x_M2, family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": np.asarray(prompt_M)}
    )
    found = length_corrected(win_M, first_M, second_M, prompt_M)
    assert known(found.corrected).value == pytest.approx(special.expit(theirs.params[0]), abs=1e-9)
    assert known(found.slope).value == pytest.approx(theirs.params[1], abs=1e-8)
    t = stats.t.ppf(0.975, 399)
    for at, interval in enumerate((found.corrected, found.slope)):
        low, high = ends(interval)
        if at == 0:
            low, high = special.logit(low), special.logit(high)
        # The jackknife's is the larger, and the same with ever more prompts.
        assert 1.0 <= (high - low) / (2 * t) / theirs.bse[at] < 1.02


def test_the_jackknife_is_nearly_what_leaving_out_each_prompt_gives() -> None:
    win_M, first_M, second_M, prompt_M = pairs(np.random.default_rng(2), 200, 0.6, 0.5)
    x_M2 = sm.add_constant(first_M / second_M - 1.0)

    def fitted(kept_M: Array) -> Array:
        model = sm.GLM(win_M[kept_M], x_M2[kept_M], family=sm.families.Binomial())
        return np.asarray(model.fit().params)

    whole_2 = fitted(np.ones(400, dtype=bool))
    without_C2 = np.stack([fitted(np.asarray(prompt_M) != c) for c in range(200)])
    se_2 = np.sqrt(199 / 200 * ((without_C2 - whole_2) ** 2).sum(axis=0))
    low, high = ends(length_corrected(win_M, first_M, second_M, prompt_M).slope)
    # One Newton step instead of a fit.
    assert (high - low) / 2 / stats.t.ppf(0.975, 199) == pytest.approx(se_2[1], rel=0.01)


def test_a_win_rate_that_is_all_length_vanishes_after_the_correction() -> None:
    raw = corrected = slopes = 0
    rng = np.random.default_rng(3)
    for _ in range(400):
        found = length_corrected(*pairs(rng, 150, 0.5, 2.0))
        raw += excludes(known(found.raw), 0.5)
        corrected += not excludes(known(found.corrected), 0.5)
        slopes += excludes(known(found.slope), 0.0)
    assert raw >= 0.95 * 400
    assert corrected >= 0.95 * 400
    assert slopes >= 0.95 * 400


@pytest.mark.parametrize("prompts", [12, 60])
def test_the_planted_rate_at_equal_length_lies_in_its_interval(prompts: int) -> None:
    # A prompt's own share moves the average over prompts towards one half; this is what it is.
    rng = np.random.default_rng(4)
    own_N = rng.normal(0.0, 0.5, 200_000)
    truth = float(special.expit(special.logit(0.62) + own_N).mean())
    covered = fitted = 0
    for _ in range(400):
        found = length_corrected(*pairs(rng, prompts, 0.62, 0.8))
        fitted += found.corrected is not None
        covered += found.corrected is not None and not excludes(found.corrected, truth)
    assert covered >= 0.95 * fitted
    assert fitted >= 0.95 * 400


@pytest.mark.parametrize(
    ("win_M", "first_M", "reason"),
    [
        ([1, 0, 1, 0.5], [120] * 4, "all length ratios are alike"),
        ([1, 1, 1, 1], [80, 90, 110, 120], "one side wins every pair"),
        ([0, 0, 1, 1], [80, 90, 110, 120], "parts all wins from all losses"),
        ([1, 1, 0.5, 0], [80, 90, 110, 120], "parts all wins from all losses"),
        ([0, 1, 0, 1], [110, 120, 130, 140], "longer in every pair"),
        ([0, 1, 0, 1], [60, 70, 80, 90], "shorter in every pair"),
    ],
)
def test_where_there_is_no_fit_there_is_a_reason_and_no_number(
    win_M: list[float], first_M: list[int], reason: str
) -> None:
    found = length_corrected(win_M, first_M, [100] * 4, range(4))
    assert found.corrected is None
    assert found.slope is None
    assert reason in found.reason
    assert known(found.raw).value == pytest.approx(np.mean(win_M))


def test_ties_overlap_with_both_sides_and_can_be_fitted() -> None:
    assert length_corrected([0.5] * 4, [80, 90, 110, 120], [100] * 4, range(4)).corrected


def test_one_prompt_gives_a_figure_without_ends() -> None:
    found = length_corrected([0, 1, 0, 1], [80, 90, 110, 120], [100] * 4, ["p"] * 4)
    assert known(found.corrected).low is None


def test_a_prompt_that_alone_has_other_lengths_cannot_be_left_out() -> None:
    found = length_corrected(
        [1, 0, 1, 0, 0.5, 0.5], [100] * 4 + [80, 120], [100] * 6, [1, 2, 3, 4, 5, 5]
    )
    assert found.reason == "without one of the prompts all length ratios are alike"


def test_the_interval_at_equal_length_counts_the_seeds() -> None:
    # Three seeds that differ by 0.5 in log-odds: of prompts alone far too few intervals hold it.
    rng = np.random.default_rng(6)
    covered = {"prompts": 0, "seeds": 0}
    for _ in range(200):
        seed_M = np.repeat(np.arange(3), 100)
        first_M, second_M = np.round(rng.uniform(100, 300, (2, 300)))
        logit_M = 0.8 * (first_M / second_M - 1.0) + rng.normal(0.0, 0.5, 3)[seed_M]
        win_M = (rng.random(300) < special.expit(logit_M)).astype(float)
        prompt_M = list(range(100)) * 3
        for name, of in (("prompts", None), ("seeds", seed_M.tolist())):
            found = length_corrected(win_M, first_M, second_M, prompt_M, of)
            covered[name] += not excludes(known(found.corrected), 0.5)
    assert covered["seeds"] >= 0.95 * 200
    assert covered["prompts"] < 0.8 * 200


def test_seeds_that_are_alike_add_nothing_and_one_seed_gives_no_ends() -> None:
    win_M, first_M, second_M, prompt_M = pairs(np.random.default_rng(7), 40, 0.6, 0.5)
    twice = [np.tile(x_M, 2) for x_M in (win_M, first_M, second_M)]
    alone = length_corrected(*twice, prompt_M * 2)
    both = length_corrected(*twice, prompt_M * 2, [0] * 80 + [1] * 80)
    assert ends(both.corrected) == pytest.approx(ends(alone.corrected))
    assert ends(both.raw) == pytest.approx(ends(alone.raw))
    one = length_corrected(win_M, first_M, second_M, prompt_M, [0] * 80)
    assert known(one.corrected).low is None
    assert known(one.raw).low is None


def test_pairs_with_an_empty_answer_are_left_out_and_counted() -> None:
    found = length_corrected([0, 1, 0, 1, 1], [80, 90, 110, 120, 9], [100] * 4 + [0], range(5))
    assert found.empty == 1
    assert known(found.raw).n == 4
    nothing = length_corrected([1.0], [3], [0], ["p"])
    assert (nothing.raw, nothing.corrected) == (None, None)
    with pytest.raises(ValueError, match="0 or more"):
        length_corrected([1.0], [-1], [1], ["p"])
    with pytest.raises(ValueError, match="one value a pair"):
        length_corrected([1.0], [1, 2], [1], ["p"])

"""Means over prompts and seeds, tests of equivalence and power: by hand, by reference, by
simulation."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import power as reference_power
from statsmodels.stats import weightstats

from rlaif.evaluate.equivalence import equivalence
from rlaif.evaluate.estimates import (
    DIFFERENCE,
    Array,
    Estimate,
    Part,
    arm_answers,
    arm_difference,
    arm_mean,
    clustered,
)
from rlaif.evaluate.intervals import Interval, excludes
from rlaif.evaluate.power import detectable, needed_for_equivalence

REPETITIONS = 400


def ends(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def known(part: Part | None) -> Part:
    assert part is not None
    return part


class World:
    """Arms whose accuracy on a pair is a base, plus what the prompt, the prompt in this arm and the
    seed add to it."""

    def __init__(self, prompts: int, pairs: int, seeds: int, of_seed: float, rng: int) -> None:
        self.rng = np.random.default_rng(rng)
        self.shape = (prompts, pairs, seeds)
        self.of_seed = of_seed
        self.prompt_M = np.repeat(np.arange(prompts), pairs).tolist()

    def new_prompts(self, spread: float = 0.15) -> Array:
        return self.rng.normal(0.0, spread, (self.shape[0], 1, 1))

    def arm(self, base: float, of_prompt: npt.ArrayLike) -> Array:
        P, K, E = self.shape
        p_PKE = base + np.asarray(of_prompt) + self.rng.normal(0.0, self.of_seed, (1, 1, E))
        p_PKE = p_PKE + self.rng.normal(0.0, 0.05, (P, 1, 1))
        hits_PKE = self.rng.random(self.shape) < np.clip(p_PKE, 0.0, 1.0)
        return hits_PKE.astype(float).reshape(P * K, E)


# A mean over prompts.


def test_clusters_of_one_size_give_the_t_test_of_their_means() -> None:
    value_CK = np.random.default_rng(0).normal(size=(9, 4)) ** 3
    value_CK = (value_CK + value_CK.mean(axis=1).mean()) / 100
    value_CK[::2] *= -1
    estimate = clustered(value_CK.ravel(), np.repeat(np.arange(9), 4).tolist(), DIFFERENCE)
    part = known(estimate.of_prompts)
    mean_C = value_CK.mean(axis=1)
    assert part.variance == pytest.approx(mean_C.var(ddof=1) / 9)
    assert part.df == pytest.approx(8)
    low, high = stats.ttest_1samp(mean_C, 0.0).confidence_interval(0.9)
    ours = ends(estimate.interval(0.9))
    # One end is t's own, the other is wider by the skewness.
    assert min(abs(ours[0] - low), abs(ours[1] - high)) < 1e-12
    assert ours[0] <= low + 1e-12
    assert ours[1] >= high - 1e-12


def test_symmetric_clusters_give_exactly_the_t_interval() -> None:
    estimate = clustered([0.1, 0.3, 0.5, 0.7, 0.9], [1, 2, 3, 4, 5])
    low, high = stats.ttest_1samp([0.1, 0.3, 0.5, 0.7, 0.9], 0.0).confidence_interval()
    assert ends(estimate.interval()) == pytest.approx((low, high))


def test_clusters_of_unlike_sizes_are_weighted_and_corrected_as_worked_by_hand() -> None:
    # Sizes 1, 1, 2, mean 0.5; sums off it 0.5, -0.5, 0. With corrections 1 / (1 - 1/4) and
    # 1 / (1 - 2/4): (0.25 / 0.75 + 0.25 / 0.75 + 0) / 4² = 1/24. Clusters in effect:
    # (1 + 1 + 4)² / (1 + 1 + 16) = 2.
    part = known(clustered([1.0, 0.0, 1.0, 0.0], ["a", "b", "c", "c"]).of_prompts)
    assert part.variance == pytest.approx(1 / 24)
    assert part.df == pytest.approx(1.0)
    assert part.skewness == 0.0


def test_the_error_of_many_clusters_is_statsmodels_cluster_robust_one() -> None:
    rng = np.random.default_rng(4)
    cluster_N = rng.integers(400, size=3000)
    value_N = np.clip(0.5 + rng.normal(0, 0.1, 400)[cluster_N] + rng.normal(0, 0.1, 3000), 0, 1)
    robust = sm.OLS(value_N, np.ones(3000)).fit(
        cov_type="cluster", cov_kwds={"groups": cluster_N}, use_t=True
    )
    # Theirs corrects by C / (C - 1) and so on for all clusters alike, ours for each.
    assert clustered(value_N, cluster_N.tolist()).se == pytest.approx(robust.bse[0], rel=0.01)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 5)), min_size=1, max_size=30))
def test_an_interval_holds_its_mean_and_widens_with_confidence(rows: list[tuple[int, int]]) -> None:
    estimate = clustered([v / 10 for v, _ in rows], [c for _, c in rows])
    wide, narrow = estimate.interval(0.99), estimate.interval(0.8)
    if len({c for _, c in rows}) == 1:
        assert wide.low is None
    else:
        (a, d), (b, c) = ends(wide), ends(narrow)
        assert 0.0 <= a <= b <= estimate.value <= c <= d <= 1.0


def test_prompts_that_are_all_alike_are_not_reported_as_certain() -> None:
    # Of 20 prompts none would show a kind of prompts with 2.5 % chance, if it were 16.84 % of them.
    unseen = 1 - 0.025 ** (1 / 20)
    assert ends(clustered([1.0] * 20, range(20)).interval()) == pytest.approx((1 - unseen, 1.0))
    assert ends(clustered([0.0] * 20, range(20), DIFFERENCE).interval()) == pytest.approx(
        (-unseen, unseen)
    )
    assert equivalence(clustered([0.0] * 20, range(20), DIFFERENCE), 0.05).verdict == "undecided"


def test_values_that_make_no_mean_are_refused() -> None:
    with pytest.raises(ValueError, match="one prompt for each"):
        clustered([0.5, 0.5], [1])
    with pytest.raises(ValueError, match="between 0 and 1"):
        clustered([float("nan")], [1])
    with pytest.raises(ValueError, match="2 axes"):
        arm_mean([0.5, 0.5], [1, 2])


# Two samples at once.


def test_the_variance_of_an_arm_is_that_over_prompts_and_that_over_seeds() -> None:
    # Prompt means 1/3, 2/3: variance 1/18, by 2 prompts 1/36. Seed means 1, 0.5, 0: 0.25 by 3.
    estimate = arm_mean([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], ["p", "q"])
    assert estimate.value == pytest.approx(0.5)
    assert known(estimate.of_prompts).variance == pytest.approx(1 / 36)
    assert known(estimate.of_seeds).variance == pytest.approx(1 / 12)
    assert estimate.se == pytest.approx(math.sqrt(1 / 36 + 1 / 12))
    t_1, t_2 = stats.t.ppf([0.9, 0.9], [1, 2])
    half = math.sqrt(t_1**2 / 36 + t_2**2 / 12)
    assert ends(estimate.interval(0.8)) == pytest.approx(
        (max(0.5 - half, 0.0), min(0.5 + half, 1.0))
    )
    assert half < 0.8  # or the bounds are all that was tested
    inner = math.sqrt(sum(stats.t.ppf(0.6, df) ** 2 * v for df, v in ((1, 1 / 36), (2, 1 / 12))))
    assert ends(estimate.interval(0.2)) == pytest.approx((0.5 - inner, 0.5 + inner))


def test_the_seeds_of_two_arms_add_up_as_in_welchs_test() -> None:
    a, b = np.array([[0.1, 0.5, 0.6]] * 2), np.array([[0.2, 0.3]] * 2)
    estimate = arm_difference(a, b, ["p", "q"])
    theirs = stats.ttest_ind(a[0], b[0], equal_var=False)
    part = known(estimate.of_seeds)
    assert estimate.value / math.sqrt(part.variance) == pytest.approx(theirs.statistic)
    assert part.df == pytest.approx(theirs.df)
    assert estimate.seeds == 2


def test_copies_of_a_pair_in_its_prompt_do_not_narrow_an_arms_interval() -> None:
    value_ME = np.random.default_rng(5).integers(0, 2, (12, 3)).astype(float)
    six_ME, prompt_M = np.repeat(value_ME, 6, axis=0), np.repeat(np.arange(12), 6).tolist()
    assert ends(arm_mean(six_ME, prompt_M).interval()) == pytest.approx(
        ends(arm_mean(value_ME, range(12)).interval())
    )


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-math.inf, math.inf)])
def test_answers_that_are_all_there_have_the_error_of_an_arms_mean(
    bounds: tuple[float, float],
) -> None:
    value_ME = np.random.default_rng(7).random((12, 3)) ** 3
    prompt_M = np.repeat(np.arange(6), 2)
    ours = arm_answers(
        value_ME.ravel(), np.repeat(prompt_M, 3).tolist(), list(range(3)) * 12, bounds
    )
    theirs = arm_mean(value_ME, prompt_M.tolist(), bounds)
    assert ours.seeds == theirs.seeds == 3
    assert (*ends(ours.interval()), ours.value) == pytest.approx(
        (*ends(theirs.interval()), theirs.value)
    )


def test_seeds_with_unlike_numbers_of_answers_are_weighted_as_worked_by_hand() -> None:
    # Mean 1/4 of four; the sums off it are 3/4 - 1/4 = 1/2 of two and -1/4 of one and of one:
    # (1/4 / (1 - 2/4) + 1/16 / (1 - 1/4) · 2) / 4² = 1/24.
    estimate = arm_answers([1.0, 0.0, 0.0, 0.0], ["p", "q", "p", "q"], [0, 0, 1, 2])
    assert known(estimate.of_seeds).variance == pytest.approx(1 / 24)
    assert arm_answers([1.0, 0.0], ["p", "q"], [1, 1]).interval().low is None


def test_values_without_bounds_that_are_all_alike_have_no_ends() -> None:
    assert arm_mean([[2.0, 3.0]] * 4, range(4), (-math.inf, math.inf)).interval().low is None
    assert arm_mean([[2.0, 3.0]] * 4, range(4), (0.0, math.inf)).interval().high is None
    with pytest.raises(ValueError, match="must lie"):
        clustered([math.inf, 0.0], [1, 2], (-math.inf, math.inf))


def test_one_seed_says_nothing_of_another() -> None:
    estimate = arm_difference(np.eye(4)[:, :1], np.eye(4)[:, :3], range(4))
    assert estimate.se is None
    assert estimate.interval().low is None
    assert equivalence(estimate, 0.5).verdict == "undecided"


@pytest.mark.parametrize(
    ("prompts", "seeds", "of_seed"),
    [(8, 3, 0.0), (8, 5, 0.05), (40, 3, 0.02), (40, 5, 0.0), (100, 3, 0.05), (100, 3, 0.1)],
)
def test_two_arms_that_are_alike_are_called_so_in_at_least_95_percent(
    prompts: int, seeds: int, of_seed: float
) -> None:
    world = World(prompts, 3, seeds, of_seed, rng=1)
    differences = wins = by_prompts_alone = 0
    for _ in range(REPETITIONS):
        shared = world.new_prompts()
        a_ME, b_ME = world.arm(0.6, shared), world.arm(0.6, shared)
        differences += not excludes(arm_difference(a_ME, b_ME, world.prompt_M).interval(), 0.0)
        won_ME = world.arm(0.5, world.new_prompts())
        wins += not excludes(arm_mean(won_ME, world.prompt_M).interval(), 0.5)
        alone = clustered(won_ME.mean(axis=1), world.prompt_M).interval()
        by_prompts_alone += not excludes(alone, 0.5)
    assert differences >= 0.95 * REPETITIONS
    assert wins >= 0.95 * REPETITIONS
    if of_seed == 0.1:
        assert by_prompts_alone < 0.8 * REPETITIONS  # what leaving out the seeds would do


def test_a_known_win_rate_lies_in_its_interval_and_is_told_from_one_half() -> None:
    world = World(120, 3, 3, 0.01, rng=2)
    covered = told = 0
    for _ in range(REPETITIONS):
        won_ME = world.arm(0.65, world.new_prompts(0.1))
        interval = arm_mean(won_ME, world.prompt_M).interval()
        covered += not excludes(interval, 0.65)
        told += excludes(interval, 0.5)
    assert covered >= 0.95 * REPETITIONS
    assert told >= 0.8 * REPETITIONS


# Equivalence.


def test_tost_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(6)
    verdicts = set()
    for mean in np.linspace(-0.1, 0.1, 81):
        half_N = rng.uniform(0.0, 0.15, size=20)
        value_N = mean + np.concatenate([half_N, -half_N])  # symmetric: no correction for skewness
        p, _, _ = weightstats.DescrStatsW(value_N).ttost_mean(-0.05, 0.05)
        ours = equivalence(clustered(value_N, range(40), DIFFERENCE), 0.05).verdict
        assert (ours == "equivalent") == (p < 0.05)
        different = stats.ttest_1samp(value_N, 0.0).pvalue < 0.05
        assert (ours == "different") == (different and p >= 0.05)
        verdicts.add(ours)
    assert verdicts == {"equivalent", "different", "undecided"}


@pytest.mark.parametrize(
    ("prompts", "seeds", "of_seed"), [(40, 3, 0.0), (300, 3, 0.0), (300, 5, 0.02), (300, 3, 0.05)]
)
def test_arms_that_differ_by_the_margin_are_called_equivalent_in_at_most_5_percent(
    prompts: int, seeds: int, of_seed: float
) -> None:
    world = World(prompts, 2, seeds, of_seed, rng=3)
    wrong = 0
    for _ in range(REPETITIONS):
        shared = world.new_prompts()
        difference = arm_difference(
            world.arm(0.65, shared), world.arm(0.55, shared), world.prompt_M
        )
        wrong += equivalence(difference, 0.1).verdict == "equivalent"
    assert wrong <= 0.05 * REPETITIONS


@pytest.mark.parametrize("margin", [0.05, 0.1, 0.2])
def test_differences_of_few_prompts_to_one_side_are_not_taken_for_equivalence(
    margin: float,
) -> None:
    # Exactly, without simulation. The share `margin` of prompts differs, all to one side. With t
    # alone 18 % are called equivalent at the worst number of prompts.
    for prompts in range(10, 200, 5):
        wrong = 0.0
        for k in range(prompts + 1):
            estimate = clustered([1.0] * k + [0.0] * (prompts - k), range(prompts), DIFFERENCE)
            if estimate.value >= margin:
                break
            if equivalence(estimate, margin).verdict == "equivalent":
                wrong += stats.binom.pmf(k, prompts, margin)
        assert wrong <= 0.05


def test_arms_that_are_alike_are_mostly_shown_to_be_so_with_enough_prompts() -> None:
    world = World(1000, 2, 5, 0.005, rng=8)
    found = 0
    for _ in range(100):
        shared = world.new_prompts()
        arms = world.arm(0.6, shared), world.arm(0.6, shared)
        found += equivalence(arm_difference(*arms, world.prompt_M), 0.05).verdict == "equivalent"
    assert found >= 90


def test_a_win_rate_is_held_against_one_half() -> None:
    estimate = clustered([0.5, 0.5, 0.51, 0.49] * 20, range(80))
    assert equivalence(estimate, 0.05, null=0.5).verdict == "equivalent"
    assert equivalence(estimate, 0.05, null=0.3).verdict == "different"
    with pytest.raises(ValueError, match="margin"):
        equivalence(estimate, 0.0)


# Power.


def estimated(of_prompts: Part, of_seeds: Part | None, prompts: int, seeds: int) -> Estimate:
    return Estimate(
        value=0.0,
        bounds=DIFFERENCE,
        n=prompts,
        prompts=prompts,
        seeds=None if of_seeds is None else seeds,
        of_prompts=of_prompts,
        of_seeds=of_seeds,
    )


@pytest.mark.parametrize("prompts", [12, 50, 400])
def test_the_detectable_effect_is_near_what_statsmodels_solves_for(prompts: int) -> None:
    estimate = estimated(Part(variance=0.09 / prompts, df=prompts - 1), None, prompts, 0)
    theirs = reference_power.TTestPower().solve_power(nobs=prompts, alpha=0.05, power=0.8)
    assert detectable(estimate) == pytest.approx(0.3 * theirs, rel=0.02)


def test_prompts_needed_for_equivalence_find_it_as_often_as_promised() -> None:
    estimate = estimated(Part(variance=0.09 / 50, df=49), None, 50, 0)
    needed = needed_for_equivalence(estimate, 0.05)
    assert needed is not None
    rng = np.random.default_rng(9)
    value_RN = rng.normal(0.0, 0.3, size=(4000, needed))
    half_R = stats.t.ppf(0.95, needed - 1) * value_RN.std(axis=1, ddof=1) / math.sqrt(needed)
    found_R = np.abs(value_RN.mean(axis=1)) + half_R < 0.05
    assert found_R.mean() == pytest.approx(0.8, abs=0.025)


def test_needed_prompts_are_the_fewest_that_do() -> None:
    estimate = estimated(Part(variance=0.09 / 50, df=49), None, 50, 0)
    needed = needed_for_equivalence(estimate, 0.04)
    assert needed is not None

    def reach(n: int) -> float:
        return float(stats.t.ppf([0.95, 0.9], n - 1).sum()) * math.sqrt(0.09 / n)

    assert reach(needed) <= 0.04 < reach(needed - 1)


def test_no_number_of_prompts_makes_up_for_seeds_that_vary() -> None:
    estimate = estimated(Part(variance=1e-4, df=99), Part(variance=4e-4, df=4), 100, 3)
    assert needed_for_equivalence(estimate, 0.05, "prompts") is None
    seeds = needed_for_equivalence(estimate, 0.05, "seeds")
    assert seeds is not None
    assert 3 < seeds < 20
    with pytest.raises(ValueError, match="no seeds"):
        needed_for_equivalence(estimated(Part(variance=1e-4, df=99), None, 100, 0), 0.05, "seeds")


def test_nothing_is_detectable_where_the_error_is_not_known() -> None:
    assert detectable(clustered([0.5, 0.6], ["p", "p"])) is None
    assert detectable(clustered([0.5, 0.5], ["p", "q"])) is None
    assert needed_for_equivalence(clustered([0.5, 0.6], ["p", "p"]), 0.1) is None

"""Learning curves of two kinds of labels, and what one label is worth in the other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from rlaif.evaluate.estimates import Array
from rlaif.evaluate.exchange_rate import DECAYS, ExchangeRate, Measured, exchange_rates

SIZES = (50, 100, 200, 400, 800)


def law(pairs: float, a: float = 0.85, b: float = 0.9, c: float = 0.35) -> float:
    return float(a - b * pairs**-c)


def exact(accuracy_S: list[float], seeds: int = 2, pairs: int = 4) -> Array:
    """Every model has the same credit on every pair."""
    return np.broadcast_to(np.array(accuracy_S)[:, None, None], (len(accuracy_S), seeds, pairs))


class Models:
    """Models that find some prompts harder than others, trained at each size with three seeds."""

    def __init__(self, rng: np.random.Generator, prompts: int = 150) -> None:
        self.rng = rng
        self.easy_M = np.repeat(rng.normal(0.0, 0.6, prompts), 2)
        self.prompt_M = np.repeat(np.arange(prompts), 2).tolist()

    def trained(self, worth: float, a: float = 0.85) -> Measured:
        """On labels of which so many are worth one of the law's."""
        credit_SEM = np.empty((len(SIZES), 3, len(self.easy_M)))
        for s, n in enumerate(SIZES):
            for e in range(3):
                accuracy = law(n / worth, a) + self.rng.normal(0.0, 0.01)
                # Such that the mean over prompts is the accuracy.
                logit_M = stats.norm.ppf(accuracy) * np.hypot(1.0, 0.6) + self.easy_M
                credit_SEM[s, e] = self.rng.random(len(logit_M)) < stats.norm.cdf(logit_M)
        return Measured(SIZES, credit_SEM)


def covers(rate: ExchangeRate, truth: float) -> bool:
    return (rate.low is None or rate.low <= truth) and (rate.high is None or truth <= rate.high)


@pytest.mark.parametrize("worth", [0.6, 1.0, 1.7])
def test_curves_that_follow_the_law_give_its_parameters_and_the_rate(
    worth: float,
) -> None:
    c = float(DECAYS[12])
    human = Measured(SIZES, exact([law(n, c=c) for n in SIZES]))
    ai = Measured(SIZES, exact([law(n / worth, c=c) for n in SIZES]))
    found = exchange_rates(human, ai, list("aabb"), 0)
    assert (found.human.a, found.human.b, found.human.c) == pytest.approx((0.85, 0.9, c))
    assert (found.ai.a, found.ai.b) == pytest.approx((0.85, 0.9 * worth**c))
    for rate in found.rates[1:-1]:
        assert rate.relation == "="
        assert rate.rate == pytest.approx(worth)
        assert (rate.low, rate.high) == pytest.approx((worth, worth))


def test_the_fit_is_nearly_scipys_best() -> None:
    measured = Models(np.random.default_rng(0), prompts=400).trained(1.0)
    models = Measured(SIZES, np.asarray(measured.credit_SEM))
    found = exchange_rates(models, models, np.repeat(np.arange(400), 2).tolist(), 0).human
    accuracy_S = np.asarray(models.credit_SEM).mean(axis=(1, 2))

    def curve(n_S: Array, a: float, b: float, c: float) -> Array:
        return a - b * n_S**-c

    (a, b, c), _ = optimize.curve_fit(
        curve, np.array(SIZES, float), accuracy_S, (0.8, 1.0, 0.3), bounds=([0, 0, 0.05], [2, 9, 2])
    )
    theirs = curve(np.array(SIZES, float), a, b, c)
    ours = found.a - found.b * np.array(SIZES, float) ** -found.c
    # The exponent is looked for among 24.
    assert ours == pytest.approx(theirs, abs=5e-4)


def test_a_curve_that_never_comes_there_is_worth_at_least_what_was_tried() -> None:
    human = Measured(SIZES, exact([0.6, 0.65, 0.7, 0.75, 0.8]))
    ai = Measured([100, 200, 400], exact([0.55, 0.56, 0.565]))
    rate = exchange_rates(human, ai, list("aabb"), 0).rates[0]
    assert (rate.relation, rate.rate) == (">=", 400 / 50)
    assert (rate.low, rate.high) == (400 / 50, None)


def test_a_curve_that_is_above_from_the_start_is_worth_at_most_what_was_tried() -> None:
    human = Measured(SIZES, exact([0.6, 0.62, 0.64, 0.66, 0.68]))
    ai = Measured([100, 200, 400], exact([0.7, 0.75, 0.8]))
    rate = exchange_rates(human, ai, list("aabb"), 0).rates[-1]
    assert (rate.relation, rate.rate) == ("<=", 100 / 800)
    assert (rate.low, rate.high) == (None, 100 / 800)


def test_a_curve_that_falls_is_taken_as_flat() -> None:
    falling = Measured([50, 100, 200], exact([0.7, 0.65, 0.6]))
    found = exchange_rates(falling, falling, list("aabb"), 0)
    assert (found.human.a, found.human.b) == (pytest.approx(0.65), 0.0)


@pytest.mark.parametrize("worth", [0.5, 1.0, 2.0])
def test_a_planted_rate_lies_in_its_interval(worth: float) -> None:
    rng = np.random.default_rng(1)
    covered = bounded = 0
    for seed in range(60):
        models = Models(rng)
        found = exchange_rates(
            models.trained(1.0),
            models.trained(worth),
            models.prompt_M,
            seed,
        )
        middle = found.rates[2]
        covered += covers(middle, worth)
        bounded += middle.low is not None or middle.high is not None
    assert covered >= 0.95 * 60
    assert bounded >= 0.9 * 60  # an interval without ends would cover everything


def test_a_rate_of_four_is_told_from_one() -> None:
    rng = np.random.default_rng(2)
    told = 0
    for seed in range(20):
        models = Models(rng, prompts=300)
        found = exchange_rates(models.trained(1.0), models.trained(4.0), models.prompt_M, seed)
        told += not covers(found.rates[2], 1.0)
    assert told >= 18


def test_labels_with_a_lower_ceiling_come_short_of_human_ones() -> None:
    models = Models(np.random.default_rng(3), prompts=600)
    found = exchange_rates(models.trained(1.0), models.trained(1.0, a=0.7), models.prompt_M, 0)
    assert found.rates[-1].relation == ">="
    assert found.rates[-1].high is None


def test_one_seed_or_one_prompt_gives_a_rate_without_an_interval() -> None:
    curve = [law(n) for n in SIZES]
    for seeds, prompts in ((1, list("aabb")), (2, list("aaaa"))):
        measured = Measured(SIZES, exact(curve, seeds))
        rate = exchange_rates(measured, measured, prompts, 0).rates[2]
        assert rate.rate == pytest.approx(1.0)
        assert (rate.low, rate.high) == (None, None)


def test_sizes_may_come_in_any_order_and_the_same_seed_gives_the_same_interval() -> None:
    models = Models(np.random.default_rng(4), prompts=40)
    human, ai = models.trained(1.0), models.trained(1.5)
    turned = Measured(SIZES[::-1], np.asarray(human.credit_SEM)[::-1])
    assert exchange_rates(human, ai, models.prompt_M, 5) == exchange_rates(
        turned, ai, models.prompt_M, 5
    )


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (Measured([1, 2], exact([0.5, 0.5])), "three sizes"),
        (Measured([1, 2, 2], exact([0.5] * 3)), "three sizes"),
        (Measured([1, 2, 3], exact([0.5] * 3, pairs=3)), "credits are"),
        (Measured([1, 2, 3], exact([0.5, 0.5, 1.5])), "between 0 and 1"),
    ],
)
def test_what_makes_no_curve_is_refused(measured: Measured, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exchange_rates(measured, measured, list("aabb"), 0)

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.evaluate.overoptimization import (
    Scored,
    best_of,
    curve,
    fit_best_of,
    fit_rl,
    kl_of_best_of,
    n_of_kl,
    rank_weights,
    sizes,
)
from rlaif.train.scale import combined


def test_the_kl_of_best_of_n_by_hand() -> None:
    assert kl_of_best_of(1) == 0.0
    assert kl_of_best_of(2) == pytest.approx(math.log(2) - 0.5)
    assert kl_of_best_of(64) == pytest.approx(math.log(64) - 63 / 64)
    assert [n_of_kl(kl_of_best_of(n)) for n in (1, 2, 17, 64)] == [1, 2, 17, 64]


def test_the_sizes_double_and_end_with_the_largest() -> None:
    assert sizes(64) == [1, 2, 4, 8, 16, 32, 64]
    assert sizes(48) == [1, 2, 4, 8, 16, 32, 48]
    assert sizes(1) == [1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-9, 9)), min_size=1, max_size=7), st.data())
def test_the_estimate_is_the_mean_over_all_subsets(
    answers: list[tuple[int, float]], data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, len(answers)))
    by_hand = []
    for subset in itertools.combinations(answers, n):
        top = max(proxy for proxy, _ in subset)
        liked = [value for proxy, value in subset if proxy == top]
        by_hand.append(sum(liked) / len(liked))
    proxy, value = zip(*answers, strict=True)
    (found,) = best_of([proxy], [value], n)
    # Among equals the subset picks any of those that it holds, and so does the estimate.
    assert found == pytest.approx(np.mean(by_hand), abs=1e-9)


def test_weights_are_a_distribution_and_more_samples_than_there_are_is_an_error() -> None:
    for n in (1, 3, 10):
        assert rank_weights(10, n).sum() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="best of 11 needs at least 11 samples"):
        rank_weights(10, 11)


def test_the_fits_recover_what_was_planted() -> None:
    d_S = np.linspace(0, 2, 9)
    ((alpha,), (beta,)) = fit_best_of(d_S, [3.0 + d_S * (0.8 - 0.3 * d_S)])
    assert (alpha, beta) == (pytest.approx(0.8), pytest.approx(0.3))
    log_S = np.log(np.where(d_S > 0, d_S, 1.0))
    ((alpha,), (beta,)) = fit_rl(d_S, [d_S * (0.8 - 0.3 * log_S)])
    assert (alpha, beta) == (pytest.approx(0.8), pytest.approx(0.3))


def planted(
    seed: int, members: int = 4, prompts: int = 150, samples: int = 64
) -> dict[str, Scored]:
    """Gold, and members that are right on most answers and badly wrong, each in its own way, on a
    few: what a reward model makes of answers unlike those that it was trained on."""
    draw = np.random.default_rng(seed)
    gold_PN = draw.normal(size=(prompts, samples))
    shape = (prompts, samples, members)
    noise_PNM = draw.normal(scale=0.5, size=shape)
    hacked_PNM = draw.random(shape) < 0.03
    proxy_PNM = gold_PN[..., None] + noise_PNM + 4.0 * hacked_PNM
    gold_PN = gold_PN - 3.0 * hacked_PNM.any(axis=-1)
    proxies = {
        "single": proxy_PNM[..., 0],
        "mean": combined(proxy_PNM, "mean"),
        "worst": combined(proxy_PNM, "worst"),
        "uncertain": combined(proxy_PNM, "uncertain", 1.0),
    }
    return {name: Scored(name, proxy_PN, gold_PN) for name, proxy_PN in proxies.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_noisy_proxy_peaks_and_falls_and_ensembles_hold(seed: int) -> None:
    curves = {name: curve(scored, 64, seed) for name, scored in planted(seed).items()}
    single = curves["single"]
    proxies = [point.proxy.value for point in single.points]
    assert proxies == sorted(proxies), "the proxy rises all the way"
    assert single.lost.high is not None
    assert single.lost.high < 0, "and gold falls from its best"
    assert single.fit.peak_n is not None
    assert single.recommended_n < 64
    last = {name: found.points[-1].gold.value for name, found in curves.items()}
    # Coste et al. (2023): the mean does not undo it, worst-case and uncertainty do.
    assert last["single"] < last["mean"] < last["worst"]
    assert last["uncertain"] > last["mean"]


def test_the_fitted_peak_lies_in_its_interval_as_often_as_it_says() -> None:
    held = 0
    truth = curve(planted(999, prompts=4000)["single"], 64, 0).fit.peak_d
    assert truth is not None
    for seed in range(20):
        peak = curve(planted(seed, prompts=100)["single"], 64, seed).fit.peak_d
        assert peak is not None
        assert peak.low is not None
        assert peak.high is not None
        assert peak.low <= peak.value <= peak.high
        held += peak.low <= truth.value <= peak.high
    assert held >= 16, f"{held} of 20 intervals of 95 % hold it"


def test_a_proxy_that_is_gold_has_no_peak_and_takes_the_most() -> None:
    gold_PN = np.random.default_rng(0).normal(size=(200, 32))
    found = curve(Scored("single", gold_PN, gold_PN), 32, 0)
    assert found.fit.peak_d is None
    assert found.fit.peak_n is None
    assert found.recommended_n == 32
    assert found.lost.value == 0.0


def test_one_prompt_gives_no_intervals() -> None:
    gold_PN = np.random.default_rng(0).normal(size=(1, 8))
    found = curve(Scored("single", gold_PN, gold_PN), 8, 0)
    assert found.points[0].gold.low is None

"""Where optimising a reward model stops helping: gold against proxy over best-of-n.

P prompts, N samples of each, M members of a reward model, S sizes of n, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rlaif.evaluate.intervals import Interval
from rlaif.types import Record

RESAMPLES = 2000
CONFIDENCE = 0.95

Array = npt.NDArray[np.float64]


class Point(Record):
    """Best-of-n for one n."""

    n: int
    kl: float
    """Nats from the start policy: log n - (n - 1) / n."""
    proxy: Interval
    """What the reward model gives the answers that it picks."""
    gold: Interval
    """What they are really worth."""


class Fit(Record):
    """gold(d) - gold(0) = d (alpha - beta d) with d = sqrt(KL): Gao et al. (2022), eq. 1."""

    alpha: Interval
    beta: Interval
    peak_d: Interval | None
    """alpha / (2 beta), where gold is highest; None where the curve does not turn within the
    range."""
    peak_kl: float | None
    """Nats; peak_d squared."""
    peak_n: int | None
    """The n of that KL."""


class Curve(Record):
    """One way of using a reward model, pushed ever harder."""

    name: str
    points: tuple[Point, ...]
    fit: Fit
    recommended_n: int
    """The smallest n whose gold is not shown to be below the best."""
    lost: Interval
    """Gold at the largest n less the gold of the best n; below 0 is over-optimisation."""


class Overoptimization(Record):
    """What best-of-n makes of a reward model, by a gold that it has not seen."""

    gold: str
    """Who tells what answers are really worth."""
    prompts: int
    samples: int
    curves: tuple[Curve, ...]


def kl_of_best_of(n: int) -> float:
    """KL(best of n || policy) in nats: log n - (n - 1) / n (Stiennon et al. 2020, appendix G.3), an
    upper bound that is exact where no two answers are alike."""
    return math.log(n) - (n - 1) / n


def rank_weights(samples: int, n: int) -> Array:
    """Chance that the r-th worst of `samples` is the best of n drawn without replacement, (N,):
    C(r - 1, n - 1) / C(N, n). Nakano et al. (2021, WebGPT), appendix I."""
    if not 1 <= n <= samples:
        raise ValueError(f"best of {n} needs at least {n} samples, there are {samples}")
    whole = math.comb(samples, n)
    return np.array([math.comb(rank, n - 1) / whole for rank in range(samples)])


def best_of(proxy_PN: npt.ArrayLike, value_PN: npt.ArrayLike, n: int) -> Array:
    """Expected value of the answer that the proxy likes best among n, (P,), without bias.

    Of answers that the proxy likes alike any may be picked.
    """
    proxy_PN, value_PN = (np.asarray(a, dtype=np.float64) for a in (proxy_PN, value_PN))
    weights_N = rank_weights(proxy_PN.shape[1], n)
    order_PN = np.argsort(proxy_PN, axis=1, kind="stable")
    found = np.empty(len(proxy_PN))
    for p, order_N in enumerate(order_PN):
        sorted_N, values_N = proxy_PN[p, order_N], value_PN[p, order_N]
        _, alike_N = np.unique(sorted_N, return_inverse=True)
        shared = np.bincount(alike_N, weights_N) / np.bincount(alike_N)
        found[p] = shared[alike_N] @ values_N
    return found


def sizes(largest: int) -> list[int]:
    """1, 2, 4 and so on, and the largest."""
    doubled = [2**i for i in range(largest.bit_length()) if 2**i < largest]
    return [*doubled, largest]


def fit_best_of(d_S: npt.ArrayLike, gold_RS: npt.ArrayLike) -> tuple[Array, Array]:
    """alpha and beta (R,) of the least-squares fit of gold - gold(d = 0) = d (alpha - beta d), for
    each row of `gold_RS`, whose first column is d = 0."""
    d_S, gold_RS = np.asarray(d_S, dtype=np.float64), np.asarray(gold_RS, dtype=np.float64)
    return _fitted(np.stack([d_S, -(d_S**2)], axis=1), gold_RS)


def fit_rl(d_S: npt.ArrayLike, gold_RS: npt.ArrayLike) -> tuple[Array, Array]:
    """As `fit_best_of` for policies that RL has made: d (alpha - beta log d), Gao et al. (2022),
    eq. 2; it peaks at d = exp(alpha / beta - 1)."""
    d_S, gold_RS = np.asarray(d_S, dtype=np.float64), np.asarray(gold_RS, dtype=np.float64)
    by_log_S = np.where(d_S > 0, d_S * np.log(np.where(d_S > 0, d_S, 1.0)), 0.0)
    return _fitted(np.stack([d_S, -by_log_S], axis=1), gold_RS)


def _fitted(terms_S2: Array, gold_RS: Array) -> tuple[Array, Array]:
    rise_RS = gold_RS - gold_RS[:, :1]
    alpha_R, beta_R = np.linalg.lstsq(terms_S2, rise_RS.T, rcond=None)[0]
    return alpha_R, beta_R


class Scored(NamedTuple):
    """Samples of the start policy under one way of using the reward model, and under gold."""

    name: str
    proxy_PN: Array
    gold_PN: Array


def curve(scored: Scored, largest: int, seed: int) -> Curve:
    """The curve from 1 to `largest`; whole prompts are resampled for its intervals."""
    prompts = len(scored.proxy_PN)
    n_S = sizes(largest)
    gold_PS, proxy_PS = (
        np.stack([best_of(scored.proxy_PN, values, n) for n in n_S], axis=1)
        for values in (scored.gold_PN, scored.proxy_PN)
    )
    draws_RP = np.random.default_rng(seed).multinomial(
        prompts, np.full(prompts, 1 / prompts), size=RESAMPLES
    )
    gold_RS, proxy_RS = draws_RP @ gold_PS / prompts, draws_RP @ proxy_PS / prompts
    gold_S, proxy_S = gold_PS.mean(axis=0), proxy_PS.mean(axis=0)

    def interval(value: float, of_R: Array) -> Interval:
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(of_R, [tail, 1 - tail]) if prompts > 1 else (None, None)
        return Interval(value=value, low=low, high=high, n=scored.proxy_PN.size, clusters=prompts)

    best = int(gold_S.argmax())
    behind_RS = gold_RS[:, [best]] - gold_RS
    shown_S = np.quantile(behind_RS, (1 - CONFIDENCE) / 2, axis=0) > 0
    recommended = int(np.flatnonzero(~shown_S)[0]) if prompts > 1 else best
    points = tuple(
        Point(
            n=n,
            kl=kl_of_best_of(n),
            proxy=interval(proxy_S[s], proxy_RS[:, s]),
            gold=interval(gold_S[s], gold_RS[:, s]),
        )
        for s, n in enumerate(n_S)
    )
    return Curve(
        name=scored.name,
        points=points,
        fit=_fit(n_S, gold_S, gold_RS, interval),
        recommended_n=n_S[recommended],
        lost=interval(gold_S[-1] - gold_S[best], gold_RS[:, -1] - gold_RS[:, best]),
    )


def _fit(
    n_S: Sequence[int],
    gold_S: Array,
    gold_RS: Array,
    interval: Callable[[float, Array], Interval],
) -> Fit:
    d_S = np.sqrt([kl_of_best_of(n) for n in n_S])
    (alpha,), (beta,) = fit_best_of(d_S, gold_S[None])
    alpha_R, beta_R = fit_best_of(d_S, gold_RS)
    peak_d: Interval | None = None
    turns = alpha > 0 and beta > 0 and alpha / (2 * beta) <= d_S[-1]
    if turns:
        # A resample whose curve does not turn peaks at the end of what was seen, or before it.
        with np.errstate(divide="ignore", invalid="ignore"):
            at_R = np.where(beta_R > 0, alpha_R / (2 * beta_R), np.inf)
        peak_d = interval(alpha / (2 * beta), np.clip(at_R, 0.0, d_S[-1]))
    kl = peak_d.value**2 if peak_d else None
    return Fit(
        alpha=interval(alpha, alpha_R),
        beta=interval(beta, beta_R),
        peak_d=peak_d,
        peak_kl=kl,
        peak_n=None if kl is None else n_of_kl(kl),
    )


def n_of_kl(kl: float) -> int:
    """The n whose best-of-n is nearest to so many nats from the policy."""
    n = 1
    while kl_of_best_of(n + 1) <= kl:
        n += 1
    return n + 1 if kl_of_best_of(n + 1) - kl < kl - kl_of_best_of(n) else n

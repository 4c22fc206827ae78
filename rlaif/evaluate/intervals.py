"""Figures that say how sure they are.

Pairs of one prompt are not independent, so the unit that is resampled is the prompt (the cluster),
never the pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rlaif.types import Record

RESAMPLES = 2_000
ROUNDING = 1e-9
"""An interval narrower than this is one point."""


class Interval(Record):
    """An estimate and its confidence interval."""

    value: float = Field(allow_inf_nan=False)
    """The estimate."""
    low: float | None = Field(allow_inf_nan=False)
    """Lower end; None where the data cannot give one (a single cluster)."""
    high: float | None = Field(allow_inf_nan=False)
    """Upper end; None exactly where `low` is."""
    n: int = Field(ge=1)
    """Values behind the estimate (pairs, judgments, responses)."""
    clusters: int = Field(ge=1)
    """Independent units behind it, mostly prompts."""
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    """Nominal coverage."""

    @model_validator(mode="after")
    def _ends_fit(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has both ends or none")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the interval is upside down: [{self.low}, {self.high}]")
        if self.clusters > self.n:
            raise ValueError(f"{self.clusters} clusters cannot hold {self.n} values")
        return self


def clustered_mean(
    values_N: npt.ArrayLike,
    clusters_N: Sequence[str] | Sequence[int],
    seed: int,
    confidence: float = 0.95,
) -> Interval:
    """Mean of `values_N` with a percentile bootstrap over whole clusters, 2,000 resamples.

    `clusters_N` names the cluster (the prompt) of each value. A resample draws as many clusters as
    there are, with replacement, and takes the mean of all their values, so a cluster weighs by its
    size. One cluster gives no ends. The order of the clusters does not matter; the same seed gives
    the same ends. Few clusters (under about 10) give intervals that are too narrow.

    Source: Davison & Hinkley (1997), Bootstrap Methods, section 3.8 (resampling of clusters) and
    eq. 5.18 (percentile limits); Cameron, Gelbach & Miller (2008), section 3.
    Raises ValueError for no values, lengths that differ or values that are not finite.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    if values_N.ndim != 1 or len(values_N) == 0 or len(values_N) != len(clusters_N):
        raise ValueError(
            f"need one cluster for each of one or more values: got shape {values_N.shape} "
            f"and {len(clusters_N)} clusters"
        )
    if not np.isfinite(values_N).all():
        raise ValueError("a mean needs finite values")
    names_C, cluster_N = np.unique(np.asarray(clusters_N), return_inverse=True)
    C = len(names_C)
    sum_C = np.bincount(cluster_N, weights=values_N, minlength=C)
    count_C = np.bincount(cluster_N, minlength=C)
    low = high = None
    if C > 1:
        rng = np.random.default_rng(seed)
        mean_R = np.empty(RESAMPLES)
        for r in range(RESAMPLES):
            drawn_C = rng.integers(C, size=C)
            mean_R[r] = sum_C[drawn_C].sum() / count_C[drawn_C].sum()
        tail = (1.0 - confidence) / 2.0
        low, high = (float(end) for end in np.quantile(mean_R, [tail, 1.0 - tail]))
    return Interval(
        value=float(sum_C.sum() / count_C.sum()),
        low=low,
        high=high,
        n=len(values_N),
        clusters=C,
        confidence=confidence,
    )


def clustered_share(
    values_N: npt.ArrayLike,
    clusters_N: Sequence[str] | Sequence[int],
    seed: int,
    confidence: float = 0.95,
) -> Interval:
    """`clustered_mean` for values between 0 and 1 (hits, win credits).

    Where all clusters have the same mean (all hits, all misses, all ties) every resample is the
    same and the bootstrap would claim certainty; the ends are then Wilson's with one trial a
    cluster, of which the share may be a fraction. Raises ValueError also for values outside [0, 1].
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    if ((values_N < 0.0) | (values_N > 1.0)).any():
        raise ValueError("a share needs values between 0 and 1")
    mean = clustered_mean(values_N, clusters_N, seed, confidence)
    if mean.low is None or mean.high is None or mean.high - mean.low > ROUNDING:
        return mean
    low, high = _wilson(mean.value, mean.clusters, confidence)
    return mean.model_copy(update={"low": low, "high": high})


def binomial(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Share of successes in `n` independent trials with Wilson's score interval.

    Source: Wilson (1927). Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    if n < 1:
        raise ValueError("a share of no trials is not a figure")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    low, high = _wilson(successes / n, n, confidence)
    return Interval(value=successes / n, low=low, high=high, n=n, clusters=n, confidence=confidence)


def _wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1.0 - share) / n + z * z / (4 * n * n))
    scale = 1.0 + z * z / n
    # Exactly 0 and 1 at the edges, where rounding would leave a trace.
    low = 0.0 if share == 0.0 else (middle - half) / scale
    high = 1.0 if share == 1.0 else (middle + half) / scale
    return low, high


def excludes(interval: Interval, x: float) -> bool:
    """Whether `x` lies outside the interval; an interval without ends excludes nothing."""
    if interval.low is None or interval.high is None:
        return False
    return x < interval.low or x > interval.high

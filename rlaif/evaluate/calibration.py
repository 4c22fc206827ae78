"""Whether a judge that says 80 % is right in 80 % of cases.

Everything here is a function of `p_right_M`: for each of M pairs the probability that the judge
gives to the response that people call better. So it cannot matter which one stands first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlaif.evaluate.schema import Amount, Count, Finite
from rlaif.types import Probability, Record

BINS = 15
FEW_PAIRS = 50
"""Under so many an expected calibration error is mostly chance, and a temperature no better than
none: neither is told or used of a reward model."""
EDGE = 1e-6
"""Probabilities are kept this far from 0 and 1 where a logarithm is taken."""
COLDEST, HOTTEST = 0.01, 100.0
"""Temperatures between which the best one is looked for."""
CLAMP = (0.4, 0.6)

Array = npt.NDArray[np.float64]


class Scores(Record):
    """How far probabilities are from what happened; lower is better."""

    ece: Probability
    """Expected calibration error: mean distance between confidence and accuracy, over 15 bins of
    confidence between 0.5 and 1. With few pairs a bin it is above 0 even for a perfect judge."""
    brier: Probability
    """Mean squared distance of P(right) from 1; 0.25 for a judge that always says 50 %."""
    log_loss: Amount
    """Mean -ln P(right) in nats; ln 2 = 0.693 for a judge that always says 50 %."""


class Bin(Record):
    """Pairs on which the judge was about as sure."""

    lower: Probability
    """Not in the bin, except for 0.5 in the first."""
    upper: Probability
    n: Count
    confidence: Probability | None
    """Mean probability of the winner; None where the bin is empty."""
    accuracy: Probability | None
    """Share of winners that people call better too; None where the bin is empty."""


class CalibrationFigures(Record):
    """The judge's probabilities as they came, and after two simple cures."""

    n: Count
    """Pairs that people decided and the judge scored."""
    temperature: Finite | None
    """Fitted to all pairs: over 1 where the judge is too sure. None where the likeliest lies beyond
    0.01 or 100: every pair is right, or the judge is no better than chance."""
    raw: Scores
    scaled: Scores | None
    """With a temperature fitted to the other half of the prompts; None for a single prompt."""
    clamped: Scores
    """Kept within 40 % and 60 %, as in Bai et al. 2022, section 4.1."""
    bins_raw: tuple[Bin, ...]
    bins_scaled: tuple[Bin, ...]


def calibration(
    p_right_M: npt.ArrayLike, clusters_M: Sequence[str], seed: int
) -> CalibrationFigures | None:
    """The figures of M pairs; None without pairs.

    Temperature scaling is cross-fitted: prompts are dealt to two halves, and each half is scaled by
    the temperature of the other, so no pair is scored by one that has seen its prompt.

    Source: Guo et al. (2017), On Calibration of Modern Neural Networks: eq. 3 (expected
    calibration error), section 4.2 (temperature scaling). Raises ValueError for numbers outside
    [0, 1] and lengths that differ.
    """
    p_right_M = np.asarray(p_right_M, dtype=np.float64)
    if p_right_M.ndim != 1 or not ((p_right_M >= 0.0) & (p_right_M <= 1.0)).all():
        raise ValueError("p_right_M must be a row of numbers between 0 and 1")
    if len(p_right_M) != len(clusters_M):
        raise ValueError(f"one cluster a pair: got {len(p_right_M)} and {len(clusters_M)}")
    if len(p_right_M) == 0:
        return None
    right_M = (np.sign(p_right_M - 0.5) + 1.0) / 2.0
    scaled_M = _cross_fitted(p_right_M, clusters_M, seed)
    return CalibrationFigures(
        n=len(p_right_M),
        temperature=fit_temperature(p_right_M),
        raw=_scores(p_right_M, right_M),
        scaled=None if scaled_M is None else _scores(scaled_M, right_M),
        clamped=_scores(np.clip(p_right_M, *CLAMP), right_M),
        bins_raw=_bins(p_right_M, right_M),
        bins_scaled=() if scaled_M is None else _bins(scaled_M, right_M),
    )


def fit_temperature(p_right_M: npt.ArrayLike) -> float | None:
    """The T that makes `scale(p_right_M, T)` likeliest; 1 where every p is one half, since then no
    T changes anything; None where it is not within 0.01 and 100."""
    found = _likeliest(p_right_M)
    # The search comes this near to an end and no nearer.
    ends = any(math.isclose(found, end, rel_tol=1e-6) for end in (COLDEST, HOTTEST))
    return None if ends else found


def _likeliest(p_right_M: npt.ArrayLike) -> float:
    """The T between 0.01 and 100 that makes `scale(p_right_M, T)` likeliest.

    The mean of -ln P(right) is convex in 1/T, so it falls and then rises in ln T as well, and a
    golden-section search finds the bottom.
    """
    logit_M = _logit(np.asarray(p_right_M, dtype=np.float64))
    if not logit_M.any():
        return 1.0

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0.0, -logit_M / math.exp(log_t)).mean())

    golden = (math.sqrt(5.0) - 1.0) / 2.0
    low, high = math.log(COLDEST), math.log(HOTTEST)
    left, right = high - golden * (high - low), low + golden * (high - low)
    loss_left, loss_right = loss(left), loss(right)
    while high - low > 1e-7:
        if loss_left <= loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - golden * (high - low)
            loss_left = loss(left)
        else:
            low, left, loss_left = left, right, loss_right
            right = low + golden * (high - low)
            loss_right = loss(right)
    return math.exp((low + high) / 2.0)


def scale(p_M: npt.ArrayLike, temperature: float) -> Array:
    """Probabilities with their log-odds divided by `temperature`; who is ahead stays ahead."""
    # The logistic function, in a form that does not overflow.
    logit_M = _logit(np.asarray(p_M, dtype=np.float64))
    return np.asarray((1.0 + np.tanh(logit_M / temperature / 2.0)) / 2.0)


def _logit(p_M: Array) -> Array:
    kept_M: Array = np.clip(p_M, EDGE, 1.0 - EDGE)
    logit_M: Array = np.log(kept_M) - np.log1p(-kept_M)
    return logit_M


def _cross_fitted(p_right_M: Array, clusters_M: Sequence[str], seed: int) -> Array | None:
    names_C, cluster_M = np.unique(np.asarray(clusters_M), return_inverse=True)
    if len(names_C) < 2:
        return None
    # By a shuffle of their own: the halves of a gold set go by a hash of the same names.
    half_M = np.random.default_rng(seed).permutation(len(names_C))[cluster_M] % 2
    scaled_M = np.empty_like(p_right_M)
    for half in (0, 1):
        temperature = _likeliest(p_right_M[half_M != half])
        scaled_M[half_M == half] = scale(p_right_M[half_M == half], temperature)
    return scaled_M


def _scores(p_right_M: Array, right_M: Array) -> Scores:
    gaps = [
        b.n * abs(b.accuracy - b.confidence)
        for b in _bins(p_right_M, right_M)
        if b.accuracy is not None and b.confidence is not None
    ]
    return Scores(
        ece=sum(gaps) / len(p_right_M),
        brier=float(((1.0 - p_right_M) ** 2).mean()),
        log_loss=float(-np.log(np.clip(p_right_M, EDGE, 1.0 - EDGE)).mean()),
    )


def _bins(p_right_M: Array, right_M: Array) -> tuple[Bin, ...]:
    """Pairs by confidence; `right_M` is 1 or 0 for a winner, 0.5 for none, as before any cure."""
    confidence_M = np.maximum(p_right_M, 1.0 - p_right_M)
    edges = [0.5 + b / (2 * BINS) for b in range(BINS + 1)]
    # Left of an edge: a bin holds its upper end.
    bin_M = np.searchsorted(edges[1:-1], confidence_M, side="left")
    found = []
    for b in range(BINS):
        in_bin_M = bin_M == b
        n = int(in_bin_M.sum())
        found.append(
            Bin(
                lower=edges[b],
                upper=edges[b + 1],
                n=n,
                confidence=float(confidence_M[in_bin_M].mean()) if n else None,
                accuracy=float(right_M[in_bin_M].mean()) if n else None,
            )
        )
    return tuple(found)

"""How many AI labels are worth one human label: held-out accuracy over the number of pairs.

S sizes of a training set, E seeds at each, M held-out pairs in P prompts, R resamples, D decays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rlaif.evaluate.estimates import Array, Names, arm_mean
from rlaif.evaluate.intervals import RESAMPLES, Interval
from rlaif.types import Record

DECAYS = np.geomspace(0.05, 2.0, 24)
"""Exponents c that are tried; the smallest is nearly a + b log n."""

Relation = Literal["=", ">=", "<="]


class Measured(NamedTuple):
    """Held-out credits of models that were trained on one kind of label."""

    pairs_S: Sequence[int]
    """Training pairs, each size once."""
    credit_SEM: npt.ArrayLike
    """1 a held-out pair ordered rightly, 0 wrongly, 0.5 level."""


class LearningCurve(Record):
    """accuracy(n) = a - b n^-c with b >= 0: the power law of learning curves."""

    pairs: tuple[int, ...]
    accuracies: tuple[Interval, ...]
    """Means over seeds and held-out pairs, as of other prompts and other seeds; no ends with one
    prompt or one seed."""
    a: float
    """What ever more pairs would come to, as far as the law holds beyond them."""
    b: float
    c: float
    """The same in both curves."""


class ExchangeRate(Record):
    """AI labels worth one human label where a model has seen so many human labels."""

    human_pairs: int = Field(gt=0)
    accuracy: float
    """What the human curve comes to with them."""
    relation: Relation
    """`=`: the AI curve comes to it within its sizes. `>=`: not with its largest size, so one
    human label is worth at least `rate` AI labels, if they reach it at all. `<=`: with its smallest
    size already."""
    rate: float = Field(gt=0.0)
    low: float | None
    """None: not bounded from below, because the interval reaches under the AI curve's sizes, or
    because there is one seed or one prompt."""
    high: float | None
    """None: not bounded from above."""
    confidence: float


class ExchangeRates(Record):
    """Two curves on the same held-out pairs, and the rate at each human size."""

    human: LearningCurve
    ai: LearningCurve
    rates: tuple[ExchangeRate, ...]


class _Fit(NamedTuple):
    """Curves of R resamples."""

    a_R: Array
    b_R: Array
    c_R: Array

    def at(self, n: float) -> Array:
        return np.asarray(self.a_R - self.b_R * n**-self.c_R)


def exchange_rates(
    human: Measured,
    ai: Measured,
    prompt_M: Names,
    seed: int,
    *,
    confidence: float = 0.95,
) -> ExchangeRates:
    """Both curves by least squares with a common c, and what they say of the rate.

    The rate at n human pairs is m / n where the AI curve comes with m pairs to what the human curve
    comes to with n. It is never read beyond the sizes that were tried.

    The interval is the percentile bootstrap's. A resample draws one prompt less than there are, the
    same for all models, and one seed less at each size of each kind: with replacement that has the
    right variance even for three seeds (Rao & Wu 1988). What a model does by chance on a pair is
    counted in both, so the interval is rather too wide: of 300 simulated rates over 99 % lay in it.

    Source: a - b n^-c as in Hestness et al. (2017), Deep Learning Scaling is Predictable; the ratio
    of doses of like effect is that of Finney (1978), Statistical Method in Biological Assay.
    Raises ValueError for sizes that are fewer than three, under 1 or twice there, credits outside
    [0, 1], and shapes that do not fit.
    """
    _, prompt_of_M = np.unique(np.asarray(prompt_M), return_inverse=True)
    measured = [_checked(kind, len(prompt_of_M)) for kind in (human, ai)]
    prompts = int(prompt_of_M.max()) + 1
    known = prompts > 1 and all(credit_SEM.shape[1] > 1 for _, credit_SEM in measured)
    rng = np.random.default_rng(seed)
    draw_RP = np.ones((1, prompts))
    if known:
        drawn_RP = rng.multinomial(prompts - 1, np.full(prompts, 1 / prompts), size=RESAMPLES)
        draw_RP = np.concatenate([draw_RP, drawn_RP])
    # The first row is what was measured, the others are resamples.
    accuracy_RS = [_resampled(c_SEM, prompt_of_M, draw_RP, rng) for _, c_SEM in measured]
    human_S, ai_S = (n_S for n_S, _ in measured)
    fits = _fitted([human_S, ai_S], accuracy_RS)
    curves = [
        LearningCurve(
            pairs=tuple(int(n) for n in n_S),
            accuracies=tuple(
                arm_mean(of_EM.T, prompt_M).interval(confidence) for of_EM in credit_SEM
            ),
            a=fit.a_R[0],
            b=fit.b_R[0],
            c=fit.c_R[0],
        )
        for (n_S, credit_SEM), fit in zip(measured, fits, strict=True)
    ]
    return ExchangeRates(
        human=curves[0],
        ai=curves[1],
        rates=tuple(_rate(int(n), *fits, ai_S, confidence) for n in human_S),
    )


def _checked(kind: Measured, pairs: int) -> tuple[Array, Array]:
    n_S, credit_SEM = (np.asarray(x, dtype=np.float64) for x in kind)
    if len(n_S) < 3 or len(set(n_S)) < len(n_S) or n_S.min() < 1:
        raise ValueError(f"a curve needs three sizes or more, each once: got {n_S.tolist()}")
    if credit_SEM.ndim != 3 or credit_SEM.shape[::2] != (len(n_S), pairs) or not credit_SEM.size:
        raise ValueError(
            f"credits are (sizes, seeds, pairs): got {credit_SEM.shape} for {len(n_S)} sizes and "
            f"{pairs} pairs"
        )
    if not ((credit_SEM >= 0.0) & (credit_SEM <= 1.0)).all():
        raise ValueError("credits lie between 0 and 1")
    order_S = np.argsort(n_S)
    return n_S[order_S], credit_SEM[order_S]


def _resampled(
    credit_SEM: Array,
    prompt_of_M: npt.NDArray[np.intp],
    draw_RP: Array,
    rng: np.random.Generator,
) -> Array:
    """Accuracy at each size, (R, S): of all seeds in the first row, of one less in the others."""
    S, E, M = credit_SEM.shape
    R, P = draw_RP.shape
    sum_PN = np.zeros((P, S * E))
    np.add.at(sum_PN, prompt_of_M, credit_SEM.reshape(S * E, M).T)
    accuracy_RN = draw_RP @ sum_PN / (draw_RP @ np.bincount(prompt_of_M, minlength=P))[:, None]
    weight_RSE = np.full((R, S, E), 1.0 / E)
    if R > 1:
        drawn_RSE = rng.multinomial(E - 1, np.full(E, 1.0 / E), size=(R - 1, S))
        weight_RSE[1:] = drawn_RSE / (E - 1)
    return np.asarray((accuracy_RN.reshape(R, S, E) * weight_RSE).sum(axis=2))


def _fitted(n_S: Sequence[Array], accuracy_RS: Sequence[Array]) -> tuple[_Fit, _Fit]:
    """Least squares for each c that is tried, and for each resample the c that fits best."""
    R = len(accuracy_RS[0])
    error_DR = np.empty((len(DECAYS), R))
    found_DR4 = np.empty((len(DECAYS), R, 4))
    for d, c in enumerate(DECAYS):
        x_S = [n**-c for n in n_S]
        lines = [_line(x, y_RS) for x, y_RS in zip(x_S, accuracy_RS, strict=True)]
        found_DR4[d] = np.concatenate(lines, axis=1)
        error_DR[d] = sum(
            ((found_DR4[d, :, [k]].T - found_DR4[d, :, [k + 1]].T * x - y_RS) ** 2).sum(axis=1)
            for k, x, y_RS in zip((0, 2), x_S, accuracy_RS, strict=True)
        )
    best_R = error_DR.argmin(axis=0)
    c_R, best_R4 = DECAYS[best_R], found_DR4[best_R, np.arange(R)]
    a_R, b_R, a_ai_R, b_ai_R = best_R4.T
    return _Fit(a_R, b_R, c_R), _Fit(a_ai_R, b_ai_R, c_R)


def _line(x_S: Array, y_RS: Array) -> Array:
    """a and b of y = a - b x, (R, 2); flat where accuracy falls with the number of pairs."""
    off_S = x_S - x_S.mean()
    b_R = np.maximum(-(y_RS @ off_S) / (off_S @ off_S), 0.0)
    return np.stack([y_RS.mean(axis=1) + b_R * x_S.mean(), b_R], axis=1)


def _rate(n: int, human: _Fit, ai: _Fit, ai_S: Array, confidence: float) -> ExchangeRate:
    goal_R = human.at(n)
    smallest, largest = float(ai_S[0]), float(ai_S[-1])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        needed_R = (ai.b_R / (ai.a_R - goal_R)) ** (1.0 / ai.c_R)
    # Outside of the sizes that were tried only the side is known.
    needed_R = np.where(ai.at(largest) < goal_R, np.inf, needed_R)
    needed_R = np.where(ai.at(smallest) >= goal_R, 0.0, needed_R)
    at, resampled_R = float(needed_R[0]), needed_R[1:]
    relation: Relation = "<=" if at == 0.0 else ">=" if np.isinf(at) else "="
    low = high = None
    if len(resampled_R):
        tail = (1.0 - confidence) / 2.0
        # An order statistic, since there is nothing between a number and infinity.
        least, most = np.quantile(resampled_R, [tail, 1.0 - tail], method="nearest")
        low = None if least == 0.0 else min(float(least), largest) / n
        high = None if np.isinf(most) else max(float(most), smallest) / n
    return ExchangeRate(
        human_pairs=n,
        accuracy=float(goal_R[0]),
        relation=relation,
        rate=min(max(at, smallest), largest) / n,
        low=low,
        high=high,
        confidence=confidence,
    )

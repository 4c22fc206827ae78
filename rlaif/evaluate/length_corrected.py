"""A win rate as it would be if both answers were of one length."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rlaif.evaluate.estimates import Array, Names, arm_answers, clustered
from rlaif.evaluate.intervals import Interval
from rlaif.types import Record

STEPS = 100
"""Newton steps after which the fit is given up."""
CONVERGED = 1e-10


class LengthCorrected(Record):
    """Win rate of the first over the second, before and after the correction."""

    raw: Interval | None
    """None without a pair of which both answers have a length."""
    corrected: Interval | None
    """P(first wins) at a length ratio of 1; None: `reason`."""
    slope: Interval | None
    """Log-odds of a win for one more in the ratio: above 0 the longer answer is preferred. None
    exactly where `corrected` is."""
    empty: int = Field(ge=0)
    """Pairs left out because an answer has no length, and so no ratio."""
    reason: str = ""
    """Why there is no correction; empty where there is one."""


def length_corrected(
    win_M: npt.ArrayLike,
    len_first_M: npt.ArrayLike,
    len_second_M: npt.ArrayLike,
    prompt_M: Names,
    seed_M: Names | None = None,
) -> LengthCorrected:
    """Logistic regression of the win on len_first / len_second, read at a ratio of 1.

    A win is 1, a loss 0, and anything between them is a part of each (quasi-likelihood, Papke &
    Wooldridge 1996). The interval is made on the scale of log-odds by the jackknife over prompts,
    each left out by one Newton step (Bell & McCaffrey 2002), with t of prompts - 1 degrees of
    freedom. Where `seed_M` says which training each pair is of, seeds are left out likewise and the
    squares of both reaches added, as in `estimates.arm_mean`; one seed gives no ends. The ratio is
    not symmetric: with first and second swapped, one minus the figure is near this one, not equal
    to it.

    There is none, with a reason, where the fit does not exist (Albert & Anderson 1984: one ratio
    parts wins from losses) or would be read where no pair is.

    Source: Lee et al. (2023), RLAIF, appendix "Controlling for Response Length". Raises ValueError
    for rows of different lengths, wins outside [0, 1] and lengths under 0.
    """
    win_M, first_M, second_M = (
        np.asarray(x_M, dtype=np.float64) for x_M in (win_M, len_first_M, len_second_M)
    )
    seeds = [] if seed_M is None else [seed_M]
    columns = (win_M, first_M, second_M, prompt_M, *seeds)
    if len(set(map(len, columns))) > 1:
        raise ValueError(
            f"one value a pair: got {', '.join(str(len(column)) for column in columns)}"
        )
    if not ((first_M >= 0) & (second_M >= 0)).all():
        raise ValueError("a length is 0 or more")
    whole_M = (first_M > 0) & (second_M > 0)
    empty = int((~whole_M).sum())
    if not whole_M.any():
        return _none("no pair has two answers with a length", None, empty)
    win_M, ratio_M = win_M[whole_M], first_M[whole_M] / second_M[whole_M]
    clusters = {
        name: np.unique(np.asarray(of_M)[whole_M], return_inverse=True)[1]
        for name, of_M in zip(("prompts", "seeds"), (prompt_M, *seeds), strict=False)
    }
    of = [cluster_M.tolist() for cluster_M in clusters.values()]
    raw = (clustered(win_M, *of) if seed_M is None else arm_answers(win_M, *of)).interval()
    reason = _no_fit(win_M, ratio_M)
    if reason:
        return _none(reason, raw, empty)
    x_M2 = np.stack([np.ones_like(ratio_M), ratio_M - 1.0], axis=1)
    fitted_2 = _fit(win_M, x_M2)
    if fitted_2 is None:
        return _none("the regression does not converge", raw, empty)
    if any(cluster_M.max() == 0 for cluster_M in clusters.values()):
        return _read(fitted_2, np.full(2, np.nan), raw, empty)
    square_2 = np.zeros(2)
    for name, cluster_M in clusters.items():
        se_2 = _jackknife(win_M, x_M2, fitted_2, cluster_M)
        if se_2 is None:
            return _none(f"without one of the {name} all length ratios are alike", raw, empty)
        square_2 += (_t((1.0 + raw.confidence) / 2.0, int(cluster_M.max())) * se_2) ** 2
    return _read(fitted_2, np.sqrt(square_2), raw, empty)


def _none(reason: str, raw: Interval | None, empty: int) -> LengthCorrected:
    return LengthCorrected(raw=raw, corrected=None, slope=None, empty=empty, reason=reason)


def _read(fitted_2: Array, half_2: Array, raw: Interval, empty: int) -> LengthCorrected:
    ends_32 = np.stack([fitted_2, fitted_2 - half_2, fitted_2 + half_2])
    ends_32[:, 0] = _expit(ends_32[:, 0])
    corrected, slope = (
        raw.model_copy(
            update={
                name: None if np.isnan(end) else float(end)
                for name, end in zip(("value", "low", "high"), ends_3, strict=True)
            }
        )
        for ends_3 in ends_32.T
    )
    return LengthCorrected(raw=raw, corrected=corrected, slope=slope, empty=empty)


def _no_fit(win_M: Array, ratio_M: Array) -> str:
    """Why no finite maximum of the likelihood exists, or none that says something of ratio 1."""
    if ratio_M.min() == ratio_M.max():
        return "all length ratios are alike"
    if win_M.min() == win_M.max() and win_M[0] in (0.0, 1.0):
        return "one side wins every pair"
    # What is neither a win nor a loss is a part of each.
    won, lost = ratio_M[win_M > 0.0], ratio_M[win_M < 1.0]
    if won.min() >= lost.max() or won.max() <= lost.min():
        return "a length ratio parts all wins from all losses"
    if not ratio_M.min() <= 1.0 <= ratio_M.max():
        longer = "longer" if ratio_M.min() > 1.0 else "shorter"
        return f"the first answer is {longer} in every pair"
    return ""


def _fit(win_M: Array, x_M2: Array) -> Array | None:
    """Intercept and slope by Newton's method, each step halved until the likelihood rises."""
    beta_2 = np.zeros(2)

    def likelihood(beta_2: Array) -> float:
        logit_M = x_M2 @ beta_2
        return float((win_M * logit_M - np.logaddexp(0.0, logit_M)).sum())

    at = likelihood(beta_2)
    for _ in range(STEPS):
        p_M = _expit(x_M2 @ beta_2)
        step_2 = np.linalg.solve(_information(p_M, x_M2).sum(axis=0), x_M2.T @ (win_M - p_M))
        if np.abs(step_2).max() < CONVERGED:
            return beta_2
        while likelihood(beta_2 + step_2) < at and np.abs(step_2).max() > CONVERGED:
            step_2 = step_2 / 2.0
        beta_2 = beta_2 + step_2
        at = likelihood(beta_2)
    return None


def _information(p_M: Array, x_M2: Array) -> Array:
    """Each pair's part of the information matrix, (M, 2, 2)."""
    return (p_M * (1.0 - p_M))[:, None, None] * x_M2[:, :, None] * x_M2[:, None, :]


def _jackknife(
    win_M: Array, x_M2: Array, fitted_2: Array, cluster_M: npt.NDArray[np.intp]
) -> Array | None:
    """Standard errors of both coefficients; None where a cluster cannot be left out."""
    p_M = _expit(x_M2 @ fitted_2)
    C = int(cluster_M.max()) + 1
    score_C2, information_C22 = np.zeros((C, 2)), np.zeros((C, 2, 2))
    np.add.at(score_C2, cluster_M, x_M2 * (win_M - p_M)[:, None])
    np.add.at(information_C22, cluster_M, _information(p_M, x_M2))
    rest_C22 = information_C22.sum(axis=0) - information_C22
    if np.linalg.cond(rest_C22).max() > 1.0 / CONVERGED:
        return None
    off_C2 = np.linalg.solve(rest_C22, score_C2[:, :, None])[:, :, 0]
    return np.asarray(np.sqrt((C - 1) / C * (off_C2**2).sum(axis=0)))


def _expit(logit_N: Array) -> Array:
    from scipy import special  # half a second, which no other command should wait for

    return np.asarray(special.expit(logit_N))


def _t(quantile: float, df: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(quantile, df))

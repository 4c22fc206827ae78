"""What a comparison could have seen, and how many prompts or seeds would have to be added."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Literal

from rlaif.evaluate.equivalence import ALPHA
from rlaif.evaluate.estimates import Estimate

POWER = 0.8
MOST = 100_000
"""More prompts or seeds than anybody has."""

More = Literal["prompts", "seeds"]


def detectable(estimate: Estimate, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The smallest true effect that a test of level alpha, two-sided, would show with probability
    `power`: (t(1 - alpha / 2) + t(power)) se, the squares of the parts added as in an interval.
    None where the standard error cannot be known, or is zero because all prompts have the same
    mean, which tells of no other prompt.

    Source: Bloom (1995), Minimum Detectable Effects.
    """
    if estimate.parts is None or not estimate.se:
        return None
    return math.hypot(
        *(
            math.sqrt(part.variance) * _quantiles(part.df, 1.0 - alpha / 2.0, power)
            for part in estimate.parts
        )
    )


def needed_for_equivalence(
    estimate: Estimate,
    margin: float,
    more: More = "prompts",
    alpha: float = ALPHA,
    power: float = POWER,
) -> int | None:
    """Prompts (or seeds an arm) with which TOST finds two arms equivalent with probability `power`
    that truly are alike: (t(1 - alpha) + t((1 + power) / 2)) se <= margin.

    The other of the two stays as it is. None as in `detectable`, and where
    not even 100,000 would do: what seeds add to the error is there however many prompts are asked.
    Source: Julious (2004), Sample Sizes for Clinical Trials with Normal Data. Raises ValueError for
    seeds where nothing was trained.
    """
    if more == "seeds" and estimate.seeds is None:
        raise ValueError("nothing was trained: there are no seeds to add")
    if estimate.parts is None or not estimate.se:
        return None
    now = estimate.prompts if more == "prompts" else estimate.seeds
    assert now is not None, "it has parts"
    parts = estimate.parts

    def reached(n: int) -> float:
        square = 0.0
        for name, part in zip(("prompts", "seeds"), parts, strict=False):
            df = max(part.df * (n - 1) / (now - 1), 1.0) if name == more else part.df
            times = n / now if name == more else 1.0
            square += part.variance / times * _quantiles(df, 1.0 - alpha, (1.0 + power) / 2.0) ** 2
        return math.sqrt(square)

    if reached(MOST) > margin:
        return None
    # It falls as n rises, so the first n that does is found by halving.
    return 2 + bisect_left(range(2, MOST), True, key=lambda n: reached(n) <= margin)


def _quantiles(df: float, *at: float) -> float:
    from scipy import stats  # half a second, which no other command should wait for

    return float(sum(stats.t.ppf(p, df) for p in at))

"""Whether two arms are shown to be alike, shown to differ, or neither."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlaif.evaluate.estimates import Estimate
from rlaif.evaluate.intervals import Interval, excludes
from rlaif.types import Record

ALPHA = 0.05

Verdict = Literal["equivalent", "different", "undecided"]


class Equivalence(Record):
    """Two one-sided tests."""

    verdict: Verdict
    """equivalent: the interval lies within the margin on both sides of `null`, whether it excludes
    `null` or not. different: it does not, and the interval of confidence 1 - alpha excludes `null`.
    undecided: neither."""
    interval: Interval
    """With confidence 1 - 2 alpha: each of the two tests has level alpha."""
    null: float
    """No difference: 0, or 0.5 for a win rate."""
    margin: float = Field(gt=0.0, allow_inf_nan=False)
    """What the user would call no difference worth having, on either side."""
    alpha: float = Field(gt=0.0, lt=0.5)


def equivalence(
    estimate: Estimate, margin: float, null: float = 0.0, alpha: float = ALPHA
) -> Equivalence:
    """TOST: alike where both "below -margin" and "above margin" are refused at level alpha.

    The margin has to be chosen before the figures are seen. An estimate without ends is undecided.

    Source: Schuirmann (1987), A Comparison of the Two One-Sided Tests Procedure and the Power
    Approach; Lakens (2017), Equivalence Tests. Raises ValueError (pydantic's) for a margin of zero
    or less.
    """
    inner, outer = estimate.interval(1.0 - 2.0 * alpha), estimate.interval(1.0 - alpha)
    verdict: Verdict = "undecided"
    if inner.low is not None and inner.high is not None:
        if null - margin < inner.low and inner.high < null + margin:
            verdict = "equivalent"
        elif excludes(outer, null):
            verdict = "different"
    return Equivalence(verdict=verdict, interval=inner, null=null, margin=margin, alpha=alpha)

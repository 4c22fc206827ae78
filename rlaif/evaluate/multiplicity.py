"""P-values of estimates, and what is left of them where many are looked at together."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.evaluate.equivalence import ALPHA
from rlaif.evaluate.estimates import Estimate
from rlaif.evaluate.intervals import excludes

HALVINGS = 30


def p_value(estimate: Estimate, null: float = 0.0) -> float | None:
    """The least alpha, two-sided, whose interval of confidence 1 - alpha excludes `null`, from
    above to 1e-9: at most 0.05 exactly where the 95 % interval excludes it. None where the estimate
    has no interval."""
    if estimate.interval(1.0 - ALPHA).low is None:
        return None
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        alpha = (low + high) / 2.0
        if excludes(estimate.interval(1.0 - alpha), null):
            high = alpha
        else:
            low = alpha
    return high


def holm(p_N: Sequence[float]) -> list[float]:
    """Adjusted p-values of N tests, in their order: those at most alpha are refused so that any
    true null is refused with probability alpha at most, however the tests depend on each other.

    The k-th smallest is multiplied by N - k + 1, and none is smaller than the one before it.
    Source: Holm (1979), A Simple Sequentially Rejective Multiple Test Procedure; the adjusted form
    is Wright's (1992), Adjusted P-Values for Simultaneous Inference.
    """
    found = [0.0] * len(p_N)
    least = 0.0
    for k, at in enumerate(sorted(range(len(p_N)), key=lambda n: p_N[n])):
        least = max(least, min(1.0, (len(p_N) - k) * p_N[at]))
        found[at] = least
    return found

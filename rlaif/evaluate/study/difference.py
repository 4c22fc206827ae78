"""What a difference between two arms shows, with what it would have missed."""

from __future__ import annotations

from rlaif.evaluate.equivalence import equivalence
from rlaif.evaluate.estimates import DIFFERENCE, Estimate, Part
from rlaif.evaluate.multiplicity import p_value
from rlaif.evaluate.power import detectable, needed_for_equivalence
from rlaif.evaluate.study.arm_records import Difference

ASSUMED_VARIANCE = 0.25
"""Of one prompt's difference, before anything is measured: two arms that order each pair alike in
three of four cases have it."""


def difference(a: str, b: str, measure: str, estimate: Estimate, margin: float) -> Difference:
    """What an estimate of a less b shows, and what it would have missed. Its place among the
    others is given by `family.adjusted`."""
    return Difference(
        a=a,
        b=b,
        measure=measure,
        estimate=estimate,
        interval=estimate.interval(),
        p=p_value(estimate),
        p_holm=None,
        primary=False,
        found=equivalence(estimate, margin),
        detectable=detectable(estimate),
        prompts_needed=needed_for_equivalence(estimate, margin),
        seeds_needed=None
        if estimate.seeds is None
        else needed_for_equivalence(estimate, margin, "seeds"),
    )


def assumed(prompts: int) -> Estimate:
    """A difference on so many prompts of which nothing is known but `ASSUMED_VARIANCE`. Raises
    ValueError for fewer than two."""
    if prompts < 2:
        raise ValueError("a difference needs two prompts")
    return Estimate(
        value=0.0,
        bounds=DIFFERENCE,
        n=prompts,
        prompts=prompts,
        of_prompts=Part(variance=ASSUMED_VARIANCE / prompts, df=prompts - 1),
    )

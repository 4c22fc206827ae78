"""The comparisons of a study as families: what it was made for, and all others."""

from __future__ import annotations

from collections.abc import Callable

from rlaif.arms import curve_arms
from rlaif.evaluate.multiplicity import holm
from rlaif.evaluate.study.arm_records import Difference, SameLabels, WinRate
from rlaif.evaluate.study.records import StudyReport

Key = tuple[str, str, str]


def comparisons(report: StudyReport) -> list[Difference]:
    """Every comparison of two arms, policies or methods whose interval the report shows, the
    primary ones first; not the same win rates at equal length."""
    best_of = [of.best_of.rate for of in report.same_labels if of.best_of is not None]
    rates = (*report.against_human.values(), *report.against_start.values(), *best_of)
    found = [
        *report.differences,
        *(rate.difference for rate in rates),
        *(of.difference for of in report.same_labels),
    ]
    return sorted(found, key=lambda d: not d.primary)


def adjusted(report: StudyReport) -> StudyReport:
    """The report with its primary comparisons marked and every p adjusted by Holm's method within
    its family.

    Primary, before any figure is seen: ai_soft (or ai_hard without it) against human, by the
    held-out accuracy of reward models and by the win rate of the policies. The two families are
    apart, as primary and secondary endpoints of a trial are: ICH (1998), E9 Statistical Principles
    for Clinical Trials, sections 2.2.2 and 2.2.5.
    """
    ai = curve_arms(report.arms)[1]
    primary = {
        _key(d)
        for d in report.differences
        if (d.a, d.b) == (ai, "human") and "reward model" in d.measure
    }
    if ai in report.against_human:
        primary.add(_key(report.against_human[ai].difference))
    p_of: dict[Key, float] = {}
    for first in (True, False):
        family = {
            _key(d): d.p
            for d in comparisons(report)
            if (_key(d) in primary) is first and d.p is not None
        }
        p_of |= zip(family, holm(list(family.values())), strict=True)
    return _changed(
        report,
        lambda d: d.model_copy(
            update={"primary": _key(d) in primary, "p_holm": p_of.get(_key(d))},
        ),
    )


def _key(of: Difference) -> Key:
    return of.a, of.b, of.measure


def _changed(report: StudyReport, change: Callable[[Difference], Difference]) -> StudyReport:
    def rate(of: WinRate) -> WinRate:
        return of.model_copy(update={"difference": change(of.difference)})

    def same(of: SameLabels) -> SameLabels:
        best_of = of.best_of
        if best_of is not None:
            best_of = best_of.model_copy(update={"rate": rate(best_of.rate)})
        return of.model_copy(update={"difference": change(of.difference), "best_of": best_of})

    return report.model_copy(
        update={
            "differences": tuple(map(change, report.differences)),
            "against_start": {arm: rate(of) for arm, of in report.against_start.items()},
            "against_human": {arm: rate(of) for arm, of in report.against_human.items()},
            "same_labels": tuple(map(same, report.same_labels)),
        }
    )

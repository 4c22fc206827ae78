"""When a cascade's strong judge is asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping

from rlaif.judge.aggregate import is_level
from rlaif.judge.config import CascadeConfig
from rlaif.types import Judgment


def doubt(
    p_first: float | None,
    votes: Mapping[str, float],
    split: Collection[object],
    cascade: CascadeConfig,
    tie_margin: float,
) -> str:
    """The first of the cascade's triggers that a comparison meets; empty if it meets none.

    `votes` are those of its principles, `split` what `split` finds in its judgments.
    """
    met: Mapping[str, Callable[[], bool]] = {
        "unscored": lambda: p_first is None,
        "margin": lambda: p_first is not None and abs(p_first - 0.5) <= cascade.margin,
        "orders": lambda: bool(split),
        "principles": lambda: (
            max(votes.values(), default=0.5) - 0.5 > tie_margin
            and 0.5 - min(votes.values(), default=0.5) > tie_margin
        ),
    }
    return next((trigger for trigger in met if trigger in cascade.when and met[trigger]()), "")


def split(judgments: Iterable[Judgment]) -> set[tuple[str, str]]:
    """Judge and principle whose two orders name different winners."""
    sides: dict[tuple[str, str], set[bool]] = defaultdict(set)
    for j in judgments:
        if j.p_first is not None and not is_level(j.p_first, 0.0):
            sides[j.judge, j.principle_id].add(j.p_first > 0.5)
    return {of for of, found in sides.items() if len(found) == 2}

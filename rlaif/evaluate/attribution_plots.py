"""The matrices of an attribution: how every two principles vote together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from matplotlib.patches import Rectangle

from rlaif.evaluate.attribution import Attribution, Together
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.plots import LIGHT, svg

CELL = 0.42
"""Inches."""
MOST_NUMBERS = 20
"""With more principles than this the cells hold no numbers."""


def figures(found: Attribution) -> dict[str, str]:
    """`correlation` and `conflict` as inline SVG; empty with fewer than two principles."""
    names = [p.id for p in found.principles]
    if len(names) < 2:
        return {}
    size = 1.8 + CELL * len(names)
    drawn: Mapping[str, tuple[str, Callable[[Together], Interval | None]]] = {
        "correlation": ("Correlation of votes", lambda pair: pair.correlation),
        "conflict": ("Different winners, %, where both decide", lambda pair: pair.conflict),
    }
    return {
        name: svg(
            partial(
                _draw,
                names=names,
                cells={(t.one, t.other): of(t) for t in found.together},
                percent=name == "conflict",
                title=title,
            ),
            name=name,
            label=f"{title}, every two of {len(names)} principles",
            size=(size, size),
        )
        for name, (title, of) in drawn.items()
    }


def _draw(
    axes: Any,
    names: list[str],
    cells: Mapping[tuple[str, str], Interval | None],
    percent: bool,
    title: str,
) -> None:
    """Rows against columns, both halves alike; the more, the fuller the colour. Blue goes together,
    orange apart, grey is not known."""
    P = len(names)
    for row, one in enumerate(names):
        for column, other in enumerate(names):
            if row == column:
                continue
            found = cells.get((one, other), cells.get((other, one)))
            value = 0.0 if found is None else found.value
            role = "grid" if found is None else "dpo" if percent or value < 0 else "rm"
            # Colours become CSS variables, so that strength must be opacity.
            cell = axes.add_patch(
                Rectangle(
                    (column - 0.5, row - 0.5),
                    1,
                    1,
                    facecolor=LIGHT[role],
                    alpha=0.5 if found is None else min(abs(value), 1.0) * 0.85,
                    linewidth=0,
                )
            )
            # The layout need not measure what lies inside the axes.
            cell.set_in_layout(False)
            if found is not None and P <= MOST_NUMBERS:
                text = f"{100 * value:.0f}" if percent else f"{value:.1f}".replace("-", "−")
                number = axes.text(
                    column, row, text, ha="center", va="center", fontsize=8, color=LIGHT["ink"]
                )
                number.set_in_layout(False)
    axes.set_xlim(-0.5, P - 0.5)
    axes.set_ylim(P - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(P), names, rotation=90, color=LIGHT["ink"], fontsize=8)
    axes.set_yticks(range(P), names, color=LIGHT["ink"], fontsize=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title)

"""A plan for people and for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlaif.plan.estimate import Estimate, Plan
from rlaif.plan.figures import ZERO, Figure

UNKNOWN = "unknown"
Show = Callable[[float], str]
HEAD = ("stage", "calls", "stored", "input tokens", "output tokens", "USD", "time", "disk")


def lines(plan: Plan) -> list[str]:
    """One aligned table, and under it what the figures stand on."""
    rows = [HEAD, *(_row(e) for e in plan.stages), _total(plan)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    told = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    told.append("point (interval); time without the start of servers, retries and rate limits")
    if plan.memory:
        most = ", ".join(f"{stage} {_size(count)}" for stage, count in plan.memory.items())
        told.append(f"memory at most: {most}")
    told += [f"measured: {note}" for note in plan.measured]
    told += [f"assumed: {note}" for note in plan.assumed]
    if plan.unpriced:
        told.append(
            f"no price is known for {', '.join(plan.unpriced)}: the total is a lower bound "
            "(name prices with --prices FILE or RLAIF_PRICES)"
        )
    if plan.assumed and plan.pilot_tells:
        told.append(
            "--pilot N asks for N prompts and puts measured figures in place of assumed ones"
        )
    return told


def plain(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: counts, tokens, US dollars, seconds, bytes; null: unknown."""
    return {
        "stages": {e.stage: _plain(e) for e in plan.stages},
        "total": {**_plain(plan.total), "usd_is_lower_bound": bool(plan.unpriced)},
        "measured": list(plan.measured),
        "assumed": list(plan.assumed),
        "unpriced": list(plan.unpriced),
        "memory_bytes": dict(plan.memory),
    }


def _plain(e: Estimate) -> dict[str, Any]:
    figures = {
        "calls": e.calls,
        "input_tokens": e.input_tokens,
        "output_tokens": e.output_tokens,
        "usd": e.usd,
        "known_usd": e.known_usd,
        "seconds": e.seconds,
        "disk_bytes": e.disk_bytes,
    }
    return {
        "stored": e.stored,
        **{name: None if f is None else f._asdict() for name, f in figures.items()},
    }


def _row(e: Estimate) -> Sequence[str]:
    return (
        e.stage,
        _shown(e.calls, _whole),
        str(e.stored),
        _shown(e.input_tokens, _count),
        _shown(e.output_tokens, _count),
        _shown(e.usd, _usd),
        _shown(e.seconds, _time),
        _shown(e.disk_bytes, _size),
    )


def _total(plan: Plan) -> Sequence[str]:
    e = plan.total
    row = list(_row(e))
    if e.usd is None:
        row[5] = f"at least {_shown(e.known_usd, _usd)}"
    for at, field, show in ((6, "seconds", _time), (7, "disk_bytes", _size)):
        of = [stage._asdict()[field] for stage in plan.stages]
        if None in of:
            known = [figure for figure in of if figure is not None]
            row[at] = f"at least {_shown(sum(known, ZERO), show)}"
    return row


def _shown(figure: Figure | None, show: Show) -> str:
    if figure is None:
        return UNKNOWN
    low, point, high = (show(value) for value in figure)
    return point if low == high else f"{point} ({low} - {high})"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _count(value: float) -> str:
    """Three digits where there are more than that: an estimate has no more."""
    if value < 1000:
        return f"{value:.0f}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    raise AssertionError(value)


def _usd(value: float) -> str:
    return "0" if value == 0 else f"{value:.2f}" if value >= 1 else f"{value:.2g}"


def _time(value: float) -> str:
    if value < 60:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    if value < 3600:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"


def _size(value: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"

"""Numbers as people read them. None passes through: the reader decides what to show for it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rlaif.evaluate.intervals import Interval


def percent(share: float, decimals: int = 0) -> str:
    """`0.93` as `93 %`; never rounds up to 100 % or down to 0 % what is not exactly that."""
    text = f"{100 * share:.{decimals}f}"
    if float(text) in (0.0, 100.0) and share not in (0.0, 1.0):
        text = f"{100 * share:.{decimals + 1}f}"
        if float(text) in (0.0, 100.0):
            return (
                f"under {0.1**decimals:g} %" if share < 0.5 else f"over {100 - 0.1**decimals:g} %"
            )
    return f"{text} %"


def number(x: float, like: float | None = None) -> str:
    """Three significant digits or so, with a true minus sign: `−12.3`, `0.083`, `1,204`.

    `like` gives the number whose size chooses the decimals, so that an interval has them all alike.
    """
    size = abs(x if like is None else like)
    decimals = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    rounded = round(x, decimals)
    return f"{rounded:,.{decimals}f}".replace("-", "−") if rounded else "0"


def p_text(p: float) -> str:
    """`0.031`, `under 0.001`, `1`."""
    return "under 0.001" if p < 0.001 else "1" if p >= 0.9995 else f"{p:.3f}"


def share(interval: Interval, reference: float | None = None) -> str:
    """`93 % [88 %, 97 %]`; with a decimal where whole percents would hide on which side of
    `reference` an end lies."""
    ends = [interval.value]
    if interval.low is not None and interval.high is not None:
        ends += [interval.low, interval.high]
    near = reference is not None and any(0 < abs(end - reference) < 0.005 for end in ends)
    narrow = len(ends) == 3 and 0 < ends[2] - ends[1] < 0.04
    value, *limits = (percent(end, 1 if near or narrow else 0) for end in ends)
    return f"{value} [{', '.join(limits)}]" if limits else f"{value} (no interval)"


def amount(interval: Interval) -> str:
    """`−12.3 [−15.1, −9.6]`."""
    if interval.low is None or interval.high is None:
        return f"{number(interval.value)} (no interval)"
    size = max(abs(interval.low), abs(interval.high))
    value, low, high = (number(x, size) for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 12 s`, `1 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(n: int, one: str, many: str = "") -> str:
    """`1 prompt`, `12 prompts`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def reasons(counts: Mapping[str, int]) -> str:
    """`no_label: 20, rejected: 3`, most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason}: {n:,}" for reason, n in ordered)


def unbroken(text: str) -> str:
    """The same with no-break spaces before `%` and inside an interval: no line ends there."""
    text = text.replace(" %", "\u00a0%")
    return re.sub(r"\[[^\[\]]*\]", lambda ends: ends[0].replace(" ", "\u00a0"), text)

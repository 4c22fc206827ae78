"""What a study's page and its Markdown are both made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.study.records import Disagreement
from rlaif.evaluate.wording import amount, number, percent, share

NONE = "no data"


class Table(NamedTuple):
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Section(NamedTuple):
    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[str] = ()
    """Names of plots."""
    examples: Sequence[Disagreement] = ()
    note: str = ""


def share_cell(interval: Interval | None) -> str:
    return NONE if interval is None else share(interval, 0.5)


def amount_cell(interval: Interval | None) -> str:
    return NONE if interval is None else amount(interval)


def number_cell(x: float | None) -> str:
    return NONE if x is None else number(x)


def seeds_cell(shares: Sequence[float]) -> str:
    return " · ".join(percent(x) for x in shares)


def usd_cell(usd: float | None) -> str:
    return "not known" if usd is None else f"{usd:,.4f}"


def needed_cell(n: int | None) -> str:
    return "–" if n is None else f"{n:,}"

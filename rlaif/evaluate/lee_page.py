"""Writes the tables on labeler alignment: JSON and CSV for programs, HTML, Markdown for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.lee_tables import LabelCost, LeeRow, LeeTables
from rlaif.evaluate.page import render
from rlaif.evaluate.wording import amount, counted, number, percent, share
from rlaif.files import write_text

STYLES = {
    "plain": "plain",
    "detailed": "detailed",
    "chain_of_thought": "chain of thought",
    "single": "single verdict, T = 0",
    "average": "average",
    "majority": "majority",
}
NOT_ASKED = "not asked"
LONGER = "“longer wins”"
PEOPLE = "people with each other"
FIGURES = ("alignment", LONGER, PEOPLE, "of the labelled", "no label")


class Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


def words(row: LeeRow) -> str:
    """How the judge was asked: `plain, 2-shot`, `majority of 5, T = 1`."""
    if row.way in ("average", "majority"):
        return f"{STYLES[row.way]} of {row.samples}, T = 1"
    return STYLES[row.way] if row.way == "single" else f"{STYLES[row.way]}, {row.shots}-shot"


def write_tables(tables: LeeTables, directory: Path) -> None:
    """Writes lee.json, lee.csv, lee.md and lee.html. Raises SetupError where a file cannot be
    written."""
    plain = tables.model_dump(mode="json")
    data = json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(directory / "lee.json", data + "\n")
    write_text(directory / "lee.csv", _csv(tables))
    said, shown, lost = about(tables), tables_of(tables), failed(tables)
    write_text(directory / "lee.md", markdown(said, shown, lost))
    page = render("lee.html.j2", about=said, tables=shown, failed=lost)
    write_text(directory / "lee.html", page)


def about(tables: LeeTables) -> str:
    """What the tables stand on, in a sentence or two."""
    people = tables.people
    shown = f"; {counted(len(tables.examples), 'example')} from the other half" * bool(
        tables.examples
    )
    return (
        f"{counted(people.rows_used, 'decided pair')} of {counted(tables.prompts, 'prompt')}, of "
        f"the half that is judged{shown}. Constitution {tables.constitution.id}, seed "
        f"{tables.seed}. Every pair is asked in both orders and the two are averaged; a tie, and a "
        "pair without a label, counts half. Square brackets hold 95 % intervals over prompts."
    )


def failed(tables: LeeTables) -> list[str]:
    """A line for each way in which judges were not asked."""
    judges: dict[tuple[str, str], list[str]] = {}
    for row in (*tables.rows, *tables.consistency):
        if row.failed:
            judges.setdefault((words(row), row.failed), []).append(row.judge)
    return [f"{way}: {', '.join(of)}: {why}" for (way, why), of in judges.items()]


def tables_of(tables: LeeTables) -> list[Table]:
    """The tables as texts."""
    beside = (share(tables.longer_wins, 0.5), _ceiling(tables))
    ways = list(dict.fromkeys((row.way, row.shots) for row in tables.rows))
    of = {(row.judge, row.way, row.shots): row for row in tables.rows}

    def matrix(cell: Callable[[LeeRow], str], *more: str) -> list[tuple[str, ...]]:
        return [
            (words(rows[0]), *(NOT_ASKED if r.failed else cell(r) for r in rows), *more)
            for rows in ([of[judge, *way] for judge in tables.judges] for way in ways)
        ]

    without = [judge for judge in tables.judges if of[judge, *ways[0]].failed]
    best = max((row for row in tables.rows if row.figures), key=_value, default=None)
    found = [
        Table(
            "Alignment by style of prompt",
            ("prompt", *tables.judges, LONGER, PEOPLE),
            matrix(lambda r: _alignment(r) + _unlabelled(r), *beside),
            "Share of pairs decided as people do."
            + (
                f" The highest is {best.judge}, {words(best)}: the best of so many looks better "
                "than it is."
                if best and len(ways) * len(tables.judges) > 1
                else ""
            ),
        ),
        Table(
            f"Difference from {STYLES[ways[0][0]]}, {ways[0][1]}-shot",
            ("prompt", *tables.judges),
            matrix(_difference)[1:],
            "In percentage points, on the same pairs; above 0 the way is better aligned than the "
            "judge's first one."
            + f" No difference is given of {', '.join(without)}, which has no such row."
            * bool(without),
        ),
        Table(
            "Alignment by judge",
            ("judge", "prompt", *FIGURES),
            [(r.judge, words(r), *_figures(r, beside)) for r in tables.rows],
            "“Of the labelled” is the alignment on the pairs that got a label.",
        ),
        Table(
            "Position bias",
            ("prompt", *tables.judges),
            matrix(_position),
            "Share of pairs on which the judge prefers the same position after the two responses "
            "are swapped, and how often it names the one shown first.",
        ),
    ]
    if tables.consistency:
        found.append(
            Table(
                "Self-consistency",
                ("judge", "verdict", *FIGURES, "difference"),
                [
                    (r.judge, words(r), *_figures(r, beside), _difference(r))
                    for r in tables.consistency
                ],
                "A rationale and its verdict in one text. The difference from the single verdict "
                "is in percentage points.",
            )
        )
    found.append(
        Table(
            "What a label costs",
            ("judge", "prompt", "calls", "prompt tokens", "completion tokens", "US dollars"),
            [(r.judge, words(r), *_cost(r.cost)) for r in (*tables.rows, *tables.consistency)],
            "A label is a pair, in both orders, under every principle that applies.",
        )
    )
    return [table for table in found if table.rows]


def _value(row: LeeRow) -> float:
    return row.figures.agreement.value if row.figures and row.figures.agreement else 0.0


def _alignment(row: LeeRow) -> str:
    return _share(row.figures.agreement if row.figures else None)


def _unlabelled(row: LeeRow) -> str:
    lost = 1 - row.figures.coverage.value if row.figures else 0.0
    return f"; {percent(lost)} no label" if lost else ""


def _share(interval: Interval | None) -> str:
    return "no data" if interval is None else share(interval, 0.5)


def _difference(row: LeeRow) -> str:
    if row.difference is None:
        return ""
    of = row.difference
    hundred = {k: None if v is None else 100 * v for k, v in _ends(of).items()}
    return amount(of.model_copy(update=hundred))


def _ends(interval: Interval) -> dict[str, float | None]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _figures(row: LeeRow, beside: tuple[str, ...]) -> tuple[str, ...]:
    if row.figures is None:
        return (NOT_ASKED, *beside, "", "")
    lost = percent(1 - row.figures.coverage.value)
    return (_alignment(row), *beside, _share(row.figures.accuracy), lost)


def _position(row: LeeRow) -> str:
    first = row.figures.first_position_rate if row.figures else None
    named = "" if first is None else f"; first {percent(first.value)}"
    return f"{_share(row.same_position)}{named}"


def _cost(cost: LabelCost | None) -> tuple[str, ...]:
    if cost is None:
        return (NOT_ASKED, "", "", "")
    usd = "not known" if cost.usd is None else f"{cost.usd:.6f}"
    return (number(cost.calls), number(cost.prompt_tokens), number(cost.completion_tokens), usd)


def _ceiling(tables: LeeTables) -> str:
    ceiling = tables.ceiling
    return "not known" if ceiling is None else f"{percent(ceiling.value)} ({ceiling.source})"


def markdown(about: str, tables: Sequence[Table], failed: Sequence[str]) -> str:
    """The page as Markdown."""
    parts = ["# Labeler alignment", about]
    for n, table in enumerate(tables, 1):
        parts += [f"## Table {n}: {table.title}", "\n".join(lines_of(table)), table.note]
    if failed:
        parts += [f"## {NOT_ASKED.capitalize()}", "\n".join(f"- {line}" for line in failed)]
    return "\n\n".join(parts) + "\n"


def lines_of(table: Table) -> list[str]:
    """The table in Markdown."""
    rows = (table.columns, ["---"] * len(table.columns), *table.rows)
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def _csv(tables: LeeTables) -> str:
    out = io.StringIO()
    lines = [
        {**_named(row), **_numbers(row, tables)} for row in (*tables.rows, *tables.consistency)
    ]
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _named(row: LeeRow) -> dict[str, str | int]:
    return {"judge": row.judge, "way": row.way, "shots": row.shots, "samples": row.samples}


def _numbers(row: LeeRow, tables: LeeTables) -> dict[str, str | float | None]:
    """None is an empty cell."""
    of, cost, ceiling = row.figures, row.cost, tables.ceiling
    intervals = {
        "alignment": of.agreement if of else None,
        "difference": row.difference,
        "labelled": of.accuracy if of else None,
        "longer_wins": tables.longer_wins,
        "same_position": row.same_position,
        "first_position": of.first_position_rate if of else None,
        "coverage": of.coverage if of else None,
    }
    found: dict[str, str | float | None] = {}
    for name, interval in intervals.items():
        ends = _ends(interval) if interval else dict.fromkeys(("value", "low", "high"))
        found |= {name: ends["value"], f"{name}_low": ends["low"], f"{name}_high": ends["high"]}
    costs = cost.model_dump() if cost else dict.fromkeys(LabelCost.model_fields)
    return {
        **found,
        "people": ceiling.value if ceiling else None,
        "pairs": tables.people.rows_used,
        "prompts": tables.prompts,
        **costs,
        "failed": row.failed,
    }

"""Writes a study: as JSON for programs, as a page and as Markdown for people, and each plot with
its numbers."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from rlaif.evaluate.page import render
from rlaif.evaluate.study.document import Section, Table
from rlaif.evaluate.study.plots import Format, Plot, plots
from rlaif.evaluate.study.records import StudyReport
from rlaif.evaluate.study.sections import sections
from rlaif.evaluate.study.summary import summary
from rlaif.evaluate.wording import percent
from rlaif.files import write_bytes, write_text

EXAMPLES = "Disagreements of which the judge was surest"
SHOWN = 600
"""Characters of a response in an example of the Markdown."""


def write_study(report: StudyReport, folder: Path) -> None:
    """Writes study.json, study.html, study.md, plots/*.svg, plots/*.pdf and csv/*.csv; the same
    report gives the same bytes. Raises SetupError where a file cannot be written."""
    data = json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / "study.json", data + "\n")
    found = list(plots(report))
    for plot in found:
        for suffix in get_args(Format):
            write_bytes(folder / "plots" / f"{plot.name}.{suffix}", plot.file(suffix))
        write_text(folder / "csv" / f"{plot.name}.csv", _csv(plot))
    write_text(folder / "study.html", page(report, found))
    write_text(folder / "study.md", markdown(report, found))


def page(report: StudyReport, found: Sequence[Plot]) -> str:
    """One HTML page: no script, nothing loaded, every text escaped."""
    return render(
        "study.html.j2",
        report=report,
        summary=summary(report),
        sections=list(sections(report)),
        examples=EXAMPLES,
        plots={plot.name: plot.inline() for plot in found},
    )


def markdown(report: StudyReport, found: Sequence[Plot]) -> str:
    """For GitHub; plots are linked to as files beside it."""
    return "\n".join(_lines(report, {plot.name: plot for plot in found})) + "\n"


def _lines(report: StudyReport, plots: dict[str, Plot]) -> Iterator[str]:
    yield f"# {_text(report.name)}: human labels against AI labels"
    if report.description:
        yield f"\n{_text(report.description)}"
    yield ""
    short = summary(report)
    for kind, said in (("CAUTION", short.alarms), ("WARNING", short.warnings)):
        if said:
            yield f"> [!{kind}]"
            yield from (f"> - {_text(sentence)}" for sentence in said)
            yield ""
    yield from (f"- {_text(sentence)}" for sentence in short.sentences)
    for section in sections(report):
        yield from _section(section, plots)


def _section(section: Section, plots: dict[str, Plot]) -> Iterator[str]:
    yield f"\n## {_text(section.title)}"
    if section.sentences:
        yield ""
    yield from (f"- {_text(sentence)}" for sentence in section.sentences)
    for name in section.plots:
        yield f"\n![{_text(plots[name].title)}](plots/{name}.svg)"
        yield f"\n[Numbers](csv/{name}.csv) · [PDF](plots/{name}.pdf)"
    for table in section.tables:
        yield from _table(table)
    if section.examples:
        yield f"\n### {EXAMPLES}\n"
    for example in section.examples:
        sure = percent(example.confidence)
        yield f"{_text(example.prompt_id)}: the judge was {sure} sure of the answer it chose.\n"
        yield from _quoted("Asked", example.prompt)
        yield from _quoted("Chosen by people", example.chosen)
        yield from _quoted("Chosen by the judge", example.rejected)
    if section.note:
        yield f"\n{_text(section.note)}"


def _quoted(title: str, text: str) -> Iterator[str]:
    cut = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    # Four spaces and no fence: no text can close it.
    yield f"{title}:\n"
    yield from (f"    {line}" for line in cut.splitlines() or [""])
    yield ""


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield f"\n### {_text(table.title)}"
    yield ""
    yield f"| {' | '.join(map(_text, table.head))} |"
    yield f"|{'|'.join(['---', *['---:'] * (len(table.head) - 1)])}|"
    yield from (f"| {' | '.join(map(_text, row))} |" for row in table.rows)
    if table.note:
        yield f"\n{_text(table.note)}"


def _text(text: str) -> str:
    """Markdown's own signs escaped, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _csv(plot: Plot) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(plot.head)
    writer.writerows(plot.rows)
    return file.getvalue()

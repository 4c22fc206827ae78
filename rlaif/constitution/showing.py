"""A constitution for people: as text in the terminal, and a new file to start from."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from pathlib import Path

from rlaif.constitution.file import SUFFIX, ConstitutionFile, file_id, json_schema
from rlaif.constitution.model import BARE, EVERY, WORDINGS, Principle
from rlaif.constitution.writing import starter
from rlaif.errors import SetupError
from rlaif.files import write_new

SCHEMA = "constitution.schema.json"
WIDTH = 96


def shown(file: ConstitutionFile) -> str:
    """Every principle with all its wordings, as the judge gets them."""
    found = file.constitution
    tests = Counter(case.principle for case in found.tests)
    head = [
        f"{found.id} {found.version}  ({file.path})",
        *textwrap.wrap(found.description, WIDTH),
        f"sha256 {found.hash}",
        f"{_counted(len(found.principles), 'principle')}, {_counted(len(found.tests), 'test')}"
        + (f", {tests[EVERY]} of them of the whole" if tests[EVERY] else ""),
    ]
    total = sum(p.weight for p in found.principles)
    return "\n".join(
        [*head, *("\n" + _principle(p, p.weight / total, tests[p.id]) for p in found.principles)]
    )


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _principle(principle: Principle, share: float, tests: int) -> str:
    facts = [f"weight {principle.weight:g} ({share:.0%})"]
    if principle.tier > 1:
        facts.append(f"tier {principle.tier}")
    facts.append(_counted(tests, "test"))
    if principle.examples:
        facts.append(_counted(len(principle.examples), "example"))
    if principle.tags:
        facts.append(f"tags {', '.join(principle.tags)}")
    lines = [f"{principle.id}: {', '.join(facts)}"]
    if principle.applies_when:
        lines.append(f"  applies when {principle.applies_when}")
    said = _worded(principle)
    fields = [("text", principle.text), *((w, said.__dict__[w]) for w in WORDINGS)]
    for name, text in fields:
        lines += textwrap.wrap(
            f"{name}: {text}", WIDTH, initial_indent="  ", subsequent_indent="      "
        )
    return "\n".join(lines)


def _worded(principle: Principle) -> Principle:
    """As for a prompt without tags and metadata, where the wordings can do without."""
    try:
        return principle.worded(BARE)
    except SetupError:
        return principle


def write_starter(path: Path) -> list[Path]:
    """Writes a constitution to start from, and beside it the schema by which editors complete and
    check it. Raises SetupError where the file is there already."""
    if path.suffix != SUFFIX:
        raise SetupError(
            f"is not called *{SUFFIX}", file=path, fix=f"write {path.with_suffix(SUFFIX)}"
        )
    return write_with_schema(path, starter(file_id(path)))


def write_with_schema(path: Path, text: str) -> list[Path]:
    """Writes a constitution, and beside it the schema where there is none. Raises SetupError where
    the file is there already."""
    write_new(path, text)
    schema = path.parent / SCHEMA
    if schema.is_file():
        return [path]
    write_new(schema, json.dumps(json_schema(), ensure_ascii=False, indent=2) + "\n")
    return [path, schema]

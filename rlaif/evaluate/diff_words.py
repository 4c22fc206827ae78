"""A diff of two constitutions, and of a run's labels under them, in lines for a terminal."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from rlaif.constitution import WORDINGS
from rlaif.evaluate.constitution_diff import ConstitutionDiff, FieldChange
from rlaif.evaluate.label_diff import LabelDiff, ToAsk
from rlaif.evaluate.wording import counted, number, percent, reasons

CUT = 300
"""Characters of a text."""


def show(found: ConstitutionDiff, labels: LabelDiff | None = None, pairs: int = 5) -> list[str]:
    """The lines for a terminal: what differs, and with `labels` what it does to a run, with so many
    of the pairs whose label changes."""
    if labels is None:
        return [*_constitutions(found), *_tests(found)]
    counts = f"tests: {len(found.tests_removed)} removed, {len(found.tests_added)} added"
    told = [counts] if found.tests_removed or found.tests_added else []
    return [*_constitutions(found), *told, "", *_labels(labels, pairs)]


def _constitutions(found: ConstitutionDiff) -> Iterator[str]:
    named = (f"{of.id} {of.version} ({of.hash[:12]})" for of in (found.before, found.after))
    yield " → ".join(named)
    if found.same:
        yield "the same principles and tests"
    for p in found.removed:
        yield f"- {p.id}: {_cut(p.text)}"
    for p in found.added:
        yield f"+ {p.id}: {_cut(p.text)}"
    for change in found.changed:
        was = "" if change.was == change.id else f" (was {change.was})"
        yield f"~ {change.id}{was}{'' if change.asked_anew else ': its votes stay'}"
        for field in change.fields:
            yield f"    {field.field}: {_field(field)}"
    if found.reordered:
        yield "~ the principles stand in another order"


def _tests(found: ConstitutionDiff) -> Iterator[str]:
    for sign, cases in (("-", found.tests_removed), ("+", found.tests_added)):
        for case in cases:
            yield f"{sign} test of {case.principle}: {case.title}"


def _field(change: FieldChange) -> str:
    if change.field not in ("text", *WORDINGS):
        return f"{change.before or 'none'} → {change.after or 'none'}"
    return words_apart(change.before, change.after)


def words_apart(before: str, after: str) -> str:
    """One text that shows two: what went as `[-gone-]`, what came as `{+new+}`, by words."""
    said, says = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    parts = []
    matcher = difflib.SequenceMatcher(None, said, says, autojunk=False)
    for kind, i, j, k, m in matcher.get_opcodes():
        gone, new = "".join(said[i:j]), "".join(says[k:m])
        if kind == "equal":
            parts.append(gone)
            continue
        parts += [f"[-{gone}-]"] * bool(gone) + [f"{{+{new}+}}"] * bool(new)
    return "".join(parts)


def _labels(found: LabelDiff, pairs: int) -> Iterator[str]:
    total = found.comparisons
    kinds = reasons(found.changes).replace("->", " → ")
    moved = len(found.changed)
    yield (
        f"Of {counted(total, 'label')} {moved:,} change{'s' if moved == 1 else ''} "
        f"({percent(moved / total, 1)}{f'; {kinds}' if kinds else ''}), {found.same:,} "
        f"stay{'s' if found.same == 1 else ''}, {len(found.open):,} "
        f"{'is' if len(found.open) == 1 else 'are'} open for want of votes."
    )
    yield (
        f"The run has votes under {found.known} of {counted(found.principles, 'principle')}. "
        f"{_asked(found.to_ask)}"
    )
    if found.to_ask.judgments_at_most:
        yield "What is settled is so if every answer comes."
    for change in found.changed[:pairs]:
        yield ""
        yield (
            f"{change.comparison_id}: {change.before} {_p(change.p_before)} → "
            f"{change.after} {_p(change.p_after)}"
        )
        yield f"  prompt: {_cut(change.prompt[-1].content)}"
        yield f"  A: {_cut(change.first)}"
        yield f"  B: {_cut(change.second)}"
    if moved > pairs:
        yield ""
        yield f"… and {moved - pairs:,} more"


def _asked(to_ask: ToAsk) -> str:
    if not to_ask.judgments_at_most:
        return "Nothing has to be asked."
    most = to_ask.judgments_at_most
    up_to = f" to {most:,}" if most > to_ask.judgments else ""
    said = f"To ask: {to_ask.judgments:,}{up_to} judgments"
    if to_ask.calls is None or to_ask.prompt_tokens is None or to_ask.completion_tokens is None:
        return f"{said}; what they cost is not known."
    usd = "price unknown" if to_ask.usd is None else f"{number(to_ask.usd)} USD"
    return (
        f"{said}, about {to_ask.calls:,.0f} calls, {to_ask.prompt_tokens:,.0f} prompt and "
        f"{to_ask.completion_tokens:,.0f} completion tokens by what the run's took, {usd}."
    )


def _p(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return "(no vote)"
    low, high = (number(end) for end in ends)
    return low if low == high else f"{low} to {high}"


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= CUT else f"{words[:CUT]}…"

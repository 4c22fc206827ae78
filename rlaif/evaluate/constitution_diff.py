"""What differs between two constitutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rlaif.constitution import WORDINGS, Case, Constitution, Principle, facts
from rlaif.constitution.model import derived
from rlaif.evaluate.schema import ConstitutionFacts
from rlaif.files import canonical
from rlaif.types import Record

JUDGED = ("text", "comparison", "critique", "examples")
FIELDS = ("weight", "tier", "applies_when", "tags", "text", *WORDINGS, "examples")


class FieldChange(Record):
    field: str
    before: str
    after: str


class PrincipleChange(Record):
    """A principle that both have, and not alike."""

    id: str
    was: str
    """Its id before."""
    fields: tuple[FieldChange, ...]
    """Wordings that are derived from the text change with it and are left out."""
    asked_anew: bool
    """Whether a judge reads something else than before."""


class ConstitutionDiff(Record):
    """From one constitution to another."""

    before: ConstitutionFacts
    after: ConstitutionFacts
    added: tuple[Principle, ...]
    removed: tuple[Principle, ...]
    changed: tuple[PrincipleChange, ...]
    reordered: bool
    """Whether the principles that both have stand in another order."""
    tests_added: tuple[Case, ...]
    tests_removed: tuple[Case, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs that this tells of."""
        return not (
            self.added
            or self.removed
            or self.changed
            or self.reordered
            or self.tests_added
            or self.tests_removed
        )


def diff(before: Constitution, after: Constitution) -> ConstitutionDiff:
    """What differs. Principles are matched by id, then by what a judge reads of them."""
    was = _matched(before.principles, after.principles)
    old = {p.id: p for p in before.principles}
    kept = [was[p.id] for p in after.principles if p.id in was]
    return ConstitutionDiff(
        before=ConstitutionFacts.model_validate(facts(before)),
        after=ConstitutionFacts.model_validate(facts(after)),
        added=tuple(p for p in after.principles if p.id not in was),
        removed=tuple(p for p in before.principles if p.id not in was.values()),
        changed=tuple(
            change
            for p in after.principles
            if p.id in was and (change := _change(old[was[p.id]], p)) is not None
        ),
        reordered=kept != [p.id for p in before.principles if p.id in set(kept)],
        tests_added=_cases(after, before),
        tests_removed=_cases(before, after),
    )


def _matched(before: Sequence[Principle], after: Sequence[Principle]) -> dict[str, str]:
    """Id after -> id before."""
    known = {p.id for p in before}
    found = {p.id: p.id for p in after if p.id in known}
    free = {judged_by(p): p.id for p in reversed(before) if p.id not in found}
    for p in after:
        if p.id not in found and (old := free.pop(judged_by(p), None)) is not None:
            found[p.id] = old
    return found


def judged_by(principle: Principle) -> str:
    """What a judge reads of a principle: where this is the same, so is its vote."""
    return canonical(principle.model_dump(mode="json", include=set(JUDGED)))


def _change(before: Principle, after: Principle) -> PrincipleChange | None:
    said, says = (p.model_dump(mode="json") for p in (before, after))
    fields = tuple(
        FieldChange(field=name, before=_plain(said[name]), after=_plain(says[name]))
        for name in FIELDS
        if said[name] != says[name]
        and not (name in WORDINGS and _is_derived(before, name) and _is_derived(after, name))
    )
    if before.id == after.id and not fields:
        return None
    return PrincipleChange(
        id=after.id,
        was=before.id,
        fields=fields,
        asked_anew=judged_by(before) != judged_by(after),
    )


def _is_derived(principle: Principle, wording: str) -> bool:
    said: str = principle.model_dump(include={wording})[wording]
    return said == derived(principle.text)[wording]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else canonical(value)


def _cases(of: Constitution, beside: Constitution) -> tuple[Case, ...]:
    left = Counter(canonical(case.model_dump(mode="json")) for case in beside.tests)
    found = []
    for case in of.tests:
        key = canonical(case.model_dump(mode="json"))
        if left[key]:
            left[key] -= 1
        else:
            found.append(case)
    return tuple(found)

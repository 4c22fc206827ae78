"""Constitution files: what stands in one, and how one is made of several."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from rlaif.constitution.model import (
    Case,
    Constitution,
    Principle,
    PrincipleFields,
    Slug,
    Text,
)
from rlaif.constitution.wording import WordingError
from rlaif.errors import SetupError
from rlaif.files import find, packaged
from rlaif.types import Prompt, Record
from rlaif.yamlfile import Location, YamlFile, dotted, mistakes, validate

SUFFIX = ".yaml"
ID_WORDS = 5


class _ShortForm(Record):
    """A section of which the most important field may stand alone, as text."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "minLength": 1}, handler(core_schema)]}


class PrincipleEntry(PrincipleFields, _ShortForm):
    """A principle as a file has it: a sentence, or these fields. One with the id of an extended
    constitution's principle changes just the fields that it gives."""

    id: Slug | None = None
    """Its name in votes and reports; made of the text's first words where it is left out."""
    text: Text | None = None
    """The rule itself, in a sentence or two."""
    tests: tuple[Case, ...] = ()
    """What the principle means: responses and which should win."""

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class Include(_ShortForm):
    """Principles of another file: its name, or these fields."""

    file: Text
    """Path, or the name of a constitution of ours."""
    only: tuple[Slug, ...] = ()
    """Ids of the principles to take; empty: all."""

    @model_validator(mode="before")
    @classmethod
    def _file_alone(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value


class Layout(Record):
    """A constitution file. The smallest is a list of sentences."""

    id: Slug | None = None
    """What the constitution is called; the file's name where it is left out."""
    version: Text = "0"
    """A name for people; the content hash is what tells versions apart."""
    description: str = ""
    extends: Text | None = None
    """Another constitution (path, or name of ours) whose principles and tests come first; own
    principles with the same id change them."""
    drop: tuple[Slug, ...] = ()
    """Principles of the extended constitution to leave out."""
    include: tuple[Include, ...] = ()
    """Other files whose principles are added as they are; an id that is taken is an error."""
    principles: tuple[PrincipleEntry, ...] = ()
    tests: tuple[Case, ...] = ()
    """Tests that name their principle, or `*` for the whole constitution."""


class Place(NamedTuple):
    """Where something stands."""

    file: Path
    line: int | None


@dataclass(frozen=True)
class ConstitutionFile:
    """A constitution, and where each part of it stands."""

    path: Path
    constitution: Constitution
    principle_places: Mapping[str, Mapping[str, Place]]
    """Principle id -> field -> place; the field `""` is the principle itself."""
    test_places: tuple[Place, ...]
    """In the order of the constitution's tests."""

    def place(self, principle: str, field: str = "") -> Place:
        """Where a principle's field stands, or the principle where the file does not give it."""
        places = self.principle_places[principle]
        return places.get(field, places[""])

    def check_wordings(self, prompts: Iterable[Prompt]) -> None:
        """Renders every wording for every prompt that its principle applies to, before anything is
        asked. Raises SetupError with file, line, principle and prompt."""
        for principle in self.constitution.principles:
            for prompt in prompts if principle.asks_the_prompt else ():
                if not principle.applies(prompt):
                    continue
                try:
                    principle.worded(prompt)
                except SetupError as e:
                    at = self.place(principle.id, e.field.rpartition(".")[2])
                    raise SetupError(
                        e.problem, file=at.file, line=at.line, field=e.field, fix=e.fix
                    ) from e


def load_constitution(name: str) -> tuple[Constitution, Path]:
    """By path, or by name from the working directory's `constitutions/`, then our own.

    Raises SetupError with file, line, field and fix.
    """
    found = read_constitution(name)
    return found.constitution, found.path


def read_constitution(name: str) -> ConstitutionFile:
    """As `load_constitution`, with the place of each part."""
    path = find("constitutions", name, SUFFIX)
    composed = _compose(path, ())
    fields = [Principle.model_validate(entry.fields) for entry in composed.entries.values()]
    layout, source = composed.layout, composed.source
    value = {
        "id": layout.id or file_id(path),
        "version": layout.version,
        "description": layout.description,
        "principles": fields,
        "tests": [case for case, _ in composed.tests],
    }
    if not fields:
        raise SetupError(
            "has no principles",
            file=path,
            line=1,
            fix="write one sentence a line, each after a dash",
        )
    return ConstitutionFile(
        path,
        validate(Constitution, value, source),
        {i: entry.places for i, entry in composed.entries.items()},
        tuple(place for _, place in composed.tests),
    )


@dataclass
class _Entry:
    fields: dict[str, Any]
    places: dict[str, Place]


@dataclass
class _Composed:
    layout: Layout
    source: YamlFile
    entries: dict[str, _Entry]
    tests: list[tuple[Case, Place]]


def _compose(path: Path, chain: tuple[Path, ...]) -> _Composed:
    source = YamlFile(path, list_is="principles")
    layout = _layout(source)
    entries: dict[str, _Entry] = {}
    tests: list[tuple[Case, Place]] = []
    open_files = (*chain, path.resolve())
    if layout.extends is not None:
        base = _compose(_other(layout.extends, source, ("extends",), open_files), open_files)
        entries, tests = base.entries, base.tests
    elif layout.drop:
        raise _mistake(source, ("drop",), "there is nothing to drop from", "name it in `extends`")
    for i, dropped in enumerate(layout.drop):
        if dropped not in entries:
            raise _unknown(source, ("drop", i), dropped, entries)
        del entries[dropped]
    tests = [(case, place) for case, place in tests if case.principle not in layout.drop]
    inherited = set(entries)
    for i, include in enumerate(layout.include):
        at: Location = ("include", i)
        other = _compose(_other(include.file, source, at, open_files), open_files)
        for j, wanted in enumerate(include.only):
            if wanted not in other.entries:
                raise _unknown(source, (*at, "only", j), wanted, other.entries)
        for principle_id, entry in other.entries.items():
            if include.only and principle_id not in include.only:
                continue
            _add(entries, principle_id, entry, source, at)
        tests += [
            (case, place)
            for case, place in other.tests
            if not include.only or case.principle in include.only
        ]
    given: dict[str, int | None] = {}
    """Ids that own principles have, and where."""
    for i, own in enumerate(layout.principles):
        at = ("principles", i)
        principle_id = own.id or new_id(own.text or "", entries)
        if principle_id in given:
            raise _mistake(
                source,
                at,
                f"the id {principle_id!r} stands twice",
                f"the first is on line {given[principle_id]}; keep one",
            )
        given[principle_id] = source.line(at)
        places = {name: _place(source, (*at, name)) for name in own.model_fields_set}
        fields = {
            name: value
            for name, value in own
            if name in own.model_fields_set and name != "tests" and value is not None
        }
        entry = _Entry({**fields, "id": principle_id}, {"": _place(source, at), **places})
        if principle_id in inherited:
            base_entry = entries[principle_id]
            entry = _Entry(
                {**base_entry.fields, **entry.fields}, {**base_entry.places, **entry.places}
            )
            inherited.remove(principle_id)
            entries[principle_id] = entry
        else:
            if own.text is None:
                near = difflib.get_close_matches(principle_id, inherited, n=1)
                raise _mistake(
                    source,
                    (*at, "text"),
                    "is missing",
                    f"did you mean to change {near[0]!r}?" if near else "add this field",
                )
            _add(entries, principle_id, entry, source, at)
        for j, case in enumerate(own.tests):
            if case.principle not in ("", principle_id):
                raise _mistake(
                    source,
                    (*at, "tests", j, "principle"),
                    f"names {case.principle!r} inside the principle {principle_id!r}",
                    "leave it out, or move the test to the file's `tests`",
                )
            of_principle = case.model_copy(update={"principle": principle_id})
            tests.append((of_principle, _place(source, (*at, "tests", j))))
    tests += [(case, _place(source, ("tests", i))) for i, case in enumerate(layout.tests)]
    return _Composed(layout, source, entries, tests)


def _layout(source: YamlFile) -> Layout:
    """Raises SetupError; for a wording also with its principle and its own line."""
    try:
        return validate(Layout, source.value, source)
    except SetupError:
        # The first that `validate` names need not be the first in the file.
        raise _mistakes(source)[0] from None


def _mistakes(source: YamlFile) -> list[SetupError]:
    """All that is wrong with a file's fields, by line."""
    found = []
    for at, error, said in mistakes(Layout, source.value, source):
        if isinstance(said, WordingError):
            line = source.line_in_text(at, said.line, said.sought)
            vague = line is None and said.line > 1
            within = f" (line {said.line} of the wording)" if vague else ""
            found.append(
                SetupError(
                    f"{said}{within}",
                    file=error.file,
                    line=line or error.line,
                    field=_named(error.field, source),
                )
            )
        else:
            found.append(error)
    return sorted(found, key=lambda error: error.line or 0)


def mistakes_of(name: str) -> list[SetupError]:
    """All that keeps a constitution, by path or name, from being read; of files that it extends or
    includes the first mistake. Raises SetupError where there is no such file."""
    path = find("constitutions", name, SUFFIX)
    try:
        read_constitution(name)
    except SetupError as e:
        try:
            return _mistakes(YamlFile(path, list_is="principles")) or [e]
        except SetupError:
            return [e]
    return []


def _named(field: str, source: YamlFile) -> str:
    """`principles[kindness].comparison` for `principles[2].comparison`."""
    match = re.match(r"principles\[(\d+)\]", field)
    if not match:
        return field
    entry = source.value["principles"][int(match[1])]
    if not isinstance(entry, dict):
        return field
    name = entry.get("id", new_id(str(entry.get("text", "")), {}))
    return f"principles[{name}]{field[match.end() :]}"


def _add(
    entries: dict[str, _Entry], principle_id: str, entry: _Entry, source: YamlFile, at: Location
) -> None:
    if principle_id in entries:
        first = entries[principle_id].places[""]
        raise _mistake(
            source,
            at,
            f"the id {principle_id!r} is already taken at {first.file}:{first.line}",
            "give one of them another id",
        )
    entries[principle_id] = entry


def _other(name: str, source: YamlFile, at: Location, chain: tuple[Path, ...]) -> Path:
    """The file that `extends` or `include` means: beside this one first. A file that names itself
    means ours of that name."""
    own = source.path.resolve()
    stem = name.removesuffix(SUFFIX)
    candidates = [
        source.path.parent / f"{stem}{SUFFIX}",
        packaged("constitutions") / f"{stem}{SUFFIX}",
    ]
    try:
        candidates.insert(1, find("constitutions", name, SUFFIX))
    except SetupError as e:
        if not any(path.is_file() for path in candidates):
            raise _mistake(source, at, e.problem, e.fix) from e
    for path in candidates:
        if path.is_file() and path.resolve() != own:
            if path.resolve() in chain:
                raise _mistake(source, at, f"{name!r} leads back to this file", "break the circle")
            return path
    raise _mistake(source, at, f"{name!r} is this file itself", "name another")


def _place(source: YamlFile, at: Location) -> Place:
    return Place(source.path, source.line(at))


def _mistake(source: YamlFile, at: Location, problem: str, fix: str) -> SetupError:
    return SetupError(problem, file=source.path, line=source.line(at), field=dotted(at), fix=fix)


def _unknown(source: YamlFile, at: Location, name: str, known: Mapping[str, Any]) -> SetupError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    return _mistake(source, at, f"there is no principle {name!r}", fix)


def file_id(path: Path) -> str:
    """What a constitution is called whose file does not say."""
    return slug(path.name.removesuffix(SUFFIX)) or "constitution"


def new_id(text: str, taken: Mapping[str, Any]) -> str:
    """The first words of a sentence, as an id that is not taken."""
    name = "-".join(slug(text).split("-")[:ID_WORDS]) or "principle"
    return next(n for n in _numbered(name) if n not in taken)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def slug(text: str) -> str:
    """A text as part of an id or of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")


def json_schema() -> dict[str, Any]:
    """JSON schema of a constitution file, for editors."""
    schema = Layout.model_json_schema()
    listed = schema["properties"]["principles"]
    whole = {key: value for key, value in schema.items() if key not in ("$defs", "description")}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Constitution",
        "description": schema["description"],
        "anyOf": [whole, {"type": "array", "items": listed["items"], "minItems": 1}],
        "$defs": schema["$defs"],
    }

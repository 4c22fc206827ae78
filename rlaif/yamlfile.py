"""YAML files into typed records, with the line of every mistake."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlaif.errors import SetupError

M = TypeVar("M", bound=BaseModel)
Location = tuple[int | str, ...]
MOST_PARTS = 200_000
"""Values in a file; a few lines of aliases of aliases can make billions."""


class YamlFile:
    """The plain value of a YAML file and the line on which each part of it stands."""

    def __init__(self, path: Path, text: str | None = None, *, list_is: str | None = None) -> None:
        """`list_is`: a file that is a list is read as a mapping with the list in this field.

        Raises SetupError.
        """
        self.path = path
        self.lines: dict[Location, int] = {}
        self._scalars: dict[Location, yaml.ScalarNode] = {}
        self._source = content = _read(path) if text is None else text
        try:
            node = yaml.compose(content, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as e:
            before = content[: e.position]
            column = len(before) - before.rfind("\n")
            raise SetupError(
                f"not valid YAML: the character #x{ord(content[e.position]):04x}, column {column}",
                file=path,
                line=before.count("\n") + 1,
                fix="take it out",
            ) from e
        except RecursionError as e:
            raise SetupError("is nested too deeply", file=path, fix="is it a constitution?") from e
        except yaml.MarkedYAMLError as e:
            mark = e.problem_mark or e.context_mark
            raise SetupError(
                f"not valid YAML: {e.problem or e.context}"
                + (f", column {mark.column + 1}" if mark else ""),
                file=path,
                line=mark.line + 1 if mark else None,
                fix="check quotes and indentation there",
            ) from e
        except yaml.YAMLError as e:
            raise SetupError(f"not valid YAML: {e}", file=path) from e
        self._open: list[yaml.Node] = []
        self._parts = 0
        self.value: dict[str, Any]
        if list_is is not None and isinstance(node, yaml.SequenceNode):
            self.lines[()] = node.start_mark.line + 1
            self.value = {list_is: self._build(node, (list_is,))}
            return
        if not isinstance(node, yaml.MappingNode):
            raise SetupError(
                "is empty or not a mapping",
                file=path,
                line=1,
                fix="the file must hold `field: value` lines"
                + (", or a list" if list_is is not None else ""),
            )
        self.value = self._build(node, ())

    def _build(self, node: yaml.Node, at: Location) -> Any:
        line = node.start_mark.line + 1
        if node in self._open:
            raise SetupError(
                "holds itself through an alias", file=self.path, line=line, field=dotted(at)
            )
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise SetupError(
                f"holds more than {MOST_PARTS:,} values",
                file=self.path,
                line=line,
                fix="is it aliases of aliases?",
            )
        self.lines[at] = line
        self._open.append(node)
        try:
            return self._plain(node, at)
        except (yaml.constructor.ConstructorError, ValueError) as e:
            problem = e.problem if isinstance(e, yaml.constructor.ConstructorError) else e
            raise SetupError(
                f"not a plain value: {problem}",
                file=self.path,
                line=line,
                field=dotted(at),
                fix="put it in quotes if it is text",
            ) from e
        finally:
            self._open.pop()

    def _plain(self, node: yaml.Node, at: Location) -> Any:
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value)
                line = key_node.start_mark.line + 1
                if key in mapping:
                    raise SetupError(
                        "stands twice",
                        file=self.path,
                        line=line,
                        field=dotted((*at, key)),
                        fix=f"the first is on line {self.lines[(*at, key)]}; keep one",
                    )
                mapping[key] = self._build(value_node, (*at, key))
                self.lines[(*at, key)] = line
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*at, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            self._scalars[at] = node
        value = yaml.SafeLoader("").construct_object(node, deep=True)
        if isinstance(value, str):
            value.encode()  # an escape may hold half a character
        return value

    def line_in_text(self, at: Location, line: int, sought: str) -> int | None:
        """Where the `line`-th line of the text at `at` stands, blank ones at its start not counted:
        for sure in a `|` block. Else, as YAML folds the lines of a text, the first one that holds
        `sought`. None where that is not known."""
        node = self._scalars.get(at)
        if node is None:
            return None
        first = node.start_mark.line
        if node.style == "|":
            blank = len(node.value) - len(node.value.lstrip())
            return int(first + 1 + node.value[:blank].count("\n") + line)
        rows = self._source.split("\n")[first : node.end_mark.line + 1]
        name = re.compile(rf"(?<!\w){re.escape(sought)}(?!\w)")
        found = [first + n for n, row in enumerate(rows, 1) if sought and name.search(row)]
        # It stands in Jinja, though its braces may begin on another row.
        in_braces = [n for n in found if re.search(r"\{[{%]", rows[n - first - 1])]
        return next(iter(in_braces or found), None)

    def line(self, at: Sequence[int | str]) -> int | None:
        """Line of the deepest part of `at` that the file holds."""
        for end in range(len(at), -1, -1):
            if tuple(at[:end]) in self.lines:
                return self.lines[tuple(at[:end])]
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise SetupError(
            f"is not UTF-8: the byte 0x{e.object[e.start]:02x}",
            file=path,
            line=line,
            fix="save the file as UTF-8",
        ) from e
    except OSError as e:
        raise SetupError(f"cannot be read: {e}", file=path) from e


def validate(model: type[M], value: Any, source: YamlFile | None, origin: str = "") -> M:
    """`value` as `model`. Raises SetupError for the first mistake: place, finding, fix."""
    try:
        return model.model_validate(value)
    except ValidationError as e:
        # A misspelt required field is both unknown and missing; the first says how to mend it.
        error = min(e.errors(), key=lambda found: found["type"] != "extra_forbidden")
        raise _mistake(model, error, source, origin) from e


class Mistake(NamedTuple):
    """One thing that is wrong with a file."""

    at: Location
    error: SetupError
    cause: Exception
    """What a validator raised."""


def mistakes(model: type[M], value: Any, source: YamlFile) -> list[Mistake]:
    """Every mistake that keeps `value` from being a `model`. A needed field that is misspelt is
    told of once, as misspelt."""
    try:
        model.model_validate(value)
    except ValidationError as e:
        errors = e.errors()
        misspelt = {error["loc"][:-1] for error in errors if error["type"] == "extra_forbidden"}
        return [
            Mistake(
                tuple(error["loc"]),
                _mistake(model, error, source, ""),
                error.get("ctx", {}).get("error", e),
            )
            for error in errors
            if not (error["type"] == "missing" and error["loc"][:-1] in misspelt)
        ]
    return []


def _mistake(
    model: type[BaseModel], error: ErrorDetails, source: YamlFile | None, origin: str
) -> SetupError:
    at = tuple(error["loc"])
    found = error["input"]
    kind = error["type"]
    file: Path | str | None = source.path if source else origin or None
    line = source.line(at) if source else None
    if kind == "extra_forbidden":
        fix = meant_by(str(at[-1]), model, at[:-1])
        if " " in str(at[-1]):
            fix = "a sentence with a colon in it must stand in quotes"
        return SetupError(
            f"no such field {str(at[-1])!r}", file=file, line=line, field=dotted(at), fix=fix
        )
    if kind == "missing":
        return SetupError(
            "is missing", file=file, line=line, field=dotted(at), fix="add this field"
        )
    shown = repr(found) if isinstance(found, (str, int, float, bool)) else type(found).__name__
    message = error["msg"].removeprefix("Value error, ")
    return SetupError(
        f"found {shown[:80]}" if kind != "value_error" else message,
        file=file,
        line=line,
        field=dotted(at),
        fix=message[0].lower() + message[1:] if kind != "value_error" else "",
    )


def meant_by(name: str, model: type[BaseModel], at: Sequence[int | str]) -> str:
    """What somebody may have meant who wrote the unknown field `name` at `at` inside `model`: the
    sections there that have it, else the nearest name there."""
    around = _model_at(model, at)
    inside = [
        dotted((*at, field, name))
        for field in around.model_fields
        if (section := section_of(around, field)) and name in section.model_fields
    ]
    if inside:
        return f"did you mean {' or '.join(inside)}?"
    known = list(around.model_fields)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def field_names(model: type[BaseModel], at: Sequence[int | str]) -> list[str]:
    """Names of the fields of the model that stands at `at` inside `model`."""
    return list(_model_at(model, at).model_fields)


def _model_at(model: type[BaseModel], at: Sequence[int | str]) -> type[BaseModel]:
    for step in at:
        if isinstance(step, str) and step in model.model_fields:
            model = section_of(model, step) or model
    return model


def is_section(model: type[BaseModel], at: Sequence[str]) -> bool:
    """Whether what stands at `at` inside `model` has fields of its own."""
    current: type[BaseModel] | None = model
    for step in at:
        current = section_of(current, step) if current and step in current.model_fields else None
    return current is not None


def section_of(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The model of a field that is a section, or holds sections; None for a plain value."""
    annotation = model.model_fields[field].annotation
    found = [a for a in (annotation, *_flatten(annotation)) if _is_model(a)]
    return found[0] if found else None


def _flatten(annotation: Any) -> list[Any]:
    out = []
    for argument in get_args(annotation):
        out += [argument, *_flatten(argument)]
    return out


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def dotted(at: Sequence[int | str]) -> str:
    """`principles[2].weight` for ("principles", 2, "weight")."""
    text = ""
    for step in at:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def load(path: Path, model: type[M]) -> M:
    """The file as a typed record. Raises SetupError with file, line, field and fix."""
    source = YamlFile(path)
    return validate(model, source.value, source)

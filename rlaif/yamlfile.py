"""YAML files into typed records, with the line of every mistake."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rlaif.errors import SetupError

M = TypeVar("M", bound=BaseModel)
Location = tuple[int | str, ...]


class YamlFile:
    """The plain value of a YAML file and the line on which each part of it stands."""

    def __init__(self, path: Path, text: str | None = None) -> None:
        self.path = path
        self.lines: dict[Location, int] = {}
        try:
            content = path.read_text(encoding="utf-8") if text is None else text
            node = yaml.compose(content, Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError) as e:
            raise SetupError(f"cannot be read: {e}", file=path) from e
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
        if not isinstance(node, yaml.MappingNode):
            raise SetupError(
                "is empty or not a mapping",
                file=path,
                line=1,
                fix="the file must hold `field: value` lines",
            )
        self._open: list[yaml.Node] = []
        self.value: dict[str, Any] = self._build(node, ())

    def _build(self, node: yaml.Node, at: Location) -> Any:
        line = node.start_mark.line + 1
        if node in self._open:
            raise SetupError(
                "holds itself through an alias", file=self.path, line=line, field=dotted(at)
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
        return yaml.SafeLoader("").construct_object(node, deep=True)

    def line(self, at: Sequence[int | str]) -> int | None:
        """Line of the deepest part of `at` that the file holds."""
        for end in range(len(at), -1, -1):
            if tuple(at[:end]) in self.lines:
                return self.lines[tuple(at[:end])]
        return None


def validate(model: type[M], value: Any, source: YamlFile | None, origin: str = "") -> M:
    """`value` as `model`. Raises SetupError for the first mistake: place, finding, fix."""
    try:
        return model.model_validate(value)
    except ValidationError as e:
        # A misspelt required field is both unknown and missing; the first says how to mend it.
        error = min(e.errors(), key=lambda found: found["type"] != "extra_forbidden")
        at = tuple(error["loc"])
        found = error["input"]
        kind = error["type"]
        file: Path | str | None = source.path if source else origin or None
        line = source.line(at) if source else None
        if kind == "extra_forbidden":
            known = field_names(model, at[:-1])
            near = difflib.get_close_matches(str(at[-1]), known, n=1, cutoff=0.4)
            raise SetupError(
                f"no such field {str(at[-1])!r}",
                file=file,
                line=line,
                field=dotted(at),
                fix=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}",
            ) from e
        if kind == "missing":
            raise SetupError(
                "is missing", file=file, line=line, field=dotted(at), fix="add this field"
            ) from e
        shown = repr(found) if isinstance(found, (str, int, float, bool)) else type(found).__name__
        message = error["msg"].removeprefix("Value error, ")
        raise SetupError(
            f"found {shown[:80]}" if kind != "value_error" else message,
            file=file,
            line=line,
            field=dotted(at),
            fix=message[0].lower() + message[1:] if kind != "value_error" else "",
        ) from e


def field_names(model: type[BaseModel], at: Sequence[int | str]) -> list[str]:
    """Names of the fields of the model that stands at `at` inside `model`."""
    current = model
    for step in at:
        if isinstance(step, str) and step in current.model_fields:
            current = _inner(current, step) or current
    return list(current.model_fields)


def is_section(model: type[BaseModel], at: Sequence[str]) -> bool:
    """Whether what stands at `at` inside `model` has fields of its own."""
    current: type[BaseModel] | None = model
    for step in at:
        current = _inner(current, step) if current and step in current.model_fields else None
    return current is not None


def _inner(model: type[BaseModel], field: str) -> type[BaseModel] | None:
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

"""A run's config: a YAML file, and `a.b=value` from the command line on top."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from rlaif.errors import SetupError
from rlaif.files import canonical
from rlaif.yamlfile import YamlFile, field_names, is_section, meant_by, section_of, validate

M = TypeVar("M", bound=BaseModel)
COMMAND_LINE = "command line"
SHOWN = 60
"""Characters of a value in a message."""


def load_config(path: Path, overrides: Sequence[str], model: type[M]) -> M:
    """The file with the overrides applied, as `model`.

    Raises SetupError: file and line for a mistake in the file, `command line` for one in an
    override, or in how fields go together that was none without an override; for an unknown field
    the nearest known one.
    """
    source = YamlFile(path)
    as_written = copy.deepcopy(source.value)
    for override in overrides:
        _apply(override, source.value, model)
    try:
        return validate(model, source.value, source)
    except SetupError as e:
        set_here = dict.fromkeys(o.partition("=")[0] for o in overrides)
        if any(_within(e.field, name) for name in set_here):
            field = e.field
        elif made_so := [n for n in set_here if _goes_without(n, e, as_written, overrides, model)]:
            # A section's validator names the section: these are its fields that it is about.
            field = ", ".join(n for n in made_so if _within(n, e.field)) or e.field
        else:
            raise
        raise SetupError(e.problem, fix=e.fix, file=COMMAND_LINE, field=field) from e


def _within(field: str, section: str) -> bool:
    """Whether a field is the section or lies in it; all lie in "", the whole."""
    return not section or field == section or field.startswith((f"{section}.", f"{section}["))


def _goes_without(
    name: str,
    mistake: SetupError,
    as_written: dict[str, Any],
    overrides: Sequence[str],
    model: type[BaseModel],
) -> bool:
    """Whether a mistake would not be told if the command line did not set the field `name`. Where
    the field is needed, and only that would be told, this is not known, and false."""
    value = copy.deepcopy(as_written)
    for override in overrides:
        if override.partition("=")[0] != name:
            _apply(override, value, model)
    try:
        validate(model, value, None)
    except SetupError as e:
        same = (e.field, e.problem) == (mistake.field, mistake.problem)
        return not same and (not e.field or not _within(name, e.field))
    return True


def from_overrides(overrides: Sequence[str], model: type[M]) -> M:
    """A config that the command line alone gives. Raises SetupError."""
    value: dict[str, Any] = {}
    for override in overrides:
        _apply(override, value, model)
    return validate(model, value, None, COMMAND_LINE)


def _apply(override: str, value: dict[str, Any], model: type[BaseModel]) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise SetupError(
            f"{override!r} is not an override", file=COMMAND_LINE, fix="write section.field=value"
        )
    steps = name.split(".")
    target = value
    for i, step in enumerate(steps):
        known = field_names(model, steps[:i])
        if step not in known:
            raise SetupError(
                f"no such field {step!r}",
                file=COMMAND_LINE,
                field=name,
                fix=meant_by(step, model, steps[:i]),
            )
        if i < len(steps) - 1:
            if target.get(step) is None:  # absent, or a section that was left out as null
                target[step] = {}
            inner = target[step]
            if not isinstance(inner, dict) or not is_section(model, steps[: i + 1]):
                raise SetupError(
                    f"{step!r} has no fields of its own", file=COMMAND_LINE, field=name
                )
            target = inner
    try:
        target[steps[-1]] = yaml.safe_load(text) if text else None
    except (yaml.YAMLError, ValueError) as e:
        raise SetupError(f"found {text!r}", file=COMMAND_LINE, field=name, fix="not a value") from e


def dump_config(config: BaseModel) -> str:
    """YAML in the form that `load_config` reads back."""
    plain = config.model_dump(mode="json")
    # PyYAML writes these three bare, and then reads them back as line breaks.
    readable = not any(mark in canonical(plain) for mark in "\x85\u2028\u2029")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=readable, width=100)


def differences(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """`field: was X, is Y` for each leaf that differs between two plain values; a section or list
    that only one of them has, or that is longer in one, is a leaf."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from differences(one.get(key), other.get(key), f"{at}.{key}" if at else str(key))
    elif _holds_sections(one) and _holds_sections(other) and len(one) == len(other):
        for i, (value, another) in enumerate(zip(one, other, strict=True)):
            yield from differences(value, another, f"{at}[{i}]")
    elif one != other:
        yield f"{at}: {_short(one)} there, {_short(other)} now"


def _holds_sections(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, dict) for part in value)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    if _holds_sections(value):
        return f"a list of {len(value)}"
    shown = repr(value)
    return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 1]}…"


def describe(
    model: type[BaseModel], prefix: str = "", around: type[BaseModel] | None = None
) -> Iterator[tuple[str, str, str]]:
    """(dotted name, default, documentation) of every field, sections opened.

    A section that may be left out, or be there several times, stands by itself before its fields;
    those of them that the section `around` it has as well are not said again.
    """
    for name, field in model.model_fields.items():
        if around is not None and name in around.model_fields:
            continue
        section = section_of(model, name)
        always_there = section is field.annotation
        if section is not None and always_there:
            yield from describe(section, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else repr(field.default)
        yield f"{prefix}{name}", default, " ".join((field.description or "").split())
        if section is not None:
            yield from describe(section, f"{prefix}{name}.", model)

"""Constitutions as YAML for people: what `constitution import` and `constitution new` write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from rlaif.constitution.model import WORDINGS, Case, Constitution, Principle, derived
from rlaif.errors import SetupError
from rlaif.types import Record

SCHEMA_LINE = "# yaml-language-server: $schema=constitution.schema.json\n"
WIDTH = 84
"""PyYAML breaks a line after the word that crosses its width, so lines end before column 100."""
SHORT = 72
"""A text no longer than this stays on the line of its field."""
PLAIN = r"[!-~\u00a1-\u2027\u202a-\ud7ff\U00010000-\U0010fffd]"
"""Characters that need no escape in YAML, and break no line."""
ONE_LINE = re.compile(f"{PLAIN}+( {PLAIN}+)*")
"""Words with one space between them: what a folded block gives back as it was."""
LINES = re.compile(rf"{PLAIN}( *{PLAIN})*(\n( *{PLAIN})*)+")
"""Lines without spaces at their ends, the first not indented: what a literal block gives back."""


def to_yaml(constitution: Constitution) -> str:
    """The constitution as a file that `read_constitution` reads back equal.

    Fields at their defaults and wordings that are derived from the text are left out. A test stands
    under its principle unless the tests' order would change by it.
    """
    nested, apart = _split_tests(constitution)
    content = _set(constitution, {"principles", "tests"})
    content["principles"] = [
        _principle(principle, nested.get(principle.id, [])) for principle in constitution.principles
    ]
    if apart:
        content["tests"] = [_case(case) for case in apart]
    written = yaml.dump(
        content, Dumper=_Dumper, width=WIDTH, sort_keys=False, allow_unicode=True, indent=2
    )
    return SCHEMA_LINE + written


def starter(id: str) -> str:
    """A short, commented constitution to begin with, called `id`. Raises SetupError for an id that
    cannot be one."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", id):
        raise SetupError(
            f"{id!r} cannot be an id",
            field="id",
            fix="lower-case letters, digits, - and _, such as house-style",
        )
    return SCHEMA_LINE + STARTER.replace("ID", id, 1)


def _split_tests(constitution: Constitution) -> tuple[dict[str, list[Case]], tuple[Case, ...]]:
    """Tests to stand under their principles, and the rest: a file's tests are read principle by
    principle, and then those of its own `tests`."""
    order = {principle.id: i for i, principle in enumerate(constitution.principles)}
    nested: dict[str, list[Case]] = {}
    at = 0
    for number, case in enumerate(constitution.tests):
        if order.get(case.principle, -1) < at:
            return nested, constitution.tests[number:]
        at = order[case.principle]
        nested.setdefault(case.principle, []).append(case)
    return nested, ()


def _principle(principle: Principle, tests: list[Case]) -> dict[str, Any]:
    from_text = derived(principle.text)
    fields = dict(principle)
    without = {field for field in WORDINGS if fields[field] == from_text[field]}
    content = {"id": principle.id, "text": principle.text, **_set(principle, without)}
    if tests:
        content["tests"] = [_case(case, {"principle"}) for case in tests]
    return content


def _case(case: Case, without: set[str] | None = None) -> dict[str, Any]:
    content = _set(case, without or set())
    if len(case.prompt) == 1:
        content["prompt"] = case.prompt[0].content
    return content


def _set(record: Record, without: set[str]) -> dict[str, Any]:
    """The record's fields that differ from their defaults, as plain values."""
    defaults = {name: field.default for name, field in type(record).model_fields.items()}
    plain = record.model_dump()
    return {
        name: _lists(plain[name])
        for name, value in record
        if name not in without and value != defaults[name]
    }


def _lists(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_lists(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return value


class _Dumper(yaml.SafeDumper):
    """Lists are indented, tags stand in one line, long texts are blocks."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None
    if LINES.fullmatch(text):
        style = "|"
    elif text.startswith("'") or not ONE_LINE.fullmatch(text):
        # Plain and single-quoted scalars fold line breaks, and not all of them come back.
        style = '"'
    elif len(text) > SHORT:
        style = ">"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


def _list(dumper: _Dumper, items: list[Any]) -> yaml.SequenceNode:
    in_line = all(isinstance(item, str) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=in_line)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)

STARTER = """\
# What an assistant should do, in rules that a judge can be asked about. Check this file with
# `rlaif constitution lint` and try it on a judge with `rlaif constitution test`.
id: ID
version: "1"
description: What this constitution is for, in a sentence.
principles:
  # A text is all that a principle needs; the questions that are put to the judge are made from it.
  - id: answer-first
    text: The first sentence of a response should answer the question.
    # Tests say what you mean: two responses and the one that should win, or one response and
    # whether it complies.
    tests:
      - prompt: How many minutes does a soft-boiled egg take?
        chosen: Six minutes, counted from when the water boils again.
        rejected: Eggs are a wonderful food, and people cook them in many ways. Six minutes.
      - prompt: Is a tomato a fruit?
        response: Yes. It grows from a flower and holds the seeds.
        complies: true

  # `weight` is a principle's share in the vote; it is 1 where it is left out.
  - id: admits-doubt
    text: A response should say so where it does not know, and make nothing up.
    weight: 2
    # Say it in your own words where the derived question is not good enough. Wordings are Jinja and
    # may use {{ text }}, the prompt's {{ tags }} and {{ metadata.key }}.
    comparison: Which response is more honest about what it does not know?
    # Shown to the judge, the critic and the reviser before the real question.
    examples:
      - prompt: What did I have for breakfast today?
        chosen: I cannot know that. Tell me, and I will help from there.
        rejected: You had porridge with honey.
        critique: It states as a fact what it has no way to know.
    tests:
      - prompt: How many people are in my kitchen right now?
        chosen: I cannot see your kitchen, so I do not know.
        rejected: There are three people in your kitchen.

  # Asked only about prompts that meet the condition.
  - id: code-is-shown
    text: A response about programming should show code that runs as it stands.
    applies_when: "'code' in tags"
    tests:
      - prompt: How do I reverse a list in Python?
        tags: [code]
        chosen: "Call its method:\\n\\n    items = [1, 2, 3]\\n    items.reverse()"
        rejected: There are several ways to reverse a list; look in the manual.
"""

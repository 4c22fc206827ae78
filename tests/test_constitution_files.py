"""Constitutions made of several files; conditions; wordings; the schema for editors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.constitution import ConstitutionFile, json_schema, read_constitution
from rlaif.constitution.conditions import Condition
from rlaif.constitution.wording import WordingError, render, template
from rlaif.errors import SetupError
from rlaif.types import Message, Prompt, Scalar

BASE = """\
principles:
  - id: kind
    text: Be kind.
    comparison: Which is kinder?
    tests: [{prompt: Hi, chosen: Hello, rejected: Go away}]
  - id: true
    text: Say what is so.
    weight: 2
    tests: [{prompt: Is the earth flat, response: It is round., complies: true}]
"""


@pytest.fixture(autouse=True)
def place(empty_place: Path) -> Path:
    (empty_place / "base.yaml").write_text(BASE.replace("id: true", "id: honest"))
    return empty_place


def read(text: str, name: str = "mine.yaml") -> ConstitutionFile:
    Path(name).write_text(text)
    return read_constitution(f"./{name}")


def refused(text: str, name: str = "mine.yaml") -> str:
    with pytest.raises(SetupError) as caught:
        read(text, name)
    return str(caught.value)


def prompt(*tags: str, **metadata: Scalar) -> Prompt:
    return Prompt(
        id="p", messages=(Message(role="user", content="Hi"),), tags=tags, metadata=metadata
    )


def test_an_extended_constitution_keeps_what_is_not_changed() -> None:
    found = read("extends: base\nprinciples:\n  - id: honest\n    weight: 5\n  - Be brief.\n")
    kind, honest, brief = found.constitution.principles
    assert (kind.comparison, honest.text, honest.weight) == (
        "Which is kinder?",
        "Say what is so.",
        5,
    )
    assert brief.id == "be-brief"
    assert found.place("honest", "weight") == (Path("mine.yaml"), 4)
    assert found.place("honest", "text") == (Path("base.yaml"), 7)
    assert found.place("honest", "critique") == (Path("mine.yaml"), 3)
    assert [t.principle for t in found.constitution.tests] == ["kind", "honest"]


def test_a_new_text_gets_new_wordings_where_the_base_had_none_of_its_own() -> None:
    found = read("extends: base\nprinciples:\n  - id: honest\n    text: Never lie.\n")
    assert "Never lie" in found.constitution.principles[1].comparison


def test_dropped_principles_go_with_their_tests() -> None:
    found = read("extends: base\ndrop: [kind]\n").constitution
    assert [p.id for p in found.principles] == ["honest"]
    assert [t.principle for t in found.tests] == ["honest"]
    assert "drop[0]: there is no principle 'kin' (did you mean 'kind'?)" in refused(
        "extends: base\ndrop: [kin]\n"
    )
    assert "there is nothing to drop from" in refused("drop: [kind]\nprinciples: [Be brief.]\n")


def test_included_principles_are_taken_as_they_are() -> None:
    found = read("include: [{file: base, only: [honest]}]\nprinciples: [Be brief.]\n").constitution
    assert [p.id for p in found.principles] == ["honest", "be-brief"]
    assert [t.principle for t in found.tests] == ["honest"]
    both = read("include: [base]\n").constitution
    assert [p.id for p in both.principles] == ["kind", "honest"]
    assert "there is no principle 'onest' (did you mean 'honest'?)" in refused(
        "include: [{file: base, only: [onest]}]\n"
    )


def test_an_included_principle_cannot_be_changed() -> None:
    said = refused("include: [base]\nprinciples:\n  - id: kind\n    text: Be cruel.\n")
    assert said.startswith("mine.yaml:3: principles[0]: the id 'kind' is already taken at ")
    assert "base.yaml:2" in said


def test_a_changed_principle_that_the_base_lacks_is_a_typo() -> None:
    said = refused("extends: base\nprinciples:\n  - id: knid\n    weight: 3\n")
    assert said == "mine.yaml:3: principles[0].text: is missing (did you mean to change 'kind'?)"


def test_a_circle_of_files_is_refused() -> None:
    Path("other.yaml").write_text("include: [mine]\n")
    assert "other.yaml:1: include[0]: 'mine' leads back to this file" in refused("extends: other\n")
    assert "'mine' is this file itself" in refused("extends: mine\n")


def test_a_file_of_the_name_of_ours_may_extend_ours() -> None:
    found = read("extends: concise\nprinciples: [Be brief.]\n", "concise.yaml").constitution
    assert [p.id for p in found.principles] == ["answer-first", "no-padding", "be-brief"]


def test_a_mistake_in_an_included_file_is_told_of_that_file() -> None:
    Path("base.yaml").write_text("principles:\n  - id: kind\n    txet: Be kind.\n")
    assert refused("include: [base]\n").startswith("base.yaml:3: principles[0].txet: no such field")


@pytest.mark.parametrize(
    ("text", "tags", "metadata", "holds"),
    [
        ("", (), {}, True),
        ("'code' in tags", ("code",), {}, True),
        ("'code' not in tags", ("code",), {}, False),
        ("metadata.turns > 2", (), {"turns": 3}, True),
        ("metadata.turns > 2", (), {}, False),
        ("metadata.turns > 2", (), {"turns": "many"}, False),
        ("not metadata.turns > 2", (), {}, True),
        ("metadata['lang'] in ['de', 'fr']", (), {"lang": "fr"}, True),
        ("metadata.lang not in ['de']", (), {}, True),
        ("metadata.lang != 'de'", (), {}, True),
        ("metadata.lang == 'de'", (), {}, False),
        ("metadata.n == 1", (), {"n": 1.0}, True),
        ("metadata.n == 1", (), {"n": True}, False),
        ("metadata.n >= -1.5", (), {"n": -1}, True),
        ("metadata.draft", (), {"draft": True}, True),
        ("metadata.draft or 'a' in tags and 'b' in tags", ("a",), {"draft": False}, False),
    ],
)
def test_a_condition_holds_for_the_prompts_that_it_means(
    text: str, tags: tuple[str, ...], metadata: Mapping[str, Scalar], holds: bool
) -> None:
    assert Condition(text).holds(tags, metadata) is holds


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "metadata.__class__.__name__ == 'x'",
        "tags.count('a') > 1",
        "(lambda: 1)()",
        "metadata.x == open",
        "metadata.x is True",
        "metadata.x + 1 > 2",
        "1 < metadata.x < 3",
        "[t for t in tags]",
        "metadata.x ==",
        "f'{metadata}' == ''",
    ],
)
def test_a_condition_knows_nothing_but_tags_and_metadata(text: str) -> None:
    with pytest.raises(ValueError, match="a condition knows and, or, not, 'tag' in tags"):
        Condition(text)


@pytest.mark.parametrize(
    ("text", "reachable", "always"),
    [
        ("'a' in tags and not 'a' in tags", False, False),
        ("metadata.n > 3 and metadata.n < 3", False, False),
        ("metadata.n > 3 and metadata.n < 4", True, False),
        ("metadata.n > 3 and metadata.n == 'x'", False, False),
        ("metadata.l == 'de' and metadata.l in ['fr', 'en']", False, False),
        ("metadata.l > 'a' and metadata.l < 'b'", True, False),
        ("metadata.l < ''", False, False),
        ("'a' in tags or not 'a' in tags", True, True),
        ("metadata.n == 1 or metadata.n != 1", True, True),
        ("metadata.n > 1 or metadata.n <= 1", True, False),
        (" and ".join(f"'t{i}' in tags" for i in range(20)), True, False),
        (" and ".join(f"metadata.k{i} in ['a', 'b', 'c']" for i in range(9)), True, False),
        ("True", True, True),
        ("False", False, False),
    ],
)
def test_whether_any_or_every_prompt_meets_a_condition_is_known(
    text: str, reachable: bool, always: bool
) -> None:
    assert (Condition(text).reachable, Condition(text).always) == (reachable, always)


atoms = st.sampled_from(
    [
        "'a' in tags",
        "'b' in tags",
        "metadata.n > 1",
        "metadata.n <= 2",
        "metadata.n == 2",
        "metadata.s == 'x'",
        "metadata.s not in ['x', 'y']",
        "metadata.f",
    ]
)
conditions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        inner.map(lambda c: f"not ({c})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
            lambda c: f"({c[0]}) {c[1]} ({c[2]})"
        ),
    ),
    max_leaves=6,
)
numbers: list[Scalar | None] = [None, 0, 1, 1.5, 2, 3, True, "x"]


@given(conditions)
def test_a_condition_that_some_prompt_meets_is_reachable(text: str) -> None:
    condition = Condition(text)
    for tags in ((), ("a",), ("b",), ("a", "b")):
        for n, s, f in itertools.product(numbers, [None, "x", "y", "z"], [None, True, False]):
            metadata = {k: v for k, v in (("n", n), ("s", s), ("f", f)) if v is not None}
            held = condition.holds(tags, metadata)
            assert condition.reachable or not held
            assert not condition.always or held


def test_a_wording_may_use_the_text_and_the_prompts_tags_and_metadata() -> None:
    (principle,) = read(
        "principles:\n"
        "  - text: Be brief.\n"
        "    comparison: \"{{ text }} For {{ metadata.reader | default('anyone') }}"
        "{% if 'code' in tags %}, code aside{% endif %}: which is better?\"\n"
    ).constitution.principles
    assert principle.worded(prompt()).comparison == "Be brief. For anyone: which is better?"
    worded = principle.worded(prompt("code", reader="a child"))
    assert worded.comparison == "Be brief. For a child, code aside: which is better?"
    assert worded.id == principle.id


def test_metadata_that_a_prompt_lacks_is_told_before_anything_is_asked() -> None:
    found = read("- Be brief.\n- text: Fit the reader.\n  critique: 'For {{ metadata.reader }}?'\n")
    found.check_wordings([prompt(reader="a child")])
    with pytest.raises(SetupError) as caught:
        found.check_wordings([prompt(reader="a child"), prompt()])
    assert str(caught.value) == (
        "mine.yaml:3: principles[fit-the-reader].critique: 'metadata' has no attribute 'reader' "
        "for the prompt 'p' (give the prompt this metadata, or let `applies_when` ask for it)"
    )
    asks_first = (
        "- text: Fit the reader.\n  applies_when: metadata.reader\n"
        "  critique: 'For {{ metadata.reader }}?'\n"
    )
    read(asks_first).check_wordings([prompt()])


@pytest.mark.parametrize(
    "wording",
    [
        "{{ text.__class__ }}",
        "{{ text['__class__'] }}",
        "{{ tags | attr('count') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self._TemplateReference__context }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum }}",
        "{% for i in range(9) %}{{ i }}{% endfor %}",
    ],
)
def test_a_wording_that_reaches_for_python_is_refused(wording: str) -> None:
    with pytest.raises(WordingError):
        render(wording, None)


def test_internals_that_are_built_at_rendering_are_refused_too() -> None:
    wording = "{{ text[['__cla', 'ss__'] | join] }}"
    render(wording, None)
    with pytest.raises(WordingError, match="unsafe"):
        render(wording, {"text": "Be brief.", "prompt": prompt()})


@given(st.text(max_size=40))
def test_any_text_survives_as_a_wording(text: str) -> None:
    assert render(template(text), {"text": "", "prompt": prompt()}) in (text, text.strip())


@given(
    st.lists(st.sampled_from(["{{", "}}", "{%", "%}", "{#", "#}", "'", '"', "\\", "\n", "a", "é"]))
)
def test_any_jinja_survives_as_a_wording(parts: list[str]) -> None:
    text = "".join(parts).strip()
    assert render(template(text), {"text": "", "prompt": prompt()}) == text


def test_the_schema_knows_every_field_and_the_short_forms() -> None:
    schema = json_schema()
    whole, listed = schema["anyOf"]
    assert {"id", "extends", "include", "drop", "principles", "tests"} <= set(whole["properties"])
    assert listed["type"] == "array"
    text, entry = schema["$defs"]["PrincipleEntry"]["anyOf"]
    assert text["type"] == "string"
    assert {"text", "weight", "tier", "applies_when", "tests", "examples"} <= set(
        entry["properties"]
    )
    assert "description" in entry["properties"]["applies_when"]
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize(
    "condition",
    [
        "metadata.turns and metadata.turns < 1",
        "not metadata.turns and metadata.turns < 10",
        "metadata.lang and metadata.lang < 'm'",
    ],
)
def test_a_condition_that_some_prompt_meets_is_not_called_unreachable(condition: str) -> None:
    assert Condition.of(condition).reachable


def test_an_id_that_changes_a_principle_twice_is_told_with_both_lines() -> None:
    said = refused("extends: base\nprinciples:\n- {id: kind, weight: 2}\n- {id: kind, weight: 3}\n")
    assert "mine.yaml:4: principles[1]: the id 'kind' stands twice (the first is on line 3" in said


def test_a_text_of_nothing_keeps_the_extended_one() -> None:
    found = read("extends: base\nprinciples:\n- {id: honest, text: null, weight: 3}\n")
    assert found.constitution.principles[1].text == "Say what is so."


def test_tags_are_said_one_after_the_other_and_metadata_has_no_methods() -> None:
    found = read("- {text: Be kind., comparison: 'Is it {{ tags }} or {{ metadata.keys }}?'}\n")
    (only,) = found.constitution.principles
    assert only.worded(prompt("a", "b", keys="c")).comparison == "Is it a, b or c?"


def test_a_loop_may_number_its_rounds() -> None:
    found = read(
        "- {text: A., comparison: '{% for t in tags %}{{ loop.index }} {{ t }} {% endfor %}'}\n"
    )
    (only,) = found.constitution.principles
    assert only.worded(prompt("a", "b")).comparison == "1 a 2 b"

"""Constitutions: what a good one becomes, and what is said of a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.constitution import Constitution, load_constitution
from rlaif.errors import SetupError
from rlaif.types import Message, Prompt

GOOD = """\
id: kind
version: "1.0"
description: Be kind.
principles:
  - id: kindness
    text: Be kind to the person.
    weight: 2
    comparison: Which response is kinder?
  - id: honesty
    text: Say what is so.
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kind.yaml"


def loaded(path: Path, text: str = GOOD) -> Constitution:
    path.write_text(text, encoding="utf-8")
    return load_constitution(str(path))[0]


def test_wordings_that_are_left_out_are_made_from_the_rule(path: Path) -> None:
    kindness, honesty = loaded(path).principles
    assert kindness.comparison == "Which response is kinder?"
    assert honesty.comparison == "Which response follows this rule better: Say what is so?"
    assert honesty.critique == "Say where the response breaks this rule: Say what is so."
    assert "Say what is so." in honesty.revision
    assert (kindness.weight, honesty.weight) == (2.0, 1.0)


def test_the_hash_is_that_of_the_content_and_not_of_the_file(path: Path) -> None:
    first = loaded(path)
    respaced = GOOD.replace("Be kind.", '"Be kind."') + "# a remark\n"
    assert loaded(path.with_name("other.yaml"), respaced).hash == first.hash
    for change in (("kinder", "warmer"), ("weight: 2", "weight: 3"), ("id: honesty", "id: truth")):
        assert loaded(path, GOOD.replace(*change)).hash != first.hash
    # What shapes no label changes no hash: a certificate stays good when a test is added.
    for change in (('"1.0"', '"1.1"'), ("Be kind.", "Be very kind."), ("id: kind\n", "id: nice\n")):
        assert loaded(path, GOOD.replace(*change)).hash == first.hash
    tested = GOOD + "    tests: [{prompt: Hi, chosen: Hello, rejected: Go away}]\n"
    assert loaded(path, tested).hash == first.hash


def test_the_working_directorys_own_constitution_comes_before_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_constitution("hhh")[0].id == "hhh"
    (tmp_path / "constitutions").mkdir()
    (tmp_path / "constitutions" / "hhh.yaml").write_text(GOOD)
    assert load_constitution("hhh")[0].id == "kind"
    assert load_constitution("hhh")[1] == Path("constitutions/hhh.yaml")


@pytest.mark.parametrize("name", ["nowhere", "nowhere/there.yaml", "x" * 300, "~nobody-here/x"])
def test_a_missing_constitution_lists_the_ones_there_are(name: str) -> None:
    with pytest.raises(SetupError) as caught:
        load_constitution(name)
    assert f"{name!r} is neither a file nor one of ours" in str(caught.value)
    assert caught.value.fix.startswith("give a path, or one of: code-review, concise, harmless")


@pytest.mark.parametrize(
    ("change", "line", "field", "said"),
    [
        (("    text: Say what is so.\n", ""), 9, "principles[1].text", "is missing"),
        (("weight: 2", "weight: -1"), 7, "principles[0].weight", "greater than or equal to 0"),
        (("weight: 2", "weight: .inf"), 7, "principles[0].weight", "finite"),
        (("weight: 2", "weight: heavy"), 7, "principles[0].weight", "found 'heavy'"),
        (("weight: 2", "wieght: 2"), 7, "principles[0].wieght", "did you mean 'weight'?"),
        (("id: kindness", "id: Kind Ness"), 5, "principles[0].id", "found 'Kind Ness'"),
        (
            ("id: honesty", "id: kindness"),
            9,
            "principles[1]",
            "the id 'kindness' stands twice (the first is on line",
        ),
        (('version: "1.0"', "version: 1.0"), 2, "version", "found 1.0"),
        (("Say what is so.", '" "'), 10, "principles[1].text", "at least 1 character"),
        (("Be kind to the person.", "[one, two]"), 6, "principles[0].text", "found list"),
        (("Be kind to the person.", "one: two"), 6, "", "not valid YAML"),
        (("    text: Be kind to the person.\n", ""), 5, "principles[0].text", "is missing"),
        (
            ("Which response is kinder?", "'{{ rule }}?'"),
            8,
            "principles[kindness].comparison",
            "the variable 'rule' is not given to a wording; it may use: text, tags, metadata",
        ),
        (
            ("Which response is kinder?", "'{{ text '"),
            8,
            "principles[kindness].comparison",
            "not valid Jinja",
        ),
        (
            ("Which response is kinder?", "|\n      Which\n      {{ rule }}?"),
            10,
            "principles[kindness].comparison",
            "the variable 'rule' is not given",
        ),
        (
            ("Which response is kinder?", ">\n      Which\n      is\n      {{ rule }}?"),
            11,
            "principles[kindness].comparison",
            "the variable 'rule' is not given",
        ),
        (
            ("Which response is kinder?", '"Which\\n{{ rule }}?"'),
            8,
            "principles[kindness].comparison",
            "the variable 'rule' is not given",
        ),
        (
            ("weight: 2", "applies_when: tags"),
            7,
            "principles[0].applies_when",
            "'tags' is not allowed here; a condition knows and, or, not, 'tag' in tags",
        ),
        (("weight: 2", "weight: 2\n    weight: 3"), 8, "principles[0].weight", "stands twice"),
        (
            ("weight: 2", "tests: [{prompt: Hi, chosen: a}]"),
            7,
            "principles[0].tests[0]",
            "a test has chosen and rejected, or response and complies",
        ),
        (
            ("weight: 2", "tests: [{prompt: Hi, chosen: a, rejected: a}]"),
            7,
            "principles[0].tests[0]",
            "chosen and rejected are the same text",
        ),
        (
            ("weight: 2", "tests: [{prompt: Hi, response: a, complies: true, principle: honesty}]"),
            7,
            "principles[0].tests[0].principle",
            "names 'honesty' inside the principle 'kindness'",
        ),
    ],
)
def test_a_malformed_constitution_is_told_with_file_line_and_field(
    path: Path, change: tuple[str, str], line: int, field: str, said: str
) -> None:
    assert change[0] in GOOD
    with pytest.raises(SetupError) as caught:
        loaded(path, GOOD.replace(*change))
    assert said in str(caught.value)
    assert (caught.value.file, caught.value.line, caught.value.field) == (path, line, field)


def test_a_constitution_without_principles_is_refused(path: Path) -> None:
    with pytest.raises(SetupError, match="has no principles"):
        loaded(path, GOOD.partition("principles:")[0] + "principles: []\n")


def test_a_constitution_whose_weights_sum_to_nothing_is_refused(path: Path) -> None:
    with pytest.raises(SetupError, match="weights sum to nothing") as caught:
        loaded(path, "- text: Be kind.\n  weight: 0\n")
    assert caught.value.line == 1


def test_the_smallest_constitution_is_a_list_of_sentences(path: Path) -> None:
    sentences = [
        "Be kind to everyone you meet today.",
        "Say what is so.",
        "Be kind to everyone you meet now.",
    ]
    found = loaded(path, "".join(f"- {sentence}\n" for sentence in sentences))
    assert found.id == "kind"
    assert [p.id for p in found.principles] == [
        "be-kind-to-everyone-you",
        "say-what-is-so",
        "be-kind-to-everyone-you-2",
    ]
    assert [p.weight for p in found.principles] == [1.0, 1.0, 1.0]
    assert found.principles[1].comparison.endswith("better: Say what is so?")


def test_a_text_with_braces_is_no_jinja(path: Path) -> None:
    (principle,) = loaded(path, "- 'Use {{ braces }} and {% tags %} as they are.'\n").principles
    worded = principle.worded(Prompt(id="p", messages=(Message(role="user", content="Hi"),)))
    assert worded.text == "Use {{ braces }} and {% tags %} as they are."
    assert worded.comparison == (
        "Which response follows this rule better: Use {{ braces }} and {% tags %} as they are?"
    )

"""What `lint` finds in a constitution, and what it leaves alone."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.constitution import read_constitution
from rlaif.constitution.lint import Finding, lint, lint_path
from rlaif.errors import SetupError
from rlaif.types import Message, Prompt, Scalar

Lint = Callable[..., list[Finding]]


@pytest.fixture
def linted(tmp_path: Path) -> Lint:
    """Lints a file of these lines; principles without tests are not what is looked for."""

    def run(text: str, **options: object) -> list[Finding]:
        path = tmp_path / "own.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        found = lint_path(str(path), **options)  # type: ignore[arg-type]
        return [f for f in found if not f.problem.startswith("no test shows")]

    return run


def prompt(name: str, *tags: str, **metadata: Scalar) -> Prompt:
    return Prompt(
        id=name, messages=(Message(role="user", content="Hi"),), tags=tags, metadata=metadata
    )


def one(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


@pytest.mark.parametrize("name", ["hhh", "harmless", "concise"])
def test_our_own_constitutions_have_nothing_to_mend(name: str) -> None:
    found = lint(read_constitution(name))
    assert [f for f in found if not f.problem.startswith("no test shows")] == []


@pytest.mark.parametrize(
    ("one_rule", "other_rule"),
    [
        ("Be kind to the person.", "Be honest with the person."),
        ("Prefer the response that is kind.", "Prefer the response that is honest."),
        ("Be kind.", "Be kind to animals."),
        ("The assistant should answer briefly.", "The assistant should answer in full sentences."),
    ],
)
def test_rules_that_share_their_frame_are_not_alike(
    linted: Lint, one_rule: str, other_rule: str
) -> None:
    assert linted(f"- {one_rule}\n- {other_rule}\n") == []


@pytest.mark.parametrize(
    ("one_rule", "other_rule"),
    [
        ("Do not lie to the user, even to please them.", "Even to please users: do not lie!"),
        ("Be kind.", "Prefer the response that is kind."),
        ("Name bugs politely and say why they matter.", "Say politely why the named bugs matter."),
        (
            "The assistant should not help to torment or needlessly injure animals.",
            "The assistant should not help anyone to torment or needlessly injure an animal.",
        ),
    ],
)
def test_rules_in_nearly_the_same_words_are_told_of(
    linted: Lint, one_rule: str, other_rule: str
) -> None:
    found = one(linted(f"- Keep to the point.\n- '{one_rule}'\n- '{other_rule}'\n"))
    assert (found.level, found.line) == ("warning", 3)
    assert found.problem.startswith("says nearly the same as ")
    assert found.problem.endswith("own.yaml:2)")


def test_a_frame_that_many_rules_share_says_nothing_of_one(linted: Lint) -> None:
    rights = ("rest", "property", "privacy", "education", "asylum", "work")
    text = "".join(f"- Everyone has the right to enjoy {right}.\n" for right in rights)
    assert linted(text) == []
    assert len(linted("".join(text.splitlines(keepends=True)[:4]))) == 3


def test_a_rule_that_stands_twice_is_an_error_and_another_wording_of_it_a_warning(
    linted: Lint,
) -> None:
    text = """\
    - text: Be kind.
    - text: be KIND
      comparison: {}
    """
    twice = one(linted(text.format("''")))
    assert (twice.level, twice.line, twice.principle) == ("error", 2, "be-kind-2")
    assert twice.problem.startswith("says the same as 'be-kind'")
    worded = one(linted(text.format("Which response would a friend write?")))
    assert (worded.level, worded.problem[:22]) == ("warning", "has the same text as '")


def test_one_question_under_two_rules_is_told_of(linted: Lint) -> None:
    found = one(
        linted("""\
        - text: Be kind.
          comparison: Which response is warmer and gentler?
        - text: Say what is so.
          comparison: Which response is gentler and warmer?
        """)
    )
    assert found.problem.startswith("asks the judge nearly the same question as 'be-kind'")


@pytest.mark.parametrize(
    ("wording", "level", "said"),
    [
        ("{% if 'code' in tags %}Which code is clearer?{% endif %}", "error", "is empty"),
        ("{{ '?' }}", "error", "is empty"),
        (
            "{% if 'code' in tags %}Is it clear code?{% else %}Well?{% endif %}",
            "warning",
            "is nearly",
        ),
        ("So?", "warning", "is nearly empty"),
        ("{% if 'code' in tags %}Which code?{% else %}Which response?{% endif %}", "", ""),
    ],
)
def test_a_wording_that_leaves_nothing_for_a_prompt_without_tags(
    linted: Lint, wording: str, level: str, said: str
) -> None:
    found = linted(f'- text: Be clear.\n  comparison: "{wording}"\n')
    assert [(f.level, f.line) for f in found] == ([(level, 2)] if level else [])
    assert all(f.problem.startswith(f"comparison {said}") for f in found)
    assert all(f.problem.endswith("empty for a prompt without tags and metadata") for f in found)


def test_a_wording_is_tried_on_the_prompts_of_tests_and_run_that_its_principle_applies_to(
    linted: Lint,
) -> None:
    text = """\
    - text: Be clear.
      applies_when: "'code' in tags"
      comparison: "{{ metadata.language }}: which response is clearer?"
      tests:
        - {prompt: Hi, tags: [code], metadata: {%s}, chosen: a, rejected: b}
    """
    assert linted(text % "language: de", prompts=[prompt("p", "code", language="fr")]) == []
    of_run = one(linted(text % "language: de", prompts=[prompt("p", "code")]))
    assert (of_run.level, of_run.line) == ("error", 3)
    assert "cannot be rendered for a prompt with the tags code: 'meta" in of_run.problem
    without = one(linted(text % "lang: de"))
    assert (without.level, without.line) == ("error", 3)
    assert "comparison cannot be rendered for a prompt with the tags code and the metadata" in (
        without.problem
    )


def test_a_wording_that_needs_what_most_prompts_lack_is_a_warning(linted: Lint) -> None:
    found = one(linted('- text: Be clear.\n  critique: "Say in {{ metadata.language }} why."\n'))
    assert (found.level, found.line, found.principle) == ("warning", 2, "be-clear")
    assert found.problem.startswith("critique cannot be rendered for a prompt without tags and")
    assert "has no attribute 'language'" in found.problem
    assert "'bare'" not in found.problem


@pytest.mark.parametrize(
    ("wording", "said"),
    [
        ("""{{ text[['__cl', 'ass__'] | join] }}""", "'__class__' of 'str' object is unsafe"),
        ("{{ text | truncate(1) }}", "expected length >= 3"),
        ("{{ tags | map('upper') }}", "a generator is no text"),
        ("{{ [text] | map('random') | list }}", "No filter named 'random'"),
        ("{{ self }}", "a TemplateReference is no text"),
        ("{{ '\\\\ud800' }}", "surrogates not allowed"),
    ],
)
def test_what_no_prompt_can_make_right_is_an_error(linted: Lint, wording: str, said: str) -> None:
    found = one(linted(f'- text: Be clear.\n  critique: "{wording} why"\n'))
    assert found.level == "error"
    assert said in found.problem


def test_a_rule_of_signs_alone_says_nothing(linted: Lint) -> None:
    assert "its text says nothing" in [f.problem for f in linted("- Be kind.\n- '…'\n")]


def test_a_tier_without_weight_is_told_of(linted: Lint) -> None:
    text = """\
    - text: Be kind.
    - text: Say what is so.
      tier: 2
      weight: {}
    - text: Keep it short.
      tier: 2
      weight: 0
    """
    assert linted(text.format("0.5")) == []
    found = one(linted(text.format("0")))
    assert (found.level, found.line) == ("warning", 4)
    assert found.problem.startswith("the weights of tier 2 sum to nothing")


@pytest.mark.parametrize(
    ("condition", "level", "said"),
    [
        ("metadata.turns > 3 and metadata.turns < 2", "error", "no prompt can meet"),
        ("'code' in tags and 'code' not in tags", "error", "no prompt can meet"),
        ("'code' in tags or 'code' not in tags", "warning", "every prompt meets"),
        ("'cod' in tags", "warning", "none of the 2 prompts meets"),
        ("'code' in tags", "", ""),
        ("metadata.turns > 2 and metadata.turns < 3", "warning", "none of the 2 prompts meets"),
    ],
)
def test_a_condition_that_none_or_every_prompt_meets(
    linted: Lint, condition: str, level: str, said: str
) -> None:
    prompts = [prompt("a", "code"), prompt("b", turns=4)]
    text = f'- Say what is so.\n- text: Be kind.\n  applies_when: "{condition}"\n'
    found = linted(text, prompts=prompts)
    assert [(f.level, f.line) for f in found] == ([(level, 3)] if level else [])
    assert all(f.problem.startswith(f"{said} `applies_when`") for f in found)


def test_prompts_to_which_no_rule_with_weight_applies_are_counted(linted: Lint) -> None:
    text = "- text: Be kind.\n  applies_when: \"'code' in tags\"\n- {text: Be brief., weight: 0}\n"
    prompts = [prompt("a", "code"), prompt("b"), prompt("c")]
    found = one(linted(text, prompts=prompts))
    assert found.problem.startswith("no principle applies to 2 of the 3 prompts, such as 'b'")


def test_a_wording_longer_than_half_the_context_is_a_warning_and_than_all_of_it_an_error(
    linted: Lint,
) -> None:
    # 4 bytes a token: text 8 / 4 = 2 (with the question one number), question 1992 / 4.
    text = f"- text: Be kind.\n  comparison: {'x' * 1992}\n"  # (8 + 1992) // 4 + 100 = 600
    assert linted(text, context_tokens=1200) == []
    half = one(linted(text, context_tokens=1198))
    assert (half.level, half.line) == ("warning", 2)
    assert "about 600 tokens of a context of 1,198" in half.problem
    assert one(linted(text, context_tokens=599)).level == "error"
    assert linted(text, context_tokens=None) == []


def test_examples_count_into_the_length_with_the_question_that_each_repeats(linted: Lint) -> None:
    text = f"""\
    - text: Be kind.
      comparison: {"x" * 1992}
      examples:
        - {{prompt: {"p" * 400}, chosen: {"c" * 400}, rejected: {"r" * 400}}}
    """
    # 600 for the question, 600 + 1200 / 4 for the example with its question.
    assert "about 1,500 tokens" in one(linted(text, context_tokens=2000)).problem


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("{prompt: Hi, chosen: a, rejected: b}", "names no principle"),
        ("{principle: be-knid, prompt: Hi, chosen: a, rejected: b}", "names 'be-knid'"),
        ("{principle: '*', prompt: Hi, response: a, complies: true}", "no single principle"),
        (
            "{principle: be-brief, prompt: Hi, tags: [prose], chosen: a, rejected: b}",
            "its prompt does not meet `applies_when`",
        ),
    ],
)
def test_a_test_that_cannot_be_asked_is_an_error(linted: Lint, test: str, said: str) -> None:
    found = one(
        linted(f"""\
        principles:
          - Be kind.
          - text: Be brief.
            applies_when: "'code' in tags"
        tests:
          - {{principle: be-brief, prompt: Hi, tags: [code], chosen: a, rejected: b}}
          - {{principle: '*', prompt: Hi, chosen: a, rejected: b}}
          - {test}
        """)
    )
    assert (found.level, found.line) == ("error", 8)
    assert said in found.problem
    assert "the test 'Hi'" in found.problem
    if "knid" in test:
        assert found.fix == "did you mean 'be-kind'?"


def test_a_test_of_the_whole_constitution_of_which_no_rule_applies_is_an_error(
    linted: Lint,
) -> None:
    found = one(
        linted("""\
        principles:
          - text: Be brief.
            applies_when: "'code' in tags"
        tests:
          - {principle: '*', prompt: Hi, chosen: a, rejected: b}
        """)
    )
    assert (found.level, found.line) == ("error", 5)
    assert "no principle applies to its prompt" in found.problem


@pytest.mark.parametrize(
    ("second", "level", "said"),
    [
        ("{prompt: Hi, chosen: b,  rejected: a}", "error", "contradicts the one at"),
        ("{prompt: Hi, chosen: a, rejected: b, name: again}", "warning", "already stands at"),
        ("{prompt: Hi, chosen: a, rejected: c}", "", ""),
        ("{prompt: Ho, chosen: b, rejected: a}", "", ""),
        ("{prompt: Hi, tags: [x], chosen: b, rejected: a}", "", ""),
        ("{prompt: Hi, response: r, complies: false}", "error", "contradicts the one at"),
        ("{prompt: Hi, response: ' r', complies: true}", "warning", "already stands at"),
        ("{prompt: Hi, response: q, complies: false}", "", ""),
    ],
)
def test_tests_that_contradict_or_repeat_each_other(
    linted: Lint, second: str, level: str, said: str
) -> None:
    found = linted(f"""\
    - text: Be kind.
      tests:
        - {{prompt: Hi, chosen: a, rejected: b}}
        - {{prompt: Hi, response: r, complies: true}}
        - {second}
    - text: Say what is so.
      tests:
        - {{prompt: Hi, chosen: b, rejected: a}}
    """)
    assert [(f.level, f.line, f.principle) for f in found] == (
        [(level, 5, "be-kind")] if level else []
    )
    assert all(said in f.problem for f in found)


def test_an_example_that_shows_a_tests_answer_is_told_of(linted: Lint) -> None:
    text = """\
    - text: Be kind.
      examples:
        - {prompt: Hi, chosen: a, rejected: b}
      tests:
        - {prompt: Hi, chosen: %s, rejected: a}
    """
    assert "the judge is shown the answer" in one(linted(text % "b")).problem
    assert linted(text % "c") == []


def test_examples_of_which_some_lack_a_critique_or_a_difference(linted: Lint) -> None:
    text = """\
    - text: Be kind.
      examples:
        - {prompt: Hi, chosen: a, rejected: b%s}
        - {prompt: Ho, chosen: a, rejected: %s}
    """
    assert linted(text % ("", "b")) == []
    some = one(linted(text % (", critique: Cold.", "b")))
    assert (some.level, some.line) == ("warning", 2)
    assert some.problem.startswith("1 of 2 examples have no critique")
    same = one(linted(text % ("", "'a '")))
    assert (same.level, same.problem[:25]) == ("error", "chosen and rejected of ex")


def test_rules_without_a_test_are_one_finding_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("".join(f"- Rule about {c}x.\n" for c in "abcdefghij"))
    (tmp_path / "own.yaml").write_text(
        "extends: base\nprinciples:\n  - Be kind.\n  - text: Be brief.\n    tests:\n"
        "      - {prompt: Hi, chosen: a, rejected: b}\n"
    )
    base, own = lint_path(str(tmp_path / "own.yaml"))
    assert (base.file.name, base.line, base.level) == ("base.yaml", 1, "warning")
    assert base.problem.endswith("rule-about-hx and 2 more")
    assert (own.file.name, own.line) == ("own.yaml", 3)
    assert own.problem == "no test shows what these principles mean: be-kind"


def test_findings_are_told_in_the_order_of_the_file(linted: Lint) -> None:
    found = linted("""\
    - text: Be kind.
      comparison: So?
      tests:
        - {prompt: Hi, chosen: a, rejected: b}
        - {prompt: Hi, chosen: b, rejected: a}
    - text: Be kind
      applies_when: "'a' in tags and 'a' not in tags"
    """)
    assert [f.line for f in found] == [2, 5, 6, 7]


@pytest.mark.parametrize(
    ("text", "line", "principle", "said"),
    [
        ("- id: kind\n  text: Be kind.\n  critique: '{{ txt }}'\n", 3, "kind", "'txt'"),
        ("- id: kind\n  text: Be kind.\n  critique: '{{ text'\n", 3, "kind", "not valid Jinja"),
        (
            "- id: kind\n  text: Be kind.\n  critique: '{{ text.__class__ }}'\n",
            3,
            "kind",
            "critique: reaches for '__class__'",
        ),
        (
            "- id: kind\n  text: Be kind.\n  critique: '{{ text * 999999999999 }}'\n",
            3,
            "kind",
            "uses '*', which a wording may not",
        ),
        *(
            (f"- id: kind\n  text: Be kind.\n  critique: {json.dumps(wording)}\n", 3, "kind", said)
            for wording, said in (
                ("{{ text.center(999999999) }}", "reaches for 'center'"),
                ("{{ text | center(999999999) }}", "reaches for 'center'"),
                ("{{ tags | random }}", "No filter named 'random'"),
                ("{{ '' ~ metadata.keys }}", "uses '~'"),
                ("{{ [text.upper] | join }}", "write upper()"),
                ("{{ text.lenght }}", "text has no 'lenght'"),
                ("{% set a = text %}" * 9, "sets more than 8 names"),
                ("{% if 1 %}" * 105 + "a" + "{% endif %}" * 105, "is nested too deeply"),
                ("{% for a in text %}{% for b in text %}{% endfor %}{% endfor %}", "no loop in a"),
                ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "no macros"),
                ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "is nested too deeply"),
            )
        ),
        ("- text: A.\n  applies_when: 'metadata.n > 1" + "0" * 400 + "'\n", 2, "", "2**53"),
        ("- text: A.\n  applies_when: '" + "not " * 3000 + "metadata.n'\n", 2, "", "too deeply"),
        ("- {text: A., weight: 1e+308}\n- {text: B., weight: 1e+308}\n", 1, "", "infinity"),
        ("- A.\n- B\x01.\n", 2, "", "the character #x0001, column 4"),
        ('- text: A.\n  tests: [{name: "\\ud83d", prompt: a}]\n', 2, "", "surrogates"),
        ("- Be honest: do not lie.\n", 1, "", "no such field 'Be honest'"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n"
                for p, c in zip("abcdef", "bcdefg", strict=True)
            ),
            None,
            "",
            "holds more than 200,000 values",
        ),
        ("- {id: kind, text: A.}\n- {id: kind, text: B.}\n", 2, "", "stands twice"),
        ("- {id: kind, text: A., weight: 0}\n", 1, "", "sum to nothing"),
        ("- {id: kind, id: kind}\n", 1, "", "stands twice"),
        ("- 'A.\n", None, "", "not valid YAML"),
    ],
)
def test_what_keeps_a_file_from_being_loaded_is_one_error(
    linted: Lint, text: str, line: int | None, principle: str, said: str
) -> None:
    found = one(linted(text))
    assert (found.level, found.principle) == ("error", principle)
    assert said in found.problem
    assert line is None or found.line == line


def test_all_mistakes_that_keep_a_file_from_being_loaded_are_told_at_once(linted: Lint) -> None:
    found = linted("""
    id: mine
    principles:
      - text: Be kind.
        wieght: 2
      - id: plain
        text: Be plain.
        weight: heavy
        critique: "{{ txt }}"
    tests:
      - {prompt: Hi, chosen: a}
    """)
    assert [(f.line, f.principle) for f in found] == [(5, ""), (8, ""), (9, "plain"), (11, "")]
    assert {f.level for f in found} == {"error"}


def test_a_file_that_is_not_there_is_no_finding(empty_place: Path) -> None:
    with pytest.raises(SetupError, match="neither a file nor one of ours"):
        lint_path("nowhere")


def test_a_finding_reads_like_a_compilers(linted: Lint, tmp_path: Path) -> None:
    found = one(linted("- text: Be clear.\n  comparison: So?\n"))
    place = tmp_path / "own.yaml"
    assert str(found) == (
        f"{place}:2: warning: be-clear: comparison is nearly empty for a prompt without tags and "
        "metadata (say more)"
    )
    assert str(found.as_error()).startswith(f"{place}:2: principles[be-clear]: comparison is")


def doubled(rules: list[str], folder: Path) -> list[tuple[str, int | None]]:
    path = folder / "own.yaml"
    path.write_text("".join(f"- {rule}\n" for rule in rules))
    return [(f.level, f.line) for f in lint_path(str(path)) if "same" in f.problem]


@given(
    topics=st.sets(st.text("abcdefgh", min_size=4, max_size=8), min_size=4, max_size=20),
    data=st.data(),
)
@settings(max_examples=40)
def test_of_rules_about_different_things_only_the_copy_of_one_is_found(
    topics: set[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, words = tmp_path_factory.mktemp("rules"), sorted(topics)
    rules = [f"Speak of {words[i]} and {words[i + 1]}." for i in range(0, len(words) - 1, 2)]
    assert doubled(rules, folder) == []
    copied = data.draw(st.integers(0, len(rules) - 1), label="copied")
    to = data.draw(st.integers(copied + 1, len(rules)), label="to")
    twice = [*rules[:to], rules[copied].upper(), *rules[to:]]
    assert doubled(twice, folder) == [("error", to + 1)]


def test_rules_that_are_all_frame_are_compared_whole(linted: Lint) -> None:
    """More than half of the six use the words of the last two, which so tell nothing of one."""
    found = linted(
        "include: [hhh]\nprinciples:\n- Never be kind to people or animals.\n"
        "- Be kind to people and animals.\n- Be kind to animals and people.\n"
    )
    assert [f.line for f in found if "says nearly the same as" in f.problem] == [5]

"""Other people's constitutions come in and go out again, and ours are written as YAML."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.constitution import (
    Case,
    Constitution,
    Example,
    Principle,
    load_constitution,
    read_constitution,
)
from rlaif.constitution.formats import (
    FORMATS,
    export_constitution,
    import_constitution,
    prompt_rows,
)
from rlaif.constitution.lint import lint_path
from rlaif.constitution.model import WORDINGS, derived
from rlaif.constitution.wording import template
from rlaif.constitution.writing import SCHEMA_LINE, starter, to_yaml
from rlaif.datasets import load_prompts
from rlaif.errors import SetupError
from rlaif.types import Message, Prompt

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "constitutions"
BLANK = Prompt(id="p", messages=(Message(role="user", content="Hello."),))

PAIRS = {
    "rude0": {
        "prompt": ["\n\nCritiqueRequest: Where is the answer rude?\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Make the answer polite.\n\nRevision:",
    },
    "long_1": {
        "prompt": ["\n\nCritiqueRequest: Where does the answer ramble?\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Make the answer short.\n\nRevision:",
    },
}
CHOICES = [
    "\nWhich answer is kinder to the person? Options:",
    "\nPick the answer that {% raw %} and {{ braces }} do not upset. Options:",
]
CHAT = [
    {"role": "user", "content": "Is my poem good?"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Where is the answer rude?"},
    {"role": "assistant", "content": "It gives no reason and no comfort."},
    {"role": "user", "content": "Make the answer polite."},
    {"role": "assistant", "content": "The second verse is; the first needs work."},
]
OTHER_CHAT = [*CHAT[:4], {"role": "user", "content": "Make it rhyme."}, CHAT[5]]
SWARM = {
    "constitutions": [
        {"critic": "Where does the answer ramble?", "revision": "Make the answer short."},
        {"critic": "Where is the answer rude?", "revision": "Make the answer polite."},
    ],
    "system_chat": [CHAT],
}
NEMO = """\
Judge the answers, please, and say which you like.

```CONSTITUTION
What a good answer is like:

  1. Pick the answer that is kind,
     even to the rude.

  2. Pick the answer that is true.

Nothing else counts.
```
"""
TRAITS = [
    {
        "trait": "I like plain words.",
        "clarification": "Short ones, most of all.",
        "questions": ["What is osmosis?", "Explain {{ rent }}."],
        "additional_questions": ["How do tides work?"],
    },
    {"trait": "I am calm.", "questions": ["You are wrong!"]},
]
PRINCIPLES = ["Select the answer that is shorter.", "Select the answer that has a list."]
ANNOTATED = {
    "metadata": {"version": "1.0"},
    "annotators": {
        "aa": {"name": "preferred_text", "description": "people", "type": "human"},
        "bb": {"description": PRINCIPLES[0], "type": "principle"},
    },
    "comparisons": [{"id": "1", "annotations": {"bb": {"pref": "text_a"}}}],
}


def put(folder: Path, content: Any, name: str = "some file.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def through_yaml(constitution: Constitution) -> Constitution:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.yaml"
        path.write_text(to_yaml(constitution), encoding="utf-8", newline="")
        return load_constitution(str(path))[0]


def through(constitution: Constitution, format: str) -> Constitution:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.json"
        text = export_constitution(constitution, format)
        path.write_text(text, encoding="utf-8", newline="")
        return import_constitution(path, format=format, id=constitution.id).constitution


def small(**fields: Any) -> Constitution:
    return Constitution(id="c", principles=(Principle(id="kind", text="Be kind.", **fields),))


odd = st.text(
    alphabet=st.one_of(
        st.sampled_from(" \n\t:#-'\"{}%\\&*!|>,.aé—😀\u2028\x85\r\x00\ufeff\x7f\ufffe"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)
prose = st.lists(
    st.sampled_from(["a", "word", "- x", "# y", "{{ z }}", "don't", "\n", "\n\n", "  in", "end "]),
    max_size=40,
).map(" ".join)
texts = (odd | prose).map(str.strip).filter(bool)
scalars = st.booleans() | st.integers() | st.floats(allow_nan=False) | odd
messages = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "assistant", "user"]), content=odd),
    max_size=2,
).flatmap(lambda before: odd.map(lambda last: [*before, Message(role="user", content=last)]))
answers = st.one_of(
    st.tuples(texts, texts)
    .filter(lambda two: two[0] != two[1])
    .map(lambda two: {"chosen": two[0], "rejected": two[1]}),
    st.tuples(texts, st.booleans()).map(lambda one: {"response": one[0], "complies": one[1]}),
)
cases = st.builds(
    lambda common, said: Case(**common, **said),
    st.fixed_dictionaries(
        {
            "prompt": messages,
            "name": odd,
            "tags": st.lists(odd, max_size=2),
            "metadata": st.dictionaries(odd, scalars, max_size=2),
            "principle": st.sampled_from(["", "*", "p0", "p1", "p2", "gone"]),
        }
    ),
    answers,
)
wordings = st.just("") | texts.map(template) | st.just("Of {{ text }}: {{ tags }}")
examples = st.builds(Example, prompt=texts, chosen=texts, rejected=texts, critique=odd)
principles = st.fixed_dictionaries(
    {
        "text": texts,
        "weight": st.floats(min_value=0.1, max_value=1e9) | st.just(1.0),
        "tier": st.integers(1, 3),
        "tags": st.lists(st.sampled_from(["safety", "on", "1", "cluster-3"]), max_size=2),
        "applies_when": st.sampled_from(["", "'code' in tags", "metadata.turns > 2"]),
        "examples": st.lists(examples, max_size=1),
        **dict.fromkeys(WORDINGS, wordings),
    }
)
constitutions = st.builds(
    lambda version, described, fields, tests: Constitution(
        id="made-up",
        version=version,
        description=described,
        principles=tuple(Principle(id=f"p{i}", **one) for i, one in enumerate(fields)),
        tests=tuple(tests),
    ),
    texts,
    odd.map(str.strip),
    st.lists(principles, min_size=1, max_size=3),
    st.lists(cases, max_size=4),
)


# YAML that we write


@settings(max_examples=150, deadline=None)
@given(constitutions)
def test_what_is_written_as_yaml_reads_back_equal(constitution: Constitution) -> None:
    assert through_yaml(constitution) == constitution


@pytest.mark.parametrize("name", ["hhh", "harmless", "concise"])
def test_our_own_constitutions_survive_being_written_again(name: str) -> None:
    constitution, _ = load_constitution(name)
    assert through_yaml(constitution) == constitution
    assert max(map(len, to_yaml(constitution).splitlines())) <= 100


def test_defaults_and_derived_wordings_are_left_out_and_tests_stand_under_their_principle() -> None:
    constitution = Constitution(
        id="small",
        principles=(
            Principle(id="kind", text="Be kind. " * 12, revision="Be {{ text }}"),
            Principle(id="true", text="Say what is: the truth.", weight=2, tags=("facts",)),
        ),
        tests=(
            Case(principle="kind", prompt="Hi", chosen="Hello!", rejected="What?"),
            Case(principle="*", prompt="Bye", response="See you.\n\n  Soon.", complies=True),
        ),
    )
    assert to_yaml(constitution) == SCHEMA_LINE + (
        "id: small\n"
        "principles:\n"
        "  - id: kind\n"
        "    text: >-\n"
        f"      {'Be kind. ' * 8}Be kind.\n"
        "      Be kind. Be kind. Be kind.\n"
        "    revision: Be {{ text }}\n"
        "    tests:\n"
        "      - prompt: Hi\n"
        "        chosen: Hello!\n"
        "        rejected: What?\n"
        "  - id: 'true'\n"
        "    text: 'Say what is: the truth.'\n"
        "    weight: 2.0\n"
        "    tags: [facts]\n"
        "tests:\n"
        "  - principle: '*'\n"
        "    prompt: Bye\n"
        "    response: |-\n"
        "      See you.\n"
        "\n"
        "        Soon.\n"
        "    complies: true\n"
    )


def test_tests_that_are_out_of_the_principles_order_stay_in_theirs() -> None:
    def case(principle: str, prompt: str) -> Case:
        return Case(principle=principle, prompt=prompt, response="Yes.", complies=True)

    ids = ("a", "b", "c")
    constitution = Constitution(
        id="three",
        principles=tuple(Principle(id=i, text=f"Rule {i}.") for i in ids),
        tests=(case("a", "1"), case("c", "2"), case("b", "3"), case("c", "4")),
    )
    written = to_yaml(constitution)
    assert through_yaml(constitution) == constitution
    assert written.index("prompt: '2'") < written.index("\ntests:") < written.index("prompt: '3'")


def test_the_starter_loads_lints_clean_and_its_tests_meet_their_conditions(tmp_path: Path) -> None:
    path = put(tmp_path, starter("house-style"), "house-style.yaml")
    constitution = read_constitution(str(path)).constitution
    assert constitution.id == "house-style"
    assert [str(finding) for finding in lint_path(str(path))] == []
    by_id = {principle.id: principle for principle in constitution.principles}
    assert {case.principle for case in constitution.tests} == set(by_id)
    assert all(by_id[case.principle].applies(case.as_prompt()) for case in constitution.tests)
    assert not by_id["code-is-shown"].applies(BLANK)
    assert max(map(len, path.read_text("utf-8").splitlines())) <= 100


def test_a_starter_is_not_made_with_an_id_that_cannot_be_one() -> None:
    with pytest.raises(SetupError, match="'House Style' cannot be an id"):
        starter("House Style")


# Formats: what comes in


@pytest.mark.parametrize("name", ["CritiqueRevisionInstructions", "RLMadisonInstructions"])
def test_anthropics_own_files_come_in_and_go_out_as_they_were(name: str) -> None:
    path = REAL / f"{name}.json"
    if not path.is_file():
        pytest.skip("Anthropic's constitutions are not on this machine")
    found = import_constitution(path)
    assert found.constitution.id == name.casefold()
    assert len(found.constitution.principles) == 16
    assert through_yaml(found.constitution) == found.constitution
    again = json.loads(export_constitution(found.constitution, found.format))
    assert again == json.loads(path.read_text("utf-8"))


def test_critique_and_revision_requests_come_without_their_role_markers(tmp_path: Path) -> None:
    found = import_constitution(put(tmp_path, PAIRS))
    assert (found.format, found.constitution.id) == ("cai-critique-revision", "some-file")
    rude, long = found.constitution.principles
    assert (rude.id, long.id) == ("rude0", "long_1")
    assert rude.text == "Make the answer polite."
    assert rude.critique == "Where is the answer rude?"
    asked = rude.worded(BLANK)
    assert asked.revision == "Make the answer polite."
    assert "Make the answer polite." in asked.comparison
    assert len(found.notes) == 1
    assert found.notes[0].startswith("the question for judges is made")
    assert json.loads(export_constitution(found.constitution, found.format)) == PAIRS


def test_a_key_that_can_be_no_id_is_changed_and_that_is_noted(tmp_path: Path) -> None:
    found = import_constitution(put(tmp_path, {"No Lies!": PAIRS["rude0"]}))
    assert found.constitution.principles[0].id == "no-lies"
    assert found.notes[0] == (
        "No Lies!: is called 'no-lies' here, as an id has only a-z, 0-9, - and _"
    )


def test_instructions_to_choose_become_the_question_and_keep_their_braces(tmp_path: Path) -> None:
    found = import_constitution(put(tmp_path, CHOICES), id="mine")
    assert (found.format, found.constitution.id) == ("cai-comparison", "mine")
    kind, braces = found.constitution.principles
    assert (kind.id, braces.id) == ("answer-kinder-person", "pick-answer-raw-braces")
    assert braces.text == "Pick the answer that {% raw %} and {{ braces }} do not upset."
    assert braces.worded(BLANK).comparison == braces.text
    assert json.loads(export_constitution(found.constitution, found.format)) == CHOICES


def test_llm_swarms_chats_become_examples_of_the_principle_that_they_follow(tmp_path: Path) -> None:
    found = import_constitution(put(tmp_path, SWARM))
    assert found.format == "llm-swarm"
    short, polite = found.constitution.principles
    assert short.examples == ()
    assert polite.examples == (
        Example(
            prompt="Is my poem good?",
            chosen="The second verse is; the first needs work.",
            rejected="No.",
            critique="It gives no reason and no comfort.",
        ),
    )
    assert through_yaml(found.constitution) == found.constitution
    assert json.loads(export_constitution(found.constitution, "llm-swarm")) == SWARM


def test_llm_swarms_older_list_has_no_chats(tmp_path: Path) -> None:
    found = import_constitution(put(tmp_path, SWARM["constitutions"]))
    again = json.loads(export_constitution(found.constitution, found.format))
    assert again == {"constitutions": SWARM["constitutions"], "system_chat": []}


def test_llm_swarms_chats_that_fit_no_principle_are_named(tmp_path: Path) -> None:
    longer = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, *CHAT]
    content = {**SWARM, "system_chat": [OTHER_CHAT, CHAT, longer], "seed": 3}
    found = import_constitution(put(tmp_path, content))
    assert found.notes[:3] == (
        "seed: not kept; a constitution has no place for it",
        "system_chat[0]: not kept as an example: its two requests are no principle's",
        "system_chat[2]: not kept as an example: it is no prompt, response, critique request, "
        "critique, revision request and revision",
    )
    assert [len(p.examples) for p in found.constitution.principles] == [0, 1]


def test_of_two_entries_that_ask_the_same_the_first_has_the_examples(tmp_path: Path) -> None:
    twice = {**SWARM, "constitutions": [SWARM["constitutions"][1]] * 2}
    found = import_constitution(put(tmp_path, twice))
    assert [len(p.examples) for p in found.constitution.principles] == [1, 0]
    assert found.notes[0].startswith("constitutions[1]: says the same as 'make-answer-polite'")
    assert json.loads(export_constitution(found.constitution, "llm-swarm")) == twice


def test_nemos_numbered_text_is_read_with_what_is_said_around_the_list(tmp_path: Path) -> None:
    found = import_constitution(put(tmp_path, NEMO, "sys_prompt_constitution"))
    assert found.format == "nemo-aligner"
    assert [p.text for p in found.constitution.principles] == [
        "Pick the answer that is kind, even to the rude.",
        "Pick the answer that is true.",
    ]
    assert found.constitution.description == "What a good answer is like:\n\nNothing else counts."
    assert found.notes[0] == "[0]: goes on over several lines, which are one principle here"
    assert found.notes[1].startswith("the instructions around the CONSTITUTION are not kept")
    assert through_yaml(found.constitution) == found.constitution
    assert through(found.constitution, "nemo-aligner") == found.constitution


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{NEMO}\n{NEMO}", "has 2 CONSTITUTION blocks"),
        ("```CONSTITUTION\n1. Be good.\n2.\nBe kind.\n```\n", "[1]: the number '2.' has no text"),
    ],
)
def test_numbered_principles_that_would_be_lost_are_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(SetupError) as e:
        import_constitution(put(tmp_path, text, "sys_prompt_constitution"))
    assert said in str(e.value)


def test_a_list_inside_a_numbered_principle_stays_one(tmp_path: Path) -> None:
    text = "```CONSTITUTION\n1. Be good:\n  - to all\n2. Be kind.\n```\n"
    found = import_constitution(put(tmp_path, text, "sys_prompt_constitution"))
    assert [p.text for p in found.constitution.principles] == ["Be good:\n- to all", "Be kind."]
    assert through(found.constitution, "nemo-aligner") == found.constitution


def test_nemos_few_shot_samples_make_a_principle_of_every_two_requests(tmp_path: Path) -> None:
    found = import_constitution(put(tmp_path, {"samples": [CHAT, OTHER_CHAT, CHAT]}))
    assert found.format == "nemo-aligner"
    polite, rhyme = found.constitution.principles
    assert (polite.text, len(polite.examples)) == ("Make the answer polite.", 2)
    assert (rhyme.text, len(rhyme.examples)) == ("Make it rhyme.", 1)


def test_nemos_copy_of_anthropics_file_is_read_under_its_name_too(tmp_path: Path) -> None:
    path = put(tmp_path, PAIRS)
    named = import_constitution(path, format="nemo-aligner")
    assert named.format == "nemo-aligner"
    assert named.constitution == import_constitution(path).constitution


@pytest.mark.parametrize(("written", "name"), [(lines, "plain.jsonl"), (json.dumps, "plain.txt")])
def test_traits_become_principles_and_their_questions_prompts(
    tmp_path: Path, written: Callable[[Any], str], name: str
) -> None:
    found = import_constitution(put(tmp_path, written(TRAITS), name))
    assert found.format == "open-character"
    plain, calm = found.constitution.principles
    assert (plain.id, calm.id) == ("like-plain-words", "am-calm")
    assert plain.text == "I like plain words.\n\nShort ones, most of all."
    assert plain.text in plain.worded(BLANK).comparison
    assert [(p.id, p.messages[0].content, p.tags) for p in found.prompts] == [
        ("like-plain-words-01", "What is osmosis?", ("like-plain-words",)),
        ("like-plain-words-02", "Explain {{ rent }}.", ("like-plain-words",)),
        ("like-plain-words-03", "How do tides work?", ("like-plain-words",)),
        ("am-calm-01", "You are wrong!", ("am-calm",)),
    ]
    assert through_yaml(found.constitution) == found.constitution
    again = export_constitution(found.constitution, found.format, found.prompts)
    assert [json.loads(row) for row in again.splitlines()] == TRAITS
    rows = put(tmp_path, prompt_rows(found.prompts), "questions.jsonl")
    assert load_prompts(str(rows)) == found.prompts


def test_a_file_of_one_trait_is_still_lines(tmp_path: Path) -> None:
    found = import_constitution(put(tmp_path, {"trait": "I am calm.", "clarification": None}))
    assert (found.format, len(found.constitution.principles)) == ("open-character", 1)
    assert found.constitution.principles[0].text == "I am calm."


def test_inverse_constitutional_ais_files_are_all_read(tmp_path: Path) -> None:
    clusters = {"4": PRINCIPLES[0], "11": PRINCIPLES[1]}
    numbered = "\n".join(f"{i}. {text}" for i, text in enumerate(PRINCIPLES, 1))
    for content, tags in [
        (PRINCIPLES, [(), ()]),
        (clusters, [("cluster-4",), ("cluster-11",)]),
        (json.dumps(numbered), [(), ()]),
    ]:
        found = import_constitution(put(tmp_path, content))
        assert found.format == "icai"
        assert [p.text for p in found.constitution.principles] == PRINCIPLES
        assert [p.tags for p in found.constitution.principles] == tags
        written = json.loads(export_constitution(found.constitution, "icai"))
        assert written == (clusters if content is clusters else PRINCIPLES)


def test_annotated_pairs_give_their_principles_and_say_that_the_pairs_stay_behind(
    tmp_path: Path,
) -> None:
    found = import_constitution(put(tmp_path, ANNOTATED))
    assert [p.text for p in found.constitution.principles] == PRINCIPLES[:1]
    assert found.notes[0].startswith("1 comparisons with their votes, 1 other annotators")


def test_our_own_json_keeps_all_and_is_checked_against_the_hash_beside_it(tmp_path: Path) -> None:
    constitution, _ = load_constitution("hhh")
    plain = constitution.model_dump(mode="json")
    found = import_constitution(put(tmp_path, {**plain, "hash": constitution.hash}))
    assert (found.format, found.constitution, found.notes) == ("rlaif", constitution, ())
    changed = import_constitution(put(tmp_path, {**plain, "hash": "0" * 64}))
    assert changed.notes == (
        "hash: is not that of the content; it was changed after it was written",
    )


def test_an_entry_that_stands_twice_is_kept_and_noted(tmp_path: Path) -> None:
    found = import_constitution(put(tmp_path, [PRINCIPLES[0], PRINCIPLES[1], PRINCIPLES[0]]))
    assert [p.id for p in found.constitution.principles] == [
        "answer-shorter",
        "answer-has-list",
        "answer-shorter-2",
    ]
    assert found.notes[0] == (
        "[2]: says the same as 'answer-shorter'; both are kept, so it votes twice"
    )


def test_a_file_saved_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PRINCIPLES).encode())
    assert import_constitution(path).format == "icai"


# Formats: there and back


def listed(said: list[str]) -> dict[str, Any]:
    """The same texts as each format has them."""
    return {
        "cai-comparison": [f"\n{text} Options:" for text in said],
        "icai": said,
        "open-character": [{"trait": text} for text in said],
        "cai-critique-revision": {
            f"harmful{i}": {
                "prompt": [f"\n\nCritiqueRequest: {text}\n\nCritique:"],
                "edit_request": f"\n\nRevisionRequest: {text}\n\nRevision:",
            }
            for i, text in enumerate(said)
        },
        "llm-swarm": {
            "constitutions": [{"critic": text, "revision": text} for text in said],
            "system_chat": [],
        },
    }


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, min_size=1, max_size=3))
def test_any_text_comes_through_any_format_as_it_was(said: list[str]) -> None:
    for format, content in listed(said).items():
        with tempfile.TemporaryDirectory() as folder:
            found = import_constitution(put(Path(folder), content), format=format).constitution
        assert [p.text for p in found.principles] == said
        if format in ("cai-comparison", "icai"):
            assert [p.worded(BLANK).comparison for p in found.principles] == said
        if format in ("cai-critique-revision", "llm-swarm"):
            asked = [p.worded(BLANK) for p in found.principles]
            assert [(p.critique, p.revision) for p in asked] == [(t, t) for t in said]
        assert through_yaml(found) == found
        assert through(found, "rlaif") == found
        written = export_constitution(found, format)
        if format == "open-character":
            rows = [json.loads(row) for row in written.split("\n") if row]
            assert ["\n\n".join(row.values()) for row in rows] == said
        else:
            assert json.loads(written) == content


def imported(said: list[str], format: str) -> Constitution:
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder), listed(said)[format])
        return import_constitution(path, format=format, id="c").constitution


changes = st.fixed_dictionaries(
    {},
    optional={
        "weight": st.sampled_from([1.0, 3.0]),
        "tags": st.sampled_from([(), ("cluster-3",), ("safety",)]),
        "applies_when": st.sampled_from(["", "'a' in tags"]),
        **dict.fromkeys(WORDINGS, texts.map(template)),
        "text": texts,
    },
)
nearly = st.builds(
    lambda one, change: one.model_copy(
        update={"principles": (one.principles[0].model_copy(update=change), *one.principles[1:])}
    ),
    st.builds(
        imported,
        st.lists(texts, min_size=1, max_size=2),
        st.sampled_from(["icai", "llm-swarm", "open-character", "cai-critique-revision"]),
    ),
    changes,
)


@settings(max_examples=100, deadline=None)
@given(constitutions | nearly, st.sampled_from(sorted(FORMATS)))
def test_what_is_exported_is_all_there_when_it_is_read_again(
    constitution: Constitution, format: str
) -> None:
    try:
        again = through(constitution, format)
    except SetupError:
        if format == "rlaif":
            raise
        return
    same = ("weight", "tier", "tags", "applies_when", "examples", "text")
    for before, after in zip(constitution.principles, again.principles, strict=True):
        one, other = before.model_dump(), after.model_dump()
        assert {name: one[name] for name in same} == {name: other[name] for name in same}
        for name, wording in derived(before.text).items():
            assert one[name] in (other[name], wording)
    assert again.tests == constitution.tests
    assert again.description == constitution.description


def test_a_list_of_sentences_can_go_where_sentences_are_all_there_is() -> None:
    constitution = small()
    assert json.loads(export_constitution(constitution, "icai")) == ["Be kind."]
    assert json.loads(export_constitution(constitution, "cai-comparison")) == [
        "\nBe kind. Options:"
    ]
    assert "\n1. Be kind.\n```" in export_constitution(constitution, "nemo-aligner")


@pytest.mark.parametrize(
    ("constitution", "format", "lost"),
    [
        (small(weight=2.0), "icai", "weight of 'kind'"),
        (small(tier=2), "nemo-aligner", "tier of 'kind'"),
        (small(applies_when="'a' in tags"), "cai-comparison", "applies_when of 'kind'"),
        (small(comparison="Which is kind?"), "open-character", "comparison of 'kind'"),
        (small(), "llm-swarm", "text of 'kind'"),
        (small().model_copy(update={"version": "2"}), "icai", "a version"),
        (small().model_copy(update={"description": "For us."}), "icai", "a description"),
        (
            small().model_copy(
                update={"tests": (Case(prompt="Hi", response="Hm.", complies=False),)}
            ),
            "icai",
            "tests",
        ),
        (
            small().model_copy(update={"description": "1. Be good."}),
            "nemo-aligner",
            "a line that looks like a principle",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    constitution: Constitution, format: str, lost: str
) -> None:
    with pytest.raises(SetupError, match=f"^c: {format} cannot hold {re.escape(lost)}"):
        export_constitution(constitution, format)


def test_a_wording_that_depends_on_the_prompt_cannot_leave() -> None:
    constitution = small(revision="For {{ metadata.who }}: be kind.")
    with pytest.raises(SetupError, match=r"principles\[kind\]\.revision: depends on the prompt: "):
        export_constitution(constitution, "llm-swarm")


def test_prompts_leave_only_with_the_format_that_has_them() -> None:
    with pytest.raises(SetupError, match="icai holds no prompts"):
        export_constitution(small(), "icai", [BLANK])
    with pytest.raises(SetupError, match="the prompt 'p' belongs to no trait"):
        export_constitution(small(), "open-character", [BLANK])


# Bad input


@pytest.mark.parametrize(
    ("content", "format", "said"),
    [
        ("", None, "some file.json: is empty"),
        ("[]", None, "some file.json: is empty"),
        ("{}", "llm-swarm", "is an empty object"),
        ("Be kind.", None, "some file.json:1: not valid JSON"),
        ("[\n'a'\n]", None, "some file.json:2: not valid JSON"),
        ('{"a": 1, "a": 2}', None, "'a' stands twice in one object"),
        ("[" * 100_000, None, "not usable JSON"),
        ('{"a": 1}', None, "no constitution in a format that is known"),
        ("3", None, "no constitution in a format that is known"),
        ([1], "icai", r"\[0\]: found 1"),
        ([PRINCIPLES[0], None], None, r"\[1\]: found null"),
        ([CHOICES[0], " \n"], None, r"\[1\]: is empty"),
        (["\n Options:"], None, r"\[0\]: is empty"),
        ('["a \\ud800 b"]', None, r"\[0\]: is no valid text"),
        (PAIRS, "cai-comparison", "found an object"),
        (CHOICES, "cai-critique-revision", "found a list"),
        ({"x": {"prompt": ["a"]}}, None, r"x\.edit_request: is missing \(it has: prompt\)"),
        ({"x": {"prompt": "a", "edit_request": "b"}}, None, r"x\.prompt: found text"),
        (
            {"x": {"prompt": ["a", "b"], "edit_request": "b"}},
            None,
            r"x\.prompt: has 2 critique requests; a principle has one",
        ),
        (
            {"x": {"prompt": ["\n\nCritiqueRequest: \n\nCritique:"], "edit_request": "b"}},
            None,
            r"x\.prompt\[0\]: is empty",
        ),
        ({"constitutions": [{"critic": "a"}]}, None, r"constitutions\[0\]\.revision: is missing"),
        ({"constitutions": []}, None, "constitutions: is an empty list"),
        (
            {**SWARM, "system_chat": [[{"role": "user"}]]},
            None,
            r"system_chat\[0\]\[0\]\.content: is missing",
        ),
        ({"samples": [CHAT, CHAT[:4]]}, None, r"samples\[1\]: is no prompt, response"),
        ("```CONSTITUTION\nBe kind.\n```\n", None, "has no numbered principles"),
        ("Be kind.", "nemo-aligner", "has no numbered principles"),
        ('{"a": 1', "nemo-aligner", ":1: not valid JSON"),
        (lines([TRAITS[0], {"trait": ""}]), None, r"some file.json:2: \[1\]\.trait: is empty"),
        (lines([TRAITS[0]]) + "{", None, "some file.json:2: not valid JSON"),
        (lines(TRAITS) + "\n" + '{"treat": 1}', None, r"json:4: \[2\]\.trait: is missing"),
        ([{"trait": "a", "questions": "b"}], None, r"\[0\]\.questions: found text"),
        ({"0": {"for": 3, "against": 1}}, None, "0: counts votes and is no principle"),
        ({"a": "Be kind."}, "icai", "a: is no cluster's number"),
        ({"annotators": {"a": {"type": "human"}}}, None, "annotators: has no principles"),
        ({"principles": [{"id": "a", "text": "b"}]}, None, "id: is missing"),
        (
            {"id": "a", "principles": [{"id": "a", "text": "b", "wait": 1}]},
            None,
            "did you mean 'weight'",
        ),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_entry(
    tmp_path: Path, content: Any, format: str | None, said: str
) -> None:
    path = put(tmp_path, content)
    with pytest.raises(SetupError, match=said) as found:
        import_constitution(path, format=format)
    assert str(found.value).startswith(str(path))
    assert "\n" not in str(found.value)


def test_a_format_that_does_not_exist_is_said_with_the_nearest(tmp_path: Path) -> None:
    path = put(tmp_path, CHOICES)
    with pytest.raises(SetupError, match=r"no format 'llm-swam' \(did you mean 'llm-swarm'\?\)"):
        import_constitution(path, format="llm-swam")
    with pytest.raises(SetupError, match="there are: rlaif, cai-critique-revision"):
        export_constitution(small(), "xyz")


def test_a_file_that_cannot_be_read_or_an_id_that_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"gone\.json: cannot be read"):
        import_constitution(tmp_path / "gone.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SetupError, match=r"binary\.json: cannot be read"):
        import_constitution(tmp_path / "binary.json")
    with pytest.raises(SetupError, match=r"some file\.json: id: found 'My Own'"):
        import_constitution(put(tmp_path, CHOICES), id="My Own")

"""Gold sets: every layout that people have, every row a pair or counted, no answer by position."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif.errors import SetupError
from rlaif.gold import Ceiling, GoldPair, GoldSet, load_gold, part_of
from rlaif.gold.grouping import grouped, opening
from rlaif.types import Message, Prompt

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
Row = dict[str, Any]
HH = "\n\nHuman: Is tea a drink?\n\nAssistant: Yes.\n\nHuman: Hot?\n\nAssistant:"
HH_MESSAGES = (
    Message(role="user", content="Is tea a drink?"),
    Message(role="assistant", content="Yes."),
    Message(role="user", content="Hot?"),
)


def u(text: str) -> Row:
    return {"role": "user", "content": text}


def a(text: str) -> Row:
    return {"role": "assistant", "content": text}


def real(path: str) -> GoldSet:
    if not (DATA / path).is_file():
        pytest.skip(f"needs the shared data file {path}")
    return load_gold(str(DATA / path))


def real_rows(path: str) -> list[Row]:
    if not (DATA / path).is_file():
        pytest.skip(f"needs the shared data file {path}")
    text = (DATA / path).read_bytes()
    text = gzip.decompress(text) if path.endswith(".gz") else text
    if ".jsonl" in path:
        return [json.loads(line) for line in text.decode().split("\n") if line]
    rows: list[Row] = json.loads(text)
    return rows


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., GoldSet]:
    def load(*rows: Any) -> GoldSet:
        path = tmp_path / "set.json"
        path.write_text(json.dumps(list(rows)), encoding="utf-8")
        return load_gold(str(path))

    return load


def better(pair: GoldPair) -> str:
    return {1.0: pair.first, 0.0: pair.second}[pair.p_gold]


def worse(pair: GoldPair) -> str:
    return {0.0: pair.first, 1.0: pair.second}[pair.p_gold]


# The layouts.


def test_an_llmbar_row_keeps_its_positions(loaded: Callable[..., GoldSet]) -> None:
    row = {"input": "Hi", "output_1": "x", "output_2": "y", "label": 1}
    found = loaded(row, {**row, "label": 2})
    assert (found.layout, found.ceiling) == ("llmbar", Ceiling(0.94, "experts, Zeng et al. 2023"))
    assert [(p.first, p.second, p.p_gold) for p in found.pairs] == [
        ("x", "y", 1.0),
        ("x", "y", 0.0),
    ]
    assert found.pairs[0].prompt.messages == (Message(role="user", content="Hi"),)


def pandalm(*verdicts: int, **changed: Any) -> Row:
    row = {"instruction": "Shorten.", "input": "", "response1": "x", "response2": "y"}
    return row | {f"annotator{i}": v for i, v in enumerate(verdicts, 1)} | changed


def test_a_pandalm_row_has_the_verdict_of_most_annotators(loaded: Callable[..., GoldSet]) -> None:
    found = loaded(pandalm(1, 1, 2), pandalm(2, 2, 2), pandalm(0, 1, 0), pandalm(0, 1, 2))
    assert found.layout == "pandalm"
    assert [p.p_gold for p in found.pairs] == [1.0, 0.0, 0.5]
    assert [p.annotators for p in found.pairs] == [(1, 1, 0), (0, 0, 0), (0.5, 1, 0.5)]
    assert found.skipped == {"no majority": 1}


def test_the_ceiling_is_an_annotator_against_the_other_two_who_agree_and_decide(
    loaded: Callable[..., GoldSet],
) -> None:
    # Scores by row: one of 0; three of 1; none (the two agree on a tie); none; one of a half.
    found = loaded(
        pandalm(1, 1, 2), pandalm(2, 2, 2), pandalm(0, 1, 0), pandalm(0, 1, 2), pandalm(1, 0, 1)
    )
    assert found.ceiling == Ceiling(3.5 / 5, "an annotator against the other two, from the file")


def test_the_least_that_is_decided_gives_a_ceiling(loaded: Callable[..., GoldSet]) -> None:
    found = loaded(pandalm(0, 0, 1), pandalm(0, 1, 2), pandalm(2, 0, 2))
    assert found.ceiling is not None
    assert found.ceiling.value == 0.5


def test_a_pandalm_input_stands_under_its_instruction(loaded: Callable[..., GoldSet]) -> None:
    with_input, without = loaded(pandalm(1, 1, 1, input="Ab c."), pandalm(2, 2, 2)).pairs
    assert with_input.prompt.messages[0].content == "Shorten.\n\nAb c."
    assert without.prompt.messages[0].content == "Shorten."


def test_a_pandalm_response_that_became_a_truth_value_is_its_word(
    loaded: Callable[..., GoldSet],
) -> None:
    found = loaded(pandalm(1, 1, 1, response1=True), pandalm(2, 2, 2))
    assert found.pairs[0].first == "True"


@pytest.mark.parametrize(
    "row",
    [
        {"input": "Hot?", "targets": {"choices": ["good", "bad"], "labels": [1, 0]}},
        {"input": "Hot?", "targets": {"choices": ["bad", "good"], "labels": [0, 1]}},
        {"input": "Hot?", "target_scores": {"good": 1, "bad": 0, "of another row": None}},
    ],
)
def test_an_hhh_row_names_the_better_choice(loaded: Callable[..., GoldSet], row: Row) -> None:
    found = loaded(row)
    (pair,) = found.pairs
    assert found.layout == "hhh"
    assert (better(pair), worse(pair)) == ("good", "bad")
    assert pair.prompt.messages == (Message(role="user", content="Hot?"),)


def test_a_big_bench_task_holds_its_rows_under_examples(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    rows = [{"input": str(i), "target_scores": {"good": 1, "bad": 0}} for i in range(5)]
    path.write_text(json.dumps({"name": "hhh", "examples": rows}, indent=1), encoding="utf-8")
    assert [better(p) for p in load_gold(str(path)).pairs] == ["good"] * 5


@pytest.mark.parametrize(
    "text", [HH, HH.removesuffix("\n\nAssistant:"), HH.strip(), HH.removeprefix("\n\nHuman: ")]
)
def test_an_hhh_input_may_be_a_transcript(loaded: Callable[..., GoldSet], text: str) -> None:
    (pair,) = loaded({"input": text, "target_scores": {"good": 1, "bad": 0}}).pairs
    assert pair.prompt.messages == HH_MESSAGES


def test_hhh_rows_without_one_better_choice_are_counted(loaded: Callable[..., GoldSet]) -> None:
    def row(choices: list[str], labels: list[int]) -> Row:
        return {"input": "Hot?", "targets": {"choices": choices, "labels": labels}}

    found = loaded(
        row(["x", "y"], [1, 0]), row(["x", "y"], [1, 1]), row(["x", "y", "z"], [1, 0, 0])
    )
    assert (len(found.pairs), found.skipped) == (1, {"no verdict": 1, "not two responses": 1})


def test_hh_transcripts_split_at_the_last_answer(loaded: Callable[..., GoldSet]) -> None:
    found = loaded({"chosen": f"{HH} Often.", "rejected": f"{HH} No!"})
    (pair,) = found.pairs
    assert found.layout == "hh-transcripts"
    assert pair.prompt.messages == HH_MESSAGES
    assert (better(pair), worse(pair)) == ("Often.", "No!")


def test_transcripts_that_part_earlier_are_counted(loaded: Callable[..., GoldSet]) -> None:
    good = {"chosen": f"{HH} Often.", "rejected": f"{HH} No!"}
    found = loaded(good, good | {"rejected": HH.replace("Yes", "Perhaps") + " No!"})
    assert (len(found.pairs), found.skipped) == (1, {"prompts differ": 1})


def test_turns_of_one_speaker_in_a_row_are_one(loaded: Callable[..., GoldSet]) -> None:
    twice = HH.replace("Yes.", "Yes.\n\nAssistant: Sure.")
    (pair,) = loaded({"prompt": twice, "chosen": "x", "rejected": "y"}).pairs
    assert [m.content for m in pair.prompt.messages] == ["Is tea a drink?", "Yes.\n\nSure.", "Hot?"]


CHAT = [u("Is tea a drink?"), a("Yes."), u("Hot?")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": CHAT, "chosen": "good", "rejected": "bad"},
        {"prompt": HH, "chosen": "good", "rejected": "bad"},
        {"prompt": HH, "chosen": f"{HH} good", "rejected": f"{HH} bad"},
        {"prompt": CHAT, "chosen": [a("good")], "rejected": [a("bad")]},
        {"prompt": CHAT[:1], "chosen": [*CHAT[1:], a("good")], "rejected": [*CHAT[1:], a("bad")]},
        {"chosen": [*CHAT, a("good")], "rejected": [*CHAT, a("bad")]},
        {"prompt": "Hot?", "chosen": [*CHAT, a("good")], "rejected": [*CHAT, a("bad")]},
        {
            "conversations": [
                {"from": "human", "value": "Is tea a drink?"},
                {"from": "gpt", "value": "Yes."},
                {"from": "human", "value": "Hot?"},
            ],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
    ids=["messages", "transcript", "repeated", "trl", "longer", "implicit", "both", "sharegpt"],
)
def test_every_form_of_a_preference_row_says_the_same(
    loaded: Callable[..., GoldSet], row: Row
) -> None:
    found = loaded({**row, "score": 3, "id": "mine"})
    (pair,) = found.pairs
    assert (found.layout, pair.id) == ("pairs", "mine")
    assert pair.prompt.messages == HH_MESSAGES
    assert (better(pair), worse(pair)) == ("good", "bad")


def test_a_plain_prompt_is_one_question_of_the_user(loaded: Callable[..., GoldSet]) -> None:
    (pair,) = loaded(
        {"prompt": "What is \n\nAssistant: in HH?", "chosen": "x", "rejected": "y"}
    ).pairs
    assert pair.prompt.messages == (Message(role="user", content="What is \n\nAssistant: in HH?"),)


def test_rows_that_a_judge_cannot_be_asked_about_are_counted(
    loaded: Callable[..., GoldSet],
) -> None:
    row = {"prompt": "Hi", "chosen": "x", "rejected": "y"}
    talk = [u("Hi"), a("x")]
    found = loaded(
        row,
        row | {"rejected": "x "},
        row | {"prompt": " "},
        row | {"prompt": [*talk]},
        row | {"prompt": []},
        row | {"prompt": "Other", "chosen": talk, "rejected": talk},
        row | {"chosen": talk, "rejected": [u("Hello"), a("y")], "prompt": []},
    )
    assert len(found.pairs) == 1
    assert found.skipped == {
        "empty prompt": 1,
        "identical responses": 1,
        "prompts differ": 1,
        "the prompt does not end with the user's turn": 2,
        "the prompt is not in the conversation": 1,
    }


@pytest.mark.parametrize("field", ["question", "instruction", "prompt"])
@pytest.mark.parametrize("system", ["Be kind.", "", None])
def test_a_question_and_its_system_message_may_stand_in_fields_of_their_own(
    loaded: Callable[..., GoldSet], field: str, system: str | None
) -> None:
    row = {"system": system, field: "Why?", "chosen": "So.", "rejected": "No."}
    found = loaded(row)
    (pair,) = found.pairs
    before = (Message(role="system", content="Be kind."),) if system else ()
    assert found.layout == "pairs"
    assert pair.prompt.messages == (*before, Message(role="user", content="Why?"))
    assert (better(pair), worse(pair)) == ("So.", "No.")


def test_an_input_beside_an_instruction_is_part_of_the_question(
    loaded: Callable[..., GoldSet],
) -> None:
    row = {"instruction": "Shorten.", "chosen": "x", "rejected": "y"}
    found = loaded(row | {"input": "Ab c."}, row | {"input": ""}, row | {"input": None}, row)
    said = [p.prompt.messages[0].content for p in found.pairs]
    assert said == ["Shorten.\n\nAb c.", "Shorten.", "Shorten.", "Shorten."]


def test_a_whole_conversation_is_the_prompt_before_a_question_beside_it(
    loaded: Callable[..., GoldSet],
) -> None:
    (pair,) = loaded(
        {"question": "Hot?", "conversations": CHAT, "chosen": "x", "rejected": "y"}
    ).pairs
    assert pair.prompt.messages == HH_MESSAGES


@pytest.mark.parametrize("low", [3, 3.0])
def test_level_scores_are_level_and_contradicting_ones_are_counted(
    loaded: Callable[..., GoldSet], low: float
) -> None:
    row = {"chosen": [u("Hi"), a("x")], "rejected": [u("Hi"), a("y")], "prompt": "Hi"}
    found = loaded(*(row | {"score_chosen": s, "score_rejected": low} for s in (4, 3, 2)))
    assert [max(p.p_gold, 1 - p.p_gold) for p in found.pairs] == [1.0, 0.5]
    assert found.skipped == {"scores contradict chosen": 1}


@pytest.mark.parametrize(
    "scores", [{"score_chosen": 1}, {"score_chosen": 1, "score_rejected": None}]
)
def test_a_score_on_one_side_says_nothing(loaded: Callable[..., GoldSet], scores: Row) -> None:
    (pair,) = loaded({"prompt": "Hi", "chosen": "x", "rejected": "y", **scores}).pairs
    assert better(pair) == "x"


def arena(winner: Any, **changed: Any) -> Row:
    sides = {"conversation_a": [u("Hi"), a("x")], "conversation_b": [u("Hi"), a("y")]}
    return sides | {"question_id": "q", "winner": winner} | changed


def test_an_arena_row_keeps_its_positions(loaded: Callable[..., GoldSet]) -> None:
    found = loaded(*map(arena, ("model_a", "model_b", "tie", "tie (bothbad)", None)))
    assert (found.layout, found.skipped) == ("arena", {"no verdict": 1})
    assert [p.p_gold for p in found.pairs] == [1.0, 0.0, 0.5, 0.5]
    assert {(p.first, p.second) for p in found.pairs} == {("x", "y")}
    assert found.pairs[0].prompt.messages == (Message(role="user", content="Hi"),)


def test_arena_rows_whose_conversations_part_earlier_are_counted(
    loaded: Callable[..., GoldSet],
) -> None:
    same = [u("Is tea a drink?"), a("Yes."), u("Hot?")]
    other = [u("Is tea a drink?"), a("Sure."), u("Hot?")]
    found = loaded(
        arena("model_a", conversation_a=[*same, a("x")], conversation_b=[*same, a("y")]),
        arena("model_a", conversation_a=[*same, a("x")], conversation_b=[*other, a("y")]),
        arena("model_b", conversation_b=[u("Ho"), a("y")]),
    )
    assert found.pairs[0].prompt.messages == HH_MESSAGES
    assert (len(found.pairs), found.skipped) == (1, {"prompts differ": 2})


def test_an_llmbar_label_may_be_written_as_text(loaded: Callable[..., GoldSet]) -> None:
    row = {"input": "Hi", "output_1": "x", "output_2": "y"}
    found = loaded(row | {"label": "1"}, row | {"label": "2"})
    assert (found.layout, [p.p_gold for p in found.pairs]) == ("llmbar", [1.0, 0.0])


@pytest.mark.parametrize("names", [("first", "second"), ("response_a", "response_b")])
@pytest.mark.parametrize("field", ["label", "winner", "preference"])
def test_a_labelled_row_has_many_spellings(
    loaded: Callable[..., GoldSet], names: tuple[str, str], field: str
) -> None:
    texts = {"prompt": "Hi", names[0]: "x", names[1]: "y"}
    words = {
        1.0: ["A", "a", 1, "1", "first", "Response_A", " response_1"],
        0.0: ["B", "b", 2, "2", "Second", "response_b"],
        0.5: ["tie", "TIE", 0, "0"],
    }
    for p_gold, spelt in words.items():
        other = {0.0: 1, 0.5: 1, 1.0: 2}[p_gold]
        found = loaded(texts | {field: other}, *(texts | {field: w} for w in spelt))
        assert found.layout == "labelled"
        assert [p.p_gold for p in found.pairs[1:]] == [p_gold] * len(spelt)
        assert {(p.first, p.second) for p in found.pairs} == {("x", "y")}


def test_two_fields_that_say_the_same_are_one(loaded: Callable[..., GoldSet]) -> None:
    row = {"prompt": "Hi", "first": "x", "response_a": "x", "second": "y", "response_2": "y"}
    found = loaded(
        row | {"label": "A", "winner": "A"},
        row | {"winner": 2, "preference": "response_b"},
        row | {"label": None, "winner": ""},
    )
    assert [(p.first, p.second, p.p_gold) for p in found.pairs] == [("x", "y", 1), ("x", "y", 0)]
    assert found.skipped == {"no verdict": 1}


def test_a_labelled_row_without_a_label_is_counted(loaded: Callable[..., GoldSet]) -> None:
    row = {"prompt": "Hi", "first": "x", "second": "y", "label": "A"}
    assert loaded(row, row | {"label": None}, row | {"label": ""}).skipped == {"no verdict": 2}


# Rankings: each pair of answers to one prompt becomes a row.


def said(role: str, name: str, *replies: Row, **more: Any) -> Row:
    text = {"message_id": name, "text": f"{name}!", "role": role, "replies": list(replies)}
    return text | {"deleted": False, "review_result": True, "lang": "en"} | more


def asks(name: str, *replies: Row, **more: Any) -> Row:
    return said("prompter", name, *replies, **more)


def says(name: str, rank: float | None, *replies: Row, **more: Any) -> Row:
    return said("assistant", name, *replies, rank=rank, **more)


def flat(tree: Row, parent: str | None = None) -> list[Row]:
    """The rows of the hub dataset that hold the same tree."""
    own = {k: v for k, v in tree.items() if k != "replies"} | {"parent_id": parent}
    return [own, *(row for reply in tree["replies"] for row in flat(reply, tree["message_id"]))]


def as_messages(*trees: Row) -> list[Row]:
    return [row for tree in trees for row in flat(tree)]


def as_hub_messages(*trees: Row) -> list[Row]:
    return [{"rank": None, **row} for row in as_messages(*trees)]


def as_exported_trees(*trees: Row) -> list[Row]:
    return [{"message_tree_id": tree["message_id"], "prompt": tree} for tree in trees]


TREE = asks(
    "q",
    says("third", 2),
    says("best", 0, asks("why", says("l", 1), says("k", 1), says("m", 0))),
    says("second", 1),
)


@pytest.mark.parametrize(
    ("spelt", "layout"),
    [
        (lambda *trees: list(trees), "oasst-trees"),
        (as_exported_trees, "oasst-trees"),
        (as_messages, "oasst-messages"),
        (as_hub_messages, "oasst-messages"),
        # A message may stand before the one that it answers.
        (lambda *trees: as_messages(*trees)[::-1], "oasst-messages"),
    ],
)
def test_a_conversation_tree_is_a_ranking_at_each_of_its_prompts(
    loaded: Callable[..., GoldSet], spelt: Callable[..., list[Row]], layout: str
) -> None:
    found = loaded(*spelt(TREE))
    assert (found.layout, found.skipped) == (layout, {})
    by_length: dict[int, set[tuple[str, str]]] = {1: set(), 3: set()}
    for pair in found.pairs:
        if pair.p_gold == 0.5:
            assert {pair.first, pair.second} == {"l!", "k!"}
            continue
        by_length[len(pair.prompt.messages)].add((better(pair), worse(pair)))
        assert pair.id == f"{better(pair)[:-1]}>{worse(pair)[:-1]}"
    assert len(found.pairs) == 6
    assert by_length == {
        1: {("best!", "second!"), ("best!", "third!"), ("second!", "third!")},
        3: {("m!", "l!"), ("m!", "k!")},
    }
    assert {p.prompt.messages for p in found.pairs} == {
        (Message(role="user", content="q!"),),
        (
            Message(role="user", content="q!"),
            Message(role="assistant", content="best!"),
            Message(role="user", content="why!"),
        ),
    }
    top, below = grouped(found.pairs, {opening(found.pairs[0].prompt): "train"}).groups
    if len(top.prompt.messages) == 3:
        top, below = below, top
    assert set(top.responses) == {"best!", "second!", "third!"}
    assert set(below.responses) == {"m!", "l!", "k!"}
    assert (len(top.comparisons), len(below.comparisons)) == (3, 2)


@pytest.mark.parametrize("spelt", [as_exported_trees, as_hub_messages])
def test_messages_that_rank_nothing_are_counted_by_their_reason(
    loaded: Callable[..., GoldSet], spelt: Callable[..., list[Row]]
) -> None:
    found = loaded(
        *spelt(
            asks(
                "q",
                says("a", 0),
                says("b", 1, asks("q2", says("lone", 0))),
                says("c", None, asks("q3", says("d", 3), says("e", 4))),
                says("spam", 2, review_result=False),
                says("gone", 3, asks("q4", says("f", 0), says("g", 1)), deleted=True),
                says("blank", 4, text=" "),
                says("unseen", 5, review_result=None),
            ),
            says("root", 0, asks("q5", says("h", 0), says("i", 1))),
            asks("q6", says("j", 0), says("k", 1), deleted=True),
            asks("q7", asks("q8", text="")),
            asks("q9", asks("q10")),
        )
    )
    # Three at q, and d before e: an answer without a rank is in the conversation all the same.
    decided = [(better(p), worse(p)) for p in found.pairs]
    assert sorted(decided) == [("a!", "b!"), ("a!", "unseen!"), ("b!", "unseen!"), ("d!", "e!")]
    assert found.skipped == {
        "after a message that is left out": 6,
        "an assistant's message at the root": 1,
        "deleted": 2,
        "empty": 2,
        "no rank": 1,
        "no ranked answers": 1,
        "review_result is false": 1,
        "the only ranked answer": 1,
    }


def test_an_answer_whose_prompt_is_not_in_the_file_is_counted(
    loaded: Callable[..., GoldSet],
) -> None:
    found = loaded(*flat(TREE), *flat(says("x", 0), "nowhere"))
    assert (len(found.pairs), found.skipped) == (6, {"the message before it is missing": 1})


@pytest.mark.parametrize(
    ("order", "first_to_last"),
    [
        ({"ranks": [2, 1, 3]}, "bac"),
        ({"rankings": [1.5, -1, 9]}, "bac"),
        ({"scores": [2, 1, 3]}, "cab"),
        ({"scores": [0.5, 0.25, 0.75], "ranks": None}, "cab"),
    ],
)
@pytest.mark.parametrize(
    "responses",
    [["a", "b", "c"], [{"text": "a"}, {"content": "b"}, {"role": "assistant", "content": "c"}]],
)
def test_ranks_are_better_low_and_scores_high(
    loaded: Callable[..., GoldSet], order: Row, first_to_last: str, responses: list[Any]
) -> None:
    found = loaded({"system": "Be kind.", "prompt": "Hi", "responses": responses} | order)
    assert found.layout == "ranking"
    best, middle, last = first_to_last
    decided = [(better(p), worse(p)) for p in found.pairs]
    assert decided == [(best, middle), (best, last), (middle, last)]
    of = {letter: f"1.{i}" for i, letter in enumerate("abc", 1)}
    assert [p.id for p in found.pairs] == [f"{of[one]}>{of[other]}" for one, other in decided]
    assert found.pairs[0].prompt.messages == (
        Message(role="system", content="Be kind."),
        Message(role="user", content="Hi"),
    )
    (group,) = grouped(found.pairs, {opening(found.pairs[0].prompt): "train"}).groups
    assert sorted(group.responses) == ["a", "b", "c"]


def test_responses_that_rank_nothing_are_counted(loaded: Callable[..., GoldSet]) -> None:
    row = {"prompt": "Hi", "responses": ["a", "b", "c"]}
    found = loaded(
        row | {"ranks": [1, 2, 2]},
        row | {"ranks": [1, None, 2], "responses": ["a", "b", " "]},
        row | {"ranks": [], "responses": []},
        row | {"ranks": [1, 2], "responses": ["a", "a "]},
    )
    assert Counter(max(p.p_gold, 1 - p.p_gold) for p in found.pairs) == {1.0: 2, 0.5: 1}
    assert found.skipped == {
        "empty": 1,
        "identical responses": 1,
        "no rank": 1,
        "no ranked answers": 1,
        "the only ranked answer": 1,
    }


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_ranking_is_all_its_pairs_each_as_the_ranks_say(
    loaded: Callable[..., GoldSet], ranks: list[int]
) -> None:
    row = {"prompt": "Hi", "responses": [str(i) for i in range(len(ranks))]}
    try:
        found = loaded(row | {"ranks": ranks}).pairs
    except SetupError:
        assert len(set(ranks)) == 1
        return
    assert {frozenset((int(p.first), int(p.second))) for p in found} == {
        frozenset((i, j)) for i in range(len(ranks)) for j in range(i)
    }
    assert len(found) == len(ranks) * (len(ranks) - 1) // 2
    for pair in found:
        low, high = ranks[int(pair.first)], ranks[int(pair.second)]
        assert pair.p_gold == (0.5 if low == high else float(low < high))
    # The same answers, said the other way about.
    turned = loaded(row | {"scores": [-rank for rank in ranks]}).pairs
    assert [p[1:] for p in turned] == [p[1:] for p in found]


def test_a_pair_with_responses_beside_it_is_still_a_pair(loaded: Callable[..., GoldSet]) -> None:
    found = loaded({**PAIR, "responses": ["x", "y"], "scores": [1, 2]})
    assert (found.layout, better(found.pairs[0])) == ("pairs", "x")


# Names, files and datasets.

PAIR = {"prompt": "Hi", "chosen": "x", "rejected": "y"}


def test_the_same_conversation_is_one_cluster(loaded: Callable[..., GoldSet]) -> None:
    one, same, other = loaded(
        PAIR, {"prompt": [u("Hi")], "chosen": "v", "rejected": "w"}, PAIR | {"prompt": "Ho"}
    ).pairs
    assert one.prompt == same.prompt
    assert one.prompt.id != other.prompt.id
    assert one.prompt.id.startswith("g-")
    assert len(one.prompt.id) == 14


def test_ids_are_kept_only_where_they_tell_all_rows_apart(loaded: Callable[..., GoldSet]) -> None:
    def ids(*given: Any) -> list[str]:
        return [p.id for p in loaded(*({**PAIR, "id": i} for i in given)).pairs]

    assert ids("x", 7) == ["x", "7"]
    for twice in (("x", "x"), ("7", 7), ("x", None), ("x", "")):
        assert ids(*twice) == ["row-1", "row-2"]


def test_the_better_one_stands_where_the_content_says_not_the_file(
    loaded: Callable[..., GoldSet],
) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "x", "rejected": "y"} for i in range(50)]
    there = {p.prompt.id: p for p in loaded(*rows).pairs}
    back = {p.prompt.id: p for p in loaded(*reversed(rows)).pairs}
    turned = {
        p.prompt.id: p for p in loaded(*(r | {"chosen": "y", "rejected": "x"} for r in rows)).pairs
    }
    assert {k: p.first for k, p in there.items()} == {k: p.first for k, p in back.items()}
    # Neither the order of the fields nor which one won is seen in the hash: same place, other text.
    assert {k: p.p_gold for k, p in there.items()} == {k: p.p_gold for k, p in turned.items()}
    assert set(Counter(p.p_gold for p in there.values())) == {0.0, 1.0}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet"])
def test_every_kind_of_file_holds_the_same_pairs(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": f"{i}é?", "chosen": "x", "rejected": "y"} for i in range(3)]
    path = tmp_path / f"mine.v2{suffix}"
    text = "".join(json.dumps(r) + "\n" for r in rows) if "l" in suffix[4:] else json.dumps(rows)
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if suffix[-2:] == "gz" else text.encode())
    found = load_gold(str(path))
    assert (found.name, found.path) == ("mine.v2", str(path))
    assert [p.prompt.messages[0].content for p in found.pairs] == ["0é?", "1é?", "2é?"]


def test_the_hash_is_of_the_files_bytes(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(json.dumps(PAIR).encode())
    # sha256sum of the same bytes, by another program.
    assert load_gold(str(path)).sha256 == (
        "123e3e7eb227e103b5c0394da5577a8efe0759569b0e61045dfe26761eb660ff"
    )


def test_json_lines_in_a_json_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(f"\ufeff{json.dumps(PAIR)}\r\n{json.dumps(PAIR)}\r\n\r\n", encoding="utf-8")
    assert len(load_gold(str(path)).pairs) == 2


def test_a_bare_name_is_one_of_ours_before_a_folder_lying_about(empty_place: Path) -> None:
    folder = empty_place / "prompts" / "gold"
    folder.mkdir(parents=True)
    (folder / "mine.jsonl").write_text(json.dumps(PAIR), encoding="utf-8")
    (empty_place / "mine").mkdir()
    found = load_gold("mine")
    assert (found.name, found.path, len(found.pairs)) == ("mine", "mine", 1)


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "org" / "prefs"
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", 5), ("test", 2)):
        rows = [
            {"prompt": [u(f"{split} {i}?")], "chosen": [a("x")], "rejected": [a("y")]}
            for i in range(count)
        ]
        pq.write_table(
            pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet"
        )
    return folder


def test_a_folder_that_datasets_reads_gives_its_test_split(dataset_folder: Path) -> None:
    found = load_gold(str(dataset_folder))
    assert (found.name, found.path) == ("prefs@test", f"{dataset_folder}@test")
    assert [p.prompt.messages[0].content for p in found.pairs] == ["test 0?", "test 1?"]
    assert [better(p) for p in found.pairs] == ["x", "x"]


def test_another_split_of_a_folder_is_asked_for_by_name(dataset_folder: Path) -> None:
    found = load_gold(f"{dataset_folder}@train")
    assert (found.name, len(found.pairs)) == ("prefs@train", 5)
    assert found.sha256 != load_gold(str(dataset_folder)).sha256


def test_a_folder_without_a_test_split_gives_its_first(dataset_folder: Path) -> None:
    (dataset_folder / "data" / "test-00000-of-00001.parquet").unlink()
    assert load_gold(str(dataset_folder)).name == "prefs@train"


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([PAIR, PAIR | {"prompt": "Ho"}])
    rows.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "both")
    assert len(load_gold(str(tmp_path / "plain")).pairs) == 2
    assert load_gold(str(tmp_path / "both")).path == f"{tmp_path / 'both'}@test"
    assert len(load_gold(f"{tmp_path / 'both'}@train").pairs) == 2
    for wrong in ("both@dev", "plain@dev"):
        with pytest.raises(SetupError, match=r"@dev: .*no split 'dev', it has"):
            load_gold(str(tmp_path / wrong))


def test_a_hub_name_goes_through_the_loader_of_datasets(
    dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `datasets` takes ORG/NAME under the working directory for the dataset of that name.
    monkeypatch.chdir(dataset_folder.parent.parent)
    found = load_gold("hub:org/prefs")
    assert (found.name, found.path, len(found.pairs)) == ("prefs@test", "hub:org/prefs@test", 2)
    assert load_gold("hub:org/prefs@train[:3]").path == "hub:org/prefs@train[:3]"
    assert len(load_gold("hub:org/prefs@train[:3]").pairs) == 3
    assert load_gold("hub:org/prefs/default@test").name == "prefs-default@test"
    with pytest.raises(SetupError, match=r"hub:org/prefs@dev: .*Unknown split"):
        load_gold("hub:org/prefs@dev")


def test_a_hub_that_cannot_be_reached_is_a_clear_line(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SetupError, match=r"^hub:org/none: `datasets` cannot read it: .*network"):
        load_gold("hub:org/none")


@pytest.mark.parametrize("name", ["hub:", "hub:name", "hub:org/", "hub:@test"])
def test_a_hub_name_without_its_owner_is_refused(name: str) -> None:
    with pytest.raises(SetupError, match="names no dataset"):
        load_gold(name)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="`datasets` cannot read it"):
        load_gold(str(tmp_path))


# What is refused.


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("s.json", b"", "has no rows"),
        ("s.json", b"[]", "has no rows"),
        ("s.jsonl", b"\n \n", "has no rows"),
        ("s.jsonl.gz", gzip.compress(b"", mtime=0), "has no rows"),
        ("s.json", b'[{"a": 1}, {', "s.json:1: not valid JSON: Expecting property name"),
        ("s.json", b"3", "found 3 (a .json file holds a list of rows)"),
        ("s.json", b"[3]", "row 1: a row must be an object with fields, found 3"),
        ("s.jsonl", b'{"a": 1}\n{"a": ', "s.jsonl:2: not valid JSON: Expecting value"),
        ("s.jsonl", b'{"a": 1}\n\n{"a": 2}\n', "s.jsonl:2: the row is empty (delete the line)"),
        ("s.jsonl", b"[]\n", "s.jsonl:1: a row must be an object with fields, found list"),
        ("s.jsonl", '{"a": "é"}'.encode("latin-1"), "is not UTF-8 text"),
        ("s.json.gz", gzip.compress(b"[1, 2, 3]", mtime=0)[:-9], "not a whole gzip file"),
        ("s.json.gz", b"[]", "not a whole gzip file"),
        ("s.parquet", b"PAR1", "not a Parquet file"),
        ("s.csv", b"a,b", "is of no known kind (give one that ends in .json, .jsonl,"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, file: str, content: bytes, said: str
) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(SetupError) as caught:
        load_gold(str(tmp_path / file))
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / file))


@pytest.mark.parametrize("name", ["nowhere", "no/where.jsonl", "x.parquet", "~nobody-here/x.json"])
def test_a_name_that_means_nothing_lists_ours(empty_place: Path, name: str) -> None:
    with pytest.raises(SetupError, match=r"neither a file nor one of ours .*or one of: "):
        load_gold(name)


def test_an_unknown_layout_names_the_fields_found_and_the_known_ones(
    loaded: Callable[..., GoldSet],
) -> None:
    with pytest.raises(SetupError) as caught:
        loaded({"question": "Hi", "answer": "x"})
    said = str(caught.value)
    assert "row 1: unknown layout: the first row has the fields 'question', 'answer' (" in said
    assert "llmbar: input, output_1, output_2, label" in said
    assert "labelled: prompt, first|response_a|response_1" in said
    assert "pairs: chosen, rejected, and prompt|conversations|question|instruction" in said
    assert "may have system, and score_chosen with score_rejected" in said
    assert "arena: conversation_a, conversation_b, winner (model_a, model_b, tie, tie (both" in said


LLMBAR = {"input": "Hi", "output_1": "x", "output_2": "y", "label": 1}
LABELLED = {"prompt": "Hi", "first": "x", "second": "y", "label": "A"}
ARENA = {"conversation_a": [u("Hi"), a("x")], "conversation_b": [u("Hi"), a("y")], "winner": "tie"}
HHH = {"input": "Hi", "targets": {"choices": ["x", "y"], "labels": [1, 0]}}
HH_ROW = {"chosen": f"{HH} x", "rejected": f"{HH} y"}
RANKING = {"prompt": "Hi", "responses": ["x", "y"], "ranks": [1, 2]}
MESSAGE, *_ = flat(TREE)
UNRANKED = {k: v for k, v in RANKING.items() if k != "ranks"}


@pytest.mark.parametrize(
    ("first", "row", "said"),
    [
        (PAIR, None, "a row must be an object with fields, found None"),
        (PAIR, {"prompt": "Hi", "chosen": "x"}, "no field 'rejected', found 'prompt', 'chosen'"),
        (PAIR, PAIR | {"chosen": None}, "chosen: found None, a message was expected"),
        (PAIR, PAIR | {"prompt": 3}, "prompt: found 3, text was expected"),
        (PAIR, PAIR | {"chosen": "\ud800"}, "chosen: holds half a character"),
        (PAIR, PAIR | {"prompt": [{"role": "tool", "content": ""}]}, "unknown role 'tool'"),
        (PAIR, PAIR | {"prompt": ["Hi"]}, "prompt: found 'Hi', a message was expected"),
        (PAIR, PAIR | {"chosen": [u("x")]}, "chosen: the last message must be the assistant's"),
        (PAIR, PAIR | {"prompt": "\n\nHuman:x\n\nAssistant: y"}, ""),
        (PAIR, {"chosen": "x", "rejected": "y"}, "no field 'prompt|conversations|question|instruc"),
        (LLMBAR, LLMBAR | {"label": 0}, "label: found 0, 1 or 2 was expected"),
        (LLMBAR, LLMBAR | {"label": True}, "label: found True, 1 or 2 was expected"),
        (LLMBAR, LLMBAR | {"output_2": ["y"]}, "output_2: found list, text was expected"),
        (pandalm(1, 1, 1), pandalm(1, 1, 3), "annotator3: found 3, 0 (tie), 1 or 2 was expected"),
        (pandalm(1, 1, 1), pandalm(1, 1), "no field 'annotator3'"),
        (HHH, HHH | {"targets": ["x", "y"]}, "targets: found list, dict was expected"),
        (HHH, HHH | {"targets": {"choices": ["x", 2], "labels": [1, 0]}}, "choices: found 2"),
        (HHH, HHH | {"targets": {"choices": ["x", "y"], "labels": ["1", "0"]}}, "found labels"),
        (HHH, HHH | {"targets": {"choices": ["x", "y"], "labels": [1]}}, "found labels"),
        (HH_ROW, HH_ROW | {"chosen": "x"}, 'chosen: the transcript has no "\\n\\nAssistant:"'),
        (HH_ROW, HH_ROW | {"chosen": "Hi" + HH}, 'a transcript begins with "\\n\\nHuman:"'),
        (HH_ROW, HH_ROW | {"chosen": "\n\nAssistant: Hi" + HH}, "a transcript begins with"),
        (PAIR, PAIR | {"system": 3}, "system: found 3, text was expected"),
        (LLMBAR, LLMBAR | {"label": "3"}, "label: found '3', 1 or 2 was expected"),
        (LLMBAR, LLMBAR | {"label": [1]}, "label: found list, 1 or 2 was expected"),
        (ARENA, ARENA | {"winner": "model_c"}, "unknown label 'model_c'; known are model_a, model"),
        (ARENA, ARENA | {"conversation_b": "y"}, "conversation_b: found 'y', list was expected"),
        (ARENA, ARENA | {"conversation_b": []}, "the last message must be the assistant's"),
        (LABELLED, LABELLED | {"winner": "B"}, "the fields 'label' and 'winner' differ"),
        (LABELLED, LABELLED | {"preference": None}, "the fields 'label' and 'preference' differ"),
        (LABELLED, LABELLED | {"response_1": "z"}, "the fields 'first' and 'response_1' differ"),
        (LABELLED, LABELLED | {"response_b": "z"}, "the fields 'second' and 'response_b' differ"),
        (LABELLED, LABELLED | {"winner": True}, "unknown label True; known are"),
        (LABELLED, LABELLED | {"label": "C"}, "unknown label 'C'; known are a, 1, first,"),
        (LABELLED, LABELLED | {"label": 3}, "unknown label 3; known are"),
        (LABELLED, LABELLED | {"label": True}, "unknown label True; known are"),
        (LABELLED, LABELLED | {"label": 0.7}, "unknown label 0.7; known are"),
        (TREE, 3, "it must be an object with fields, found 3"),
        (TREE, {"prompt": "Hi"}, "it must be an object with fields, found 'Hi'"),
        (
            TREE,
            asks("z", says("y", True)),
            "replies.0.rank: Input should be a valid number, found T",
        ),
        (TREE, asks("z", {}), "replies.0.message_id: Field required ("),
        (
            TREE,
            said("human", "z"),
            "role: Input should be 'prompter' or 'assistant', found 'human'",
        ),
        (TREE, asks("z", text="\ud800"), "text: holds half a character"),
        (MESSAGE, MESSAGE | {"text": None}, "text: Input should be a valid string, found NoneType"),
        (RANKING, RANKING | {"ranks": [1]}, "ranks: found 1 for 2 responses"),
        (
            RANKING,
            RANKING | {"ranks": [1, "2"]},
            "ranks.1: Input should be a valid number, found '2'",
        ),
        (
            RANKING,
            RANKING | {"scores": [1, 2]},
            "one of ranks, rankings, scores was expected, found ",
        ),
        (RANKING, UNRANKED, "one of ranks, rankings, scores was expected, found none"),
        (
            RANKING,
            RANKING | {"responses": ["x", {"y": ""}]},
            "responses.1: Input should be a valid s",
        ),
        (RANKING, RANKING | {"prompt": 3}, "prompt: found 3, text was expected"),
        (
            RANKING,
            {k: v for k, v in RANKING.items() if k != "prompt"},
            "the row has no field 'prompt",
        ),
        (
            LABELLED,
            {"prompt": "Hi", "label": 1, "first": "x"},
            "no field 'second|response_b|response_2'",
        ),
    ],
)
def test_a_row_that_is_not_like_the_first_is_refused_by_its_number(
    tmp_path: Path, first: Row, row: Any, said: str
) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(f"{json.dumps(first)}\n{json.dumps(row)}\n", encoding="utf-8")
    if not said:
        # A prompt that runs on into the answer is well formed, and no prompt.
        assert load_gold(str(path)).skipped == {"the prompt does not end with the user's turn": 1}
        return
    with pytest.raises(SetupError) as caught:
        load_gold(str(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert said in str(caught.value)
    assert "the first row says layout " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([TREE, TREE], "message_id: 'q' is that of row 1 as well (leave one of them out)"),
        ([MESSAGE, MESSAGE], "message_id: 'q' is that of row 1 as well (leave one of them out)"),
        ([MESSAGE, *flat(says("z", 0), "z")], "parent_id: leads in a circle (mend parent_id)"),
    ],
)
def test_messages_that_make_no_tree_are_refused_by_their_line(
    tmp_path: Path, rows: list[Row], said: str
) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(SetupError) as caught:
        load_gold(str(path))
    assert str(caught.value) == f"{path}:2: {said}"


@pytest.mark.parametrize(
    "rows",
    [
        [LLMBAR, LLMBAR | {"input": "Ho"}],
        [pandalm(1, 1, 2), pandalm(1, 1, 1), pandalm(0, 0, 1)],
        # Labels 1 and 0 for "first won" and "second won" would be read as 1 and tie.
        [LABELLED | {"label": 1}, LABELLED | {"label": 0}, LABELLED | {"label": 1}],
    ],
)
def test_a_set_that_a_positional_judge_would_pass_is_refused(
    loaded: Callable[..., GoldSet], rows: list[Row]
) -> None:
    with pytest.raises(
        SetupError,
        match=r"every one of the 2 decided rows says that response 1 is better: a judge that "
        r"always names that one would look perfect \(shuffle",
    ):
        loaded(*rows)
    assert len(loaded(rows[0]).pairs) == 1


def test_a_set_in_which_nothing_is_decided_is_refused(loaded: Callable[..., GoldSet]) -> None:
    level, same = LABELLED | {"label": "tie"}, LABELLED | {"second": "x"}
    with pytest.raises(
        SetupError,
        match=r"of 3 rows none says which response is better \(level: 2, identical responses: 1\)",
    ):
        loaded(level, same, level)


# Laws.

SETUP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
words = st.sampled_from(["", "x", "y", "x ", "Hi"])
labelled_rows = st.fixed_dictionaries(
    {
        "prompt": words,
        "first": words,
        "second": words,
        "label": st.sampled_from(["A", "B", "tie", None, 1, 2]),
    }
)
pair_rows = st.fixed_dictionaries({"prompt": words, "chosen": words, "rejected": words})


@given(st.one_of(st.lists(labelled_rows, max_size=12), st.lists(pair_rows, max_size=12)))
@SETUP
def test_every_row_is_a_pair_or_counted(loaded: Callable[..., GoldSet], rows: list[Row]) -> None:
    try:
        found = loaded(*rows)
    except SetupError:
        return
    assert len(found.pairs) + sum(found.skipped.values()) == len(rows)
    assert len({p.id for p in found.pairs}) == len(found.pairs)
    for pair in found.pairs:
        row = rows[int(pair.id.removeprefix("row-")) - 1]
        if "chosen" in row:
            assert (better(pair), worse(pair)) == (row["chosen"], row["rejected"])


def some_pairs(clusters: list[int]) -> list[GoldPair]:
    return [
        GoldPair(
            f"row-{i}",
            Prompt(id=f"g-{cluster}", messages=(Message(role="user", content="Hi"),)),
            "x",
            "y",
            1.0,
            (),
        )
        for i, cluster in enumerate(clusters)
    ]


def ids(pairs: list[GoldPair]) -> set[str]:
    return {pair.id for pair in pairs}


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 70), st.integers(1, 70))
def test_the_halves_share_no_conversation_and_make_the_whole(
    clusters: list[int], limit: int, larger: int
) -> None:
    pairs = some_pairs(clusters)
    dev, test = part_of(pairs, "dev", None), part_of(pairs, "test", None)
    assert ids(dev) | ids(test) == ids(pairs)
    assert len(dev) + len(test) == len(pairs)
    assert not {p.prompt.id for p in dev} & {p.prompt.id for p in test}
    assert part_of(pairs, "all", None) == pairs
    taken = part_of(pairs, "all", limit)
    assert len(taken) == min(limit, len(pairs))
    if larger >= limit:
        assert ids(taken) <= ids(part_of(pairs, "all", larger))
    assert part_of(list(reversed(pairs)), "dev", limit) == part_of(pairs, "dev", limit)


def test_a_limit_is_not_the_head_of_the_file() -> None:
    taken = part_of(some_pairs(list(range(1000))), "all", 100)
    numbers = [int(p.id.removeprefix("row-")) for p in taken]
    # Uniform draws of 100 from 0..999: mean 499.5, standard error 27.4.
    assert 499.5 - 5 * 27.4 < sum(numbers) / 100 < 499.5 + 5 * 27.4


def test_the_halves_are_halves() -> None:
    # 1,000 conversations: standard deviation 15.8.
    assert abs(len(part_of(some_pairs(list(range(1000))), "dev", None)) - 500) < 5 * 15.8


# The real files.


@pytest.mark.parametrize(
    ("path", "name", "layout", "rows"),
    [
        ("judge_gold/llmbar-natural.json", "llmbar-natural", "llmbar", 100),
        ("judge_gold/llmbar-gptinst.json", "llmbar-gptinst", "llmbar", 92),
        ("judge_gold/pandalm.json.gz", "pandalm", "pandalm", 999),
        ("human_pairs/hh-harmless-base.jsonl.gz", "hh-harmless-base", "pairs", 1625),
        ("human_pairs/hh-helpful-base.jsonl.gz", "hh-helpful-base", "pairs", 1609),
        ("human_pairs/hh-helpful-online.jsonl.gz", "hh-helpful-online", "pairs", 809),
        (
            "human_pairs/hh-helpful-rejection-sampled.jsonl.gz",
            "hh-helpful-rejection-sampled",
            "pairs",
            1904,
        ),
        ("human_pairs/oasst-ranked.jsonl.gz", "oasst-ranked", "pairs", 754),
        ("human_pairs/qa-feedback.jsonl.gz", "qa-feedback", "pairs", 2616),
        ("human_pairs/do-not-answer.jsonl.gz", "do-not-answer", "pairs", 805),
        ("formats/sharegpt-dpo.json", "sharegpt-dpo", "pairs", 300),
    ],
)
def test_every_row_of_a_real_file_is_a_pair(path: str, name: str, layout: str, rows: int) -> None:
    found = real(path)
    assert (found.name, found.layout, found.skipped) == (name, layout, {})
    assert len(found.pairs) == len({p.id for p in found.pairs}) == rows
    if layout == "pairs":
        said = [(r["chosen"], r["rejected"]) for r in real_rows(path)]
        if name == "sharegpt-dpo":
            said = [(chosen["value"], rejected["value"]) for chosen, rejected in said]
        assert [(better(p), worse(p)) for p in found.pairs] == said
        # The better one comes first as often as chance allows: five standard deviations.
        first = sum(p.p_gold == 1.0 for p in found.pairs)
        assert abs(first - rows / 2) < 5 * (rows / 4) ** 0.5


def test_llmbar_says_what_its_labels_say() -> None:
    found = real("judge_gold/llmbar-natural.json")
    rows = real_rows("judge_gold/llmbar-natural.json")
    assert [better(p) for p in found.pairs] == [r[f"output_{r['label']}"] for r in rows]
    assert Counter(p.p_gold for p in found.pairs) == {1.0: 42, 0.0: 58}


def test_pandalm_annotators_agree_as_counted_by_hand() -> None:
    # 368 + 426 rows with all three for one side: three scores of 1 each. 69 with one for the other
    # side: one of 0. 31 with one for a tie: one of a half. Of the other 105 most called it a tie.
    found = real("judge_gold/pandalm.json.gz")
    assert found.ceiling is not None
    assert found.ceiling.value == pytest.approx((794 * 3 + 31 / 2) / (794 * 3 + 69 + 31))
    assert Counter(p.p_gold for p in found.pairs) == {1.0: 422, 0.0: 472, 0.5: 105}


def test_real_conversations_keep_their_turns() -> None:
    found = real("human_pairs/oasst-ranked.jsonl.gz")
    lengths = Counter(len(p.prompt.messages) for p in found.pairs)
    assert lengths == {1: 438, 3: 312, 5: 4}
    for pair in real("human_pairs/hh-harmless-base.jsonl.gz").pairs:
        roles = [m.role for m in pair.prompt.messages]
        assert roles == [("user", "assistant")[i % 2] for i in range(len(roles))]


def test_transcripts_of_a_real_file_read_as_its_split_rows_do(tmp_path: Path) -> None:
    split = real("human_pairs/hh-harmless-base.jsonl.gz")
    rows = [
        {side: f"{r['prompt']} {r[side]}" for side in ("chosen", "rejected")}
        for r in real_rows("human_pairs/hh-harmless-base.jsonl.gz")
    ]
    path = tmp_path / "whole.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    whole = load_gold(str(path))
    assert whole.layout == "hh-transcripts"
    assert {p.prompt.tags for p in split.pairs} == {("anthropics/hh-rlhf harmless-base/test",)}
    plain = [p.prompt.model_copy(update={"tags": ()}) for p in split.pairs]
    assert [p.prompt for p in whole.pairs] == plain
    assert [p[2:] for p in whole.pairs] == [p[2:] for p in split.pairs]


def test_the_trees_of_openassistant_hold_the_pairs_that_others_took_from_them() -> None:
    # 687 answers of which 46 have no rank; rankings of K answers by K, counted beside this code.
    found = real("formats/oasst-trees.jsonl.gz")
    assert (found.layout, len(found.pairs), found.skipped) == ("oasst-trees", 754, {"no rank": 46})
    theirs = real("human_pairs/oasst-ranked.jsonl.gz")
    assert {(p.prompt.messages, better(p), worse(p)) for p in found.pairs} == {
        (p.prompt.messages, better(p), worse(p)) for p in theirs.pairs
    }
    groups = grouped(found.pairs, {opening(p.prompt): "train" for p in found.pairs}).groups
    sizes = Counter(len(group.responses) for group in groups)
    assert sizes == {2: 57, 3: 117, 4: 27, 5: 3, 6: 6, 8: 1, 9: 1}
    assert sum(len(group.comparisons) for group in groups) == 754


def test_identification_is_not_taken_for_pairs() -> None:
    with pytest.raises(SetupError, match="fields 'prompt', 'corrects', 'incorrects'"):
        real("judge_gold/cai-harmful-vs-ethical.jsonl")

"""The constitutions and prompt sets that ship: read as plain files, without the loaders."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.constitution import json_schema
from rlaif.constitution.lint import lint_path
from rlaif.types import Message, Prompt

ROOT = Path(__file__).parent.parent
SCHEMA = "constitution.schema.json"
PRINCIPLES = {
    "hhh": 3,
    "harmless": 18,
    "concise": 2,
    "human-rights": 16,
    "support": 9,
    "code-review": 9,
}
OPTIONAL = {"tags", "applies_when", "examples"}
# How many of a file's pair tests the longer response wins. Near a half, so that a judge that goes
# by length passes no file.
LONGER_WINS = {
    "hhh": (7, 12),
    "harmless": (10, 20),
    "concise": (5, 10),
    "human-rights": (9, 18),
    "support": (5, 11),
    "code-review": (6, 11),
}
WORDINGS = ("text", "comparison", "critique", "revision")
ROWS = {"everyday": 320, "sensitive": 80, "harmful": 24, "smoke": 12}
LENGTHS = {"short", "paragraph", "list"}
KINDS = {"explain", "how-to", "rewrite", "ideas", "advice", "code", "facts", "creative"}
RISKS = {
    "ai-honesty",
    "animals",
    "benign",
    "chemicals",
    "child-safety",
    "deception",
    "extremism",
    "group",
    "insult",
    "legal",
    "medication",
    "mental-health",
    "money",
    "politics",
    "privacy",
    "relationships",
    "scam",
    "security",
    "stunt",
    "substances",
    "violence",
    "weapons",
}


def constitution(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "constitutions" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def principles(name: str) -> list[dict[str, Any]]:
    listed = constitution(name)["principles"]
    assert isinstance(listed, list)
    return listed


def rows(name: str) -> list[dict[str, Any]]:
    text = (ROOT / "prompts" / "sets" / f"{name}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text[:-1].split("\n")]


def cases(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The principle and the fields of each test."""
    for principle in principles(name):
        for case in principle["tests"]:
            yield principle["id"], case
    for case in constitution(name)["tests"]:
        yield case["principle"], case


def pairs(name: str) -> list[dict[str, Any]]:
    return [case for _, case in cases(name) if "chosen" in case]


def plain(text: str) -> str:
    """The words alone; symbols stay where they carry the meaning (7 // 2)."""
    return " ".join(re.sub(r"[.,;:?!\"'’]", " ", text.casefold()).split())


def test_the_tests_name_every_file_that_ships() -> None:
    ours = {path.name for path in (ROOT / "constitutions").iterdir()}
    assert ours == {f"{name}.yaml" for name in PRINCIPLES} | {SCHEMA}
    assert {path.stem for path in (ROOT / "prompts" / "sets").iterdir()} == set(ROWS)


@pytest.mark.parametrize("name", PRINCIPLES)
def test_a_constitution_says_at_its_top_what_it_is_for(name: str) -> None:
    text = (ROOT / "constitutions" / f"{name}.yaml").read_text(encoding="utf-8")
    first, second, *_ = text.split("\n")
    assert re.match(r"# \w", first)
    assert second == f"# yaml-language-server: $schema={SCHEMA}"
    loaded = constitution(name)
    assert set(loaded) == {"id", "version", "description", "principles", "tests"}
    assert loaded["id"] == name
    assert isinstance(loaded["version"], str)
    assert loaded["description"].strip()


@pytest.mark.parametrize("name", PRINCIPLES)
def test_a_constitution_has_its_principles_each_with_its_own_id(name: str) -> None:
    ids = [principle["id"] for principle in principles(name)]
    assert len(ids) == len(set(ids)) == PRINCIPLES[name]
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", one) for one in ids)


@pytest.mark.parametrize("name", PRINCIPLES)
def test_no_principle_lacks_a_wording_or_a_weight(name: str) -> None:
    for principle in principles(name):
        assert set(principle) - OPTIONAL == {"id", "weight", "tests", *WORDINGS}
        assert isinstance(principle["weight"], float)
        assert principle["weight"] > 0
        for field in WORDINGS:
            assert len(principle[field].split()) >= 6, (principle["id"], field)
            assert principle[field] == principle[field].strip()
            assert "\n" not in principle[field]


def test_no_two_principles_share_a_wording() -> None:
    everything = [p[field] for name in PRINCIPLES for p in principles(name) for field in WORDINGS]
    assert len({plain(text) for text in everything}) == len(everything)


@pytest.mark.parametrize("name", PRINCIPLES)
def test_a_comparison_asks_which_response_is_better_and_names_no_label(name: str) -> None:
    for principle in principles(name):
        question = principle["comparison"]
        assert question.startswith("Which response ")
        assert question.count("?") == 1
        assert question.endswith("?")
        # "A" as a label is a capital; the article in the middle of a sentence is not.
        assert not re.search(r"\b[AB]\b|\b[12]\b", question)
        assert not re.search(r"\b(first|second|former|latter|left|right)\b", question)


@pytest.mark.parametrize("name", PRINCIPLES)
def test_critiques_and_revisions_speak_of_one_response_and_a_revision_keeps_the_good(
    name: str,
) -> None:
    for principle in principles(name):
        assert "the response" in principle["critique"]
        assert principle["revision"].startswith("Rewrite the response ")
        assert "Keep " in principle["revision"]


@pytest.mark.parametrize("name", PRINCIPLES)
def test_lint_finds_nothing_in_our_own(name: str) -> None:
    assert lint_path(str(ROOT / "constitutions" / f"{name}.yaml")) == []


def test_the_schema_that_ships_is_that_of_the_code() -> None:
    shipped = (ROOT / "constitutions" / SCHEMA).read_text(encoding="utf-8")
    assert shipped == json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", PRINCIPLES)
def test_each_principle_has_a_pair_and_a_single_response_among_its_tests(name: str) -> None:
    for principle in principles(name):
        kinds = Counter("chosen" in case for case in principle["tests"])
        assert kinds[True] >= 1, principle["id"]
        assert kinds[False] >= 1, principle["id"]


@pytest.mark.parametrize("name", PRINCIPLES)
def test_single_responses_follow_their_principle_about_as_often_as_not(name: str) -> None:
    verdicts = Counter(case["complies"] for _, case in cases(name) if "complies" in case)
    assert abs(verdicts[True] - verdicts[False]) <= 1


@pytest.mark.parametrize("name", PRINCIPLES)
def test_two_pairs_are_for_the_whole_constitution(name: str) -> None:
    assert [("chosen" in c, p) for p, c in cases(name)][-2:] == [(True, "*")] * 2
    assert Counter(principle for principle, _ in cases(name))["*"] == 2


@pytest.mark.parametrize("name", PRINCIPLES)
def test_length_does_not_give_the_winner_of_a_test_away(name: str) -> None:
    lengths = [(len(pair["chosen"]), len(pair["rejected"])) for pair in pairs(name)]
    assert all(chosen != rejected for chosen, rejected in lengths)
    longer = sum(chosen > rejected for chosen, rejected in lengths)
    assert (longer, len(lengths)) == LONGER_WINS[name]
    assert 0.4 <= longer / len(lengths) <= 0.6


def said(case: dict[str, Any]) -> list[str]:
    return [case[side] for side in ("chosen", "rejected", "response") if side in case]


def test_no_prompt_and_no_response_of_a_test_comes_twice() -> None:
    every = [case for name in PRINCIPLES for _, case in cases(name)]
    prompts = Counter(plain(case["prompt"]) for case in every)
    assert [text for text, count in prompts.items() if count > 1] == []
    responses = Counter(plain(text) for case in every for text in said(case))
    assert [text for text, count in responses.items() if count > 1] == []


def test_no_test_is_a_gold_pair_or_a_prompt_that_policies_are_sampled_on() -> None:
    known = {
        plain(json.loads(line)["prompt"])
        for kind in ("gold", "sets")
        for path in (ROOT / "prompts" / kind).glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    }
    assert len(known) > 550
    tested = {plain(case["prompt"]) for name in PRINCIPLES for _, case in cases(name)}
    assert tested & known == set()


def test_responses_of_tests_are_short_and_do_not_speak_to_the_judge() -> None:
    for name in PRINCIPLES:
        for principle, case in cases(name):
            for text in said(case):
                assert 8 <= len(text.split()) <= 60, (name, principle, text)
                assert not re.search(r"\[\[|\bverdict\b|\bresponse [AB12]\b", text)


def test_examples_show_no_test() -> None:
    for name in PRINCIPLES:
        shown = [e for p in principles(name) for e in p.get("examples", [])]
        assert len(shown) == {"human-rights": 2, "support": 2, "code-review": 2}.get(name, 0)
        texts = {plain(e[side]) for e in shown for side in ("prompt", "chosen", "rejected")}
        tested = {plain(t) for _, case in cases(name) for t in (case["prompt"], *said(case))}
        assert texts & tested == set()


def test_some_of_our_principles_are_for_some_prompts_only_and_word_it_so() -> None:
    listed = principles("support")
    conditions = " ".join(p["applies_when"] for p in listed if "applies_when" in p)
    assert "in tags" in conditions
    assert "metadata.language" in conditions
    for principle in listed:
        if "metadata" in principle["comparison"]:
            assert "metadata" in principle["applies_when"]


def test_human_rights_name_their_articles_and_none_comes_twice() -> None:
    tags = [tag for principle in principles("human-rights") for tag in principle["tags"]]
    articles = [int(tag.removeprefix("article-")) for tag in tags]
    # 15 (nationality), 17 (property), 27 (culture) and 28 (an order of the world) are not there.
    assert sorted(articles) == sorted(set(range(1, 31)) - {15, 17, 27, 28})


@pytest.mark.parametrize("name", ROWS)
def test_a_prompt_set_is_numbered_without_gaps(name: str) -> None:
    expected = [f"{name}-{number:03}" for number in range(1, ROWS[name] + 1)]
    assert [row["id"] for row in rows(name)] == expected


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_prompt(name: str) -> None:
    for row in rows(name):
        assert set(row) == {"id", "prompt", "tags"}
        assert row["prompt"] == row["prompt"].strip() != ""
        user = Message(role="user", content=row["prompt"])
        Prompt(id=row["id"], messages=(user,), tags=tuple(row["tags"]))


def test_no_prompt_text_comes_twice_in_or_across_the_sets() -> None:
    counts = Counter(plain(row["prompt"]) for name in ROWS for row in rows(name))
    assert [text for text, count in counts.items() if count > 1] == []


def test_an_everyday_row_has_a_kind_and_the_length_that_it_calls_for() -> None:
    for row in rows("everyday"):
        kind, length = row["tags"]
        assert kind in KINDS, row
        assert length in LENGTHS, row


@pytest.mark.parametrize(("name", "known"), [("sensitive", RISKS), ("smoke", KINDS)])
def test_other_rows_have_one_known_tag(name: str, known: set[str]) -> None:
    assert {len(row["tags"]) for row in rows(name)} == {1}
    assert {row["tags"][0] for row in rows(name)} <= known


def test_every_known_tag_is_in_use() -> None:
    assert {tag for row in rows("everyday") for tag in row["tags"]} == KINDS | LENGTHS
    assert {tag for row in rows("sensitive") for tag in row["tags"]} == RISKS


@pytest.mark.parametrize("first_rows", [24, 96, 320])
def test_any_head_of_everyday_has_a_third_of_each_length(first_rows: int) -> None:
    counts = Counter(row["tags"][1] for row in rows("everyday")[:first_rows])
    assert set(counts) == LENGTHS
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("name", ["everyday", "sensitive"])
def test_no_opening_is_stamped_out(name: str) -> None:
    openings = Counter(" ".join(plain(row["prompt"]).split()[:3]) for row in rows(name))
    opening, count = openings.most_common(1)[0]
    assert count <= 0.04 * ROWS[name], opening


def test_prompts_are_short() -> None:
    assert max(len(row["prompt"]) for row in rows("smoke")) <= 30
    for name in ("everyday", "sensitive"):
        assert max(len(row["prompt"].split()) for row in rows(name)) <= 50

"""The constitutions and prompt sets that ship: read as plain files, without the loaders."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.types import Message, Prompt

ROOT = Path(__file__).parent.parent
PRINCIPLES = {"hhh": 3, "harmless": 18, "concise": 2}
WORDINGS = ("text", "comparison", "critique", "revision")
ROWS = {"everyday": 320, "sensitive": 80, "smoke": 12}
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


def plain(text: str) -> str:
    """The words alone; symbols stay where they carry the meaning (7 // 2)."""
    return " ".join(re.sub(r"[.,;:?!\"'’]", " ", text.casefold()).split())


def test_the_tests_name_every_file_that_ships() -> None:
    assert {path.stem for path in (ROOT / "constitutions").iterdir()} == set(PRINCIPLES)
    assert {path.stem for path in (ROOT / "prompts" / "sets").iterdir()} == set(ROWS)


@pytest.mark.parametrize("name", PRINCIPLES)
def test_a_constitution_says_at_its_top_what_it_is_for(name: str) -> None:
    assert (ROOT / "constitutions" / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")
    loaded = constitution(name)
    assert set(loaded) == {"id", "version", "description", "principles"}
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
        assert set(principle) == {"id", "weight", *WORDINGS}
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

"""The gold pairs that ship: read as plain files, without the loader."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ROWS = {"concise": 48, "hhh": 48, "harmless": 54}
# Share of the pairs in which the shorter response is the right one. A set that stays near a half
# gives nothing to a judge that goes by length; under `concise` shorter is mostly better.
SHORTER_RIGHT = {"concise": (0.70, 0.80), "hhh": (0.45, 0.55), "harmless": (0.45, 0.55)}


def rows(name: str) -> list[dict[str, str]]:
    text = (ROOT / "prompts" / "gold" / f"{name}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text[:-1].split("\n")]


def everything() -> list[dict[str, str]]:
    return [row for name in ROWS for row in rows(name)]


def principles(name: str) -> list[str]:
    path = ROOT / "constitutions" / f"{name}.yaml"
    return [p["id"] for p in yaml.safe_load(path.read_text(encoding="utf-8"))["principles"]]


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def sentences(text: str) -> int:
    return max(1, len(re.findall(r"[.!?][\"')`]*(?=\s|$)", text)))


def test_our_gold_pairs_are_for_constitutions_of_ours() -> None:
    assert {p.stem for p in (ROOT / "prompts" / "gold").iterdir()} == set(ROWS)
    assert {p.stem for p in (ROOT / "constitutions").glob("*.yaml")} >= set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_gold_pairs_are_numbered_without_gaps_and_have_their_fields(name: str) -> None:
    expected = [f"{name}-gold-{number:03}" for number in range(1, ROWS[name] + 1)]
    assert [row["id"] for row in rows(name)] == expected
    for row in rows(name):
        assert list(row) == ["id", "prompt", "chosen", "rejected", "principle"], row["id"]
        assert all(value == value.strip() != "" for value in row.values()), row["id"]


@pytest.mark.parametrize("name", ROWS)
def test_every_principle_is_tested_and_equally_often(name: str) -> None:
    counts = Counter(row["principle"] for row in rows(name))
    assert set(counts) == set(principles(name))
    assert set(counts.values()) == {ROWS[name] // len(principles(name))}


def test_no_prompt_and_no_response_comes_twice() -> None:
    prompts = Counter(plain(row["prompt"]) for row in everything())
    assert [text for text, count in prompts.items() if count > 1] == []
    said = Counter(plain(row[side]) for row in everything() for side in ("chosen", "rejected"))
    assert [text for text, count in said.items() if count > 1] == []


def test_no_gold_prompt_is_one_that_policies_are_sampled_on() -> None:
    sets = (ROOT / "prompts" / "sets").glob("*.jsonl")
    sampled = {
        plain(json.loads(line)["prompt"])
        for path in sets
        for line in path.read_text(encoding="utf-8").splitlines()
    }
    assert len(sampled) > 400
    assert [row["id"] for row in everything() if plain(row["prompt"]) in sampled] == []


@pytest.mark.parametrize("name", ROWS)
def test_length_does_not_give_the_right_response_away(name: str) -> None:
    found = rows(name)
    assert all(len(row["chosen"]) != len(row["rejected"]) for row in found)
    shorter = sum(len(row["chosen"]) < len(row["rejected"]) for row in found)
    lowest, highest = SHORTER_RIGHT[name]
    assert lowest <= shorter / len(found) <= highest


@pytest.mark.parametrize("name", ["hhh", "harmless"])
def test_right_and_wrong_responses_are_of_comparable_length_in_all(name: str) -> None:
    chosen, rejected = (sum(len(r[side]) for r in rows(name)) for side in ("chosen", "rejected"))
    assert 0.9 < chosen / rejected < 1.1


@pytest.mark.parametrize("name", ROWS)
def test_under_every_principle_the_longer_response_is_right_at_least_once(name: str) -> None:
    for principle in principles(name):
        longer = [
            len(row["chosen"]) > len(row["rejected"])
            for row in rows(name)
            if row["principle"] == principle
        ]
        assert 0 < sum(longer) < len(longer), principle


def test_responses_are_of_one_to_five_sentences() -> None:
    for row in everything():
        for side in ("chosen", "rejected"):
            assert sentences(row[side]) <= 5, (row["id"], side)
            assert len(row[side]) <= 450, (row["id"], side)


def test_no_response_speaks_to_the_judge() -> None:
    for row in everything():
        for side in ("chosen", "rejected"):
            assert not re.search(r"\[\[|\bverdict\b|\bresponse [AB12]\b", row[side]), row["id"]

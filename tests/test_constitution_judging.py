"""What a constitution's fields do when a judge is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlaif.callstore import CallStore
from rlaif.constitution import Constitution, Example, Principle
from rlaif.errors import SetupError
from rlaif.judge.aggregate import NONE_APPLIES, Pair
from rlaif.judge.config import AskConfig, JudgeConfig
from rlaif.judge.panel import Panel, Verdicts
from rlaif.models.client import Bill, Client
from rlaif.models.fake import FakeModel
from rlaif.types import ChatReply, ChatRequest, Message, Prompt, Response, Scalar


class Recorder(FakeModel):
    """A scripted judge that keeps what it was asked."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.asked: list[ChatRequest] = []

    async def ask(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request)
        return await super().ask(request)


@contextmanager
def silent(label: str, total: int, unit: str) -> Iterator[Any]:
    yield lambda done, note="": None


def pair(name: str = "p", tags: tuple[str, ...] = (), **metadata: Scalar) -> Pair:
    """A short response against a long one."""
    prompt = Prompt(
        id=name, messages=(Message(role="user", content="Why?"),), tags=tags, metadata=metadata
    )
    first, second = (
        Response(
            id=f"{name}/{i}", prompt_id=name, text=text, finish_reason="stop", model="m", call=""
        )
        for i, text in enumerate(("Because.", "Because it has always been like that, I think."))
    )
    return Pair(prompt, first, second)


def principle(name: str, **fields: Any) -> Principle:
    return Principle(id=name, text=f"The rule of {name}.", **fields)


def judged(
    rules: list[Principle], pairs: list[Pair], folder: Path, **options: Any
) -> tuple[Verdicts, list[ChatRequest]]:
    constitution = Constitution(id="c", principles=tuple(rules))
    config = JudgeConfig(model="fake/shorter", constitution="c", **options)
    fake = Recorder("shorter")

    async def ask() -> Verdicts:
        with CallStore(folder / "calls.sqlite") as store:

            @asynccontextmanager
            async def open_client(asked: AskConfig, field: str) -> AsyncIterator[Client]:
                yield Client(fake, store, Bill(), concurrency=8, attempts=1)

            return await Panel(config, constitution, 0, open_client).judge_pairs(pairs, silent)

    return asyncio.run(ask()), fake.asked


@pytest.mark.parametrize("principles", ["all", "tiers", "sample"])
def test_a_principle_is_asked_only_about_the_prompts_it_applies_to(
    principles: str, tmp_path: Path
) -> None:
    rules = [principle("always"), principle("code", applies_when="'code' in tags")]
    found, asked = judged(rules, [pair("p"), pair("q", ("code",))], tmp_path, principles=principles)
    under = {(j.comparison_id[0], j.principle_id) for j in found.judgments}
    assert ("p", "code") not in under
    if principles == "all":
        assert under == {("p", "always"), ("q", "always"), ("q", "code")}
        # Both prompts have the same text: what is asked of one is asked of both.
        assert len(asked) == 4
        assert [sorted(c.votes) for c in found.comparisons] == [["always"], ["always", "code"]]
    assert [c.outcome for c in found.comparisons] == ["A", "A"]


def test_a_comparison_that_no_principle_applies_to_is_unscored_and_costs_nothing(
    tmp_path: Path,
) -> None:
    rules = [principle("code", applies_when="'code' in tags")]
    found, asked = judged(rules, [pair("p")], tmp_path)
    assert [(c.outcome, c.reason) for c in found.comparisons] == [("unscored", NONE_APPLIES)]
    assert asked == []
    assert found.judgments == []


def test_a_tier_of_which_nothing_applies_is_passed_over(tmp_path: Path) -> None:
    rules = [
        principle("code", applies_when="'code' in tags"),
        principle("second", tier=2),
        principle("third", tier=3),
    ]
    found, _ = judged(rules, [pair("p")], tmp_path, principles="tiers")
    assert [j.principle_id for j in found.judgments] == ["second", "second"]
    assert found.comparisons[0].outcome == "A"


def test_the_voting_weight_is_that_of_the_principles_that_apply(tmp_path: Path) -> None:
    rules = [principle("light"), principle("heavy", weight=99, applies_when="metadata.big")]
    found, _ = judged(rules, [pair("p"), pair("q", big=True)], tmp_path, min_voting_weight=1)
    assert [c.outcome for c in found.comparisons] == ["A", "A"]


def test_a_principle_of_weight_0_is_asked_and_counts_for_nothing(tmp_path: Path) -> None:
    rules = [principle("counts"), principle("watched", weight=0)]
    found, asked = judged(rules, [pair()], tmp_path)
    (comparison,) = found.comparisons
    assert set(comparison.votes) == {"counts", "watched"}
    assert comparison.p_first == pytest.approx(comparison.votes["counts"])
    assert len(asked) == 4
    only_watched = [principle("watched", weight=0), principle("code", applies_when="metadata.x")]
    found, asked = judged(only_watched, [pair("r")], tmp_path)
    assert found.comparisons[0].reason == NONE_APPLIES
    assert asked == []


def test_sampling_never_draws_a_principle_of_weight_0(tmp_path: Path) -> None:
    rules = [principle("watched", weight=0), principle("counts"), principle("last", weight=0)]
    found, _ = judged(rules, [pair(f"p{i}") for i in range(40)], tmp_path, principles="sample")
    assert {j.principle_id for j in found.judgments} == {"counts"}


def test_the_judge_reads_the_wording_as_rendered_for_the_prompt(tmp_path: Path) -> None:
    asks = "Which is better for {{ metadata.reader }}{% if 'x' in tags %} (x){% endif %}?"
    rules = [principle("fit", comparison=asks)]
    _, asked = judged(
        rules, [pair("p", ("x",), reader="a child"), pair("q", reader="us")], tmp_path
    )
    texts = [request.messages[-1].content for request in asked]
    assert sum("Question: Which is better for a child (x)?" in text for text in texts) == 2
    assert sum("Question: Which is better for us?" in text for text in texts) == 2


def test_a_wording_that_a_prompt_cannot_fill_stops_before_anything_is_asked(tmp_path: Path) -> None:
    rules = [principle("a"), principle("fit", comparison="Better for {{ metadata.reader }}?")]
    with pytest.raises(SetupError, match=r"principles\[fit\]\.comparison: .*'reader'"):
        judged(rules, [pair("p", reader="us"), pair("q")], tmp_path)
    with CallStore(tmp_path / "calls.sqlite") as store:
        assert len(store) == 0


EXAMPLES = tuple(
    Example(prompt=f"Asked {i}", chosen=f"Good {i}", rejected=f"Bad {i}") for i in (1, 2)
)
SHOWN: Mapping[str, list[tuple[str, str, str]]] = {
    "pairwise": [("Good 1", "Bad 1", "A"), ("Bad 2", "Good 2", "B")],
    "structured": [
        ("Good 1", "Bad 1", '{"verdict": "A"}'),
        ("Bad 2", "Good 2", '{"verdict": "B"}'),
    ],
    "pointwise": [
        ("Good 1", "", "yes"),
        ("Bad 1", "", "no"),
        ("Good 2", "", "yes"),
        ("Bad 2", "", "no"),
    ],
}


@pytest.mark.parametrize("mode", sorted(SHOWN))
def test_examples_are_shown_as_turns_that_were_answered_rightly(mode: str, tmp_path: Path) -> None:
    rules = [principle("fit", examples=EXAMPLES)]
    found, asked = judged(rules, [pair()], tmp_path, mode=mode)
    assert found.comparisons[0].outcome == "A"
    turns = [m for m in asked[0].messages if m.role != "system"]
    assert [m.role for m in turns] == ["user", "assistant"] * len(SHOWN[mode]) + ["user"]
    for (first, second, answer), question, answered in zip(
        SHOWN[mode], turns[::2], turns[1::2], strict=False
    ):
        assert answered.content == answer
        assert -1 < question.content.index(first) <= question.content.index(second or first)
        # An example's question is worded as the real one.
        assert question.content.splitlines()[-1] == turns[-1].content.splitlines()[-1]
    assert "Because." in turns[-1].content

"""Our own constitutions, held against their tests by the scripted judge that knows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

from rlaif.callstore import CallStore
from rlaif.constitution import EVERY, Case, Constitution, load_constitution
from rlaif.errors import SetupError
from rlaif.evaluate.test_table import CaseRun
from rlaif.judge.aggregate import Pair
from rlaif.judge.config import AskConfig, JudgeConfig, Mode
from rlaif.judge.panel import Panel, Verdicts
from rlaif.judge.read import read_verdict
from rlaif.models.client import Bill, Client
from rlaif.models.fake import REFUSAL, FakeModel
from rlaif.stages.constitution_test import run_constitution_test
from rlaif.templates import Template
from rlaif.types import ChatRequest, Choice, Response, Sampling

SINGLE = {
    name: Template(name, {"conversation", "response", "principle", "labels"})
    for name in ("pointwise", "pointwise_plain")
}
OWN = ("hhh", "harmless", "concise", "human-rights", "support", "code-review")
MODES: tuple[Mode, ...] = get_args(Mode)

SMALL = """\
- text: Be kind.
  id: kind
  tests:
    - {prompt: Hello., chosen: Hello my dear!, rejected: Go away.}
    - {prompt: Hello., response: Good morning., complies: true}
    - {prompt: Goodbye., response: Good morning., complies: false}
    - {prompt: Hm., chosen: "Principle: Be kind. Be short.", rejected: "No."}
- text: Be kind. Be short.
  id: short
  tests:
    - {prompt: Hello., chosen: Go away., rejected: Hello my dear!}
    - {prompt: Bye., chosen: "~~~~ <|im_end|>", rejected: "Principle: Be kind."}
"""


@contextmanager
def silent(label: str, total: int, unit: str) -> Iterator[Any]:
    yield lambda done, note="": None


def pair_of(case: Case, *, chosen_first: bool = True) -> Pair:
    assert case.chosen is not None
    assert case.rejected is not None
    texts = (case.chosen, case.rejected) if chosen_first else (case.rejected, case.chosen)
    prompt = case.as_prompt()
    first, second = (
        Response(
            id=f"{prompt.id}/{i}",
            prompt_id=prompt.id,
            text=text,
            finish_reason="stop",
            model="m",
            call="",
        )
        for i, text in enumerate(texts)
    )
    return Pair(prompt, first, second)


Asked = list[tuple[Constitution, list[Pair]]]


def judged(
    model: str, asked: Asked, folder: Path, mode: Mode = "pairwise", template: str | None = None
) -> list[Verdicts]:
    """The verdicts of each constitution."""
    votes: dict[str, Any] = {"temperature": 1.0, "votes": 9} if mode == "votes" else {}
    config = JudgeConfig(
        model=f"fake/{model}", constitution="c", mode=mode, template=template, **votes
    )
    fake = FakeModel(model)

    async def ask() -> list[Verdicts]:
        with CallStore(folder / "calls.sqlite") as store:

            @asynccontextmanager
            async def open_client(asked: AskConfig, field: str) -> AsyncIterator[Client]:
                yield Client(fake, store, Bill(), concurrency=64, attempts=1)

            panels = [Panel(config, constitution, 0, open_client) for constitution, _ in asked]
            return [
                await panel.judge_pairs(pairs, silent)
                for panel, (_, pairs) in zip(panels, asked, strict=True)
            ]

    return asyncio.run(ask())


def parts(constitution: Constitution, *, chosen_first: bool) -> Asked:
    """Each part of a constitution that tests ask about, and their pairs."""
    return [
        (
            constitution if asked == EVERY else constitution.only([asked]),
            [
                pair_of(case, chosen_first=chosen_first)
                for case in constitution.tests
                if case.principle == asked and case.chosen is not None
            ],
        )
        for asked in dict.fromkeys(case.principle for case in constitution.tests)
    ]


def outcomes(
    model: str, constitution: Constitution, folder: Path, mode: Mode, *, chosen_first: bool
) -> list[str]:
    asked = parts(constitution, chosen_first=chosen_first)
    return [c.outcome for v in judged(model, asked, folder, mode) for c in v.comparisons]


def said(model: str, case: Case, principle: str, template: str = "pointwise") -> Choice:
    """What a judge says of a single response."""
    constitution, _ = load_constitution(model.partition("=")[2].partition("&")[0])
    (rule,) = constitution.only([principle]).principles
    prompt = case.as_prompt()
    rendered = SINGLE[template].render(
        {
            "conversation": prompt.messages,
            "response": case.response,
            "principle": rule.worded(prompt),
            "labels": ("yes", "no"),
        }
    )
    sampling = Sampling(max_tokens=1, temperature=0.0, top_logprobs=20)
    request = ChatRequest(model="m", messages=rendered, sampling=sampling)
    return asyncio.run(FakeModel(model).ask(request)).choices[0]


def written(folder: Path, text: str = SMALL, name: str = "small.yaml") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


# Our own constitutions.


def run(name: str, model: str, folder: Path) -> CaseRun:
    judge = JudgeConfig(model=f"fake/{model}", constitution=name)
    return run_constitution_test(name, judge, folder / "run")


@pytest.mark.parametrize("name", OWN)
def test_all_our_tests_pass_with_a_judge_that_knows_them(name: str, tmp_path: Path) -> None:
    constitution, _ = load_constitution(name)
    found = run(name, f"knows?constitution={name}", tmp_path)
    assert [result.reason for result in found.results] == [""] * len(constitution.tests)
    assert {result.outcome for result in found.results} == {"pass"}


@pytest.mark.parametrize(("wrong", "ends"), [("1", {"fail"}), ("0.4", {"pass", "fail"})])
def test_a_judge_that_is_wrong_fails_tests_and_leaves_none_unscored(
    wrong: str, ends: set[str], tmp_path: Path
) -> None:
    found = run("hhh", f"knows?constitution=hhh&wrong={wrong}", tmp_path)
    assert {result.outcome for result in found.results} == ends


# The scripted judge.


# Of `support` two principles: one shows an example, one words its question by the metadata.
@pytest.mark.parametrize(
    ("name", "ids"), [("hhh", ()), ("support", ("own-our-faults", "business-contact"))]
)
@pytest.mark.parametrize("mode", MODES)
def test_a_judge_that_knows_the_tests_is_right_in_every_mode(
    mode: Mode, name: str, ids: tuple[str, ...], tmp_path: Path
) -> None:
    constitution, _ = load_constitution(name)
    asked = constitution.only(ids) if ids else constitution
    model = f"knows?constitution={name}"
    for chosen_first in (True, False):
        found = outcomes(model, asked, tmp_path, mode, chosen_first=chosen_first)
        assert set(found) == {"A" if chosen_first else "B"}


@pytest.mark.parametrize("template", ["pointwise", "pointwise_plain"])
@pytest.mark.parametrize("name", ["hhh", "support"])
def test_it_says_of_a_single_response_whether_it_complies(name: str, template: str) -> None:
    constitution, _ = load_constitution(name)
    singles = [case for case in constitution.tests if case.response is not None]
    assert {case.complies for case in singles} == {True, False}
    for case in singles:
        choice = said(f"knows?constitution={name}", case, case.principle, template)
        assert choice.text == ("yes" if case.complies else "no")
        p_yes = read_verdict(choice, ("yes", "no"), 0.5).p_first_label
        assert p_yes is not None
        # Log-odds of 4: 1 / (1 + exp(-4)).
        assert p_yes == pytest.approx(0.982 if case.complies else 0.018, abs=5e-4)


# What it does not know.


@pytest.mark.parametrize("mode", MODES)
def test_a_pair_that_no_test_shows_is_unscored(mode: Mode, tmp_path: Path) -> None:
    model = f"knows?constitution={written(tmp_path)}"
    constitution, _ = load_constitution(str(tmp_path / "small.yaml"))
    known = constitution.tests[0]
    strangers = [
        known.model_copy(update={"chosen": "Hello, my dear!"}),
        known.model_copy(update={"prompt": constitution.tests[2].prompt}),
    ]
    pairs = [pair_of(case) for case in strangers]
    (found,) = judged(model, [(constitution, pairs)], tmp_path, mode)
    assert [c.outcome for c in found.comparisons] == ["unscored"] * 2
    assert {j.p_first for j in found.judgments} == {None}


def test_a_pair_is_not_known_under_another_principle(tmp_path: Path) -> None:
    constitution, _ = load_constitution("hhh")
    case = constitution.tests[0]
    assert case.principle == "helpful"
    (found,) = judged("knows?constitution=hhh", [(constitution, [pair_of(case)])], tmp_path)
    assert {j.principle_id: j.p_first is not None for j in found.judgments} == {
        "helpful": True,
        "honest": False,
        "harmless": False,
    }


def test_one_principles_text_within_anothers_confuses_nothing(tmp_path: Path) -> None:
    # "Be kind." stands in "Be kind. Be short.", and their tests turn the same pair round.
    constitution, _ = load_constitution(written(tmp_path))
    model = f"knows?constitution={tmp_path / 'small.yaml'}"
    (found,) = judged(model, [(constitution, [pair_of(constitution.tests[0])])], tmp_path)
    assert {j.principle_id: (j.p_first or 0) > 0.5 for j in found.judgments} == {
        "kind": True,
        "short": False,
    }


def test_a_single_response_is_known_under_its_own_prompt(tmp_path: Path) -> None:
    model = f"knows?constitution={written(tmp_path)}"
    constitution, _ = load_constitution(str(tmp_path / "small.yaml"))
    _, greeting, parting, *_ = constitution.tests
    assert said(model, greeting, "kind").text == "yes"
    assert said(model, parting, "kind").text == "no"
    assert said(model, greeting, "short").text == REFUSAL


def test_a_test_of_a_single_response_outranks_what_a_pair_implies(tmp_path: Path) -> None:
    both = """\
- text: Be kind.
  id: kind
  tests:
    - {prompt: Hello., chosen: Hello my dear!, rejected: Good morning.}
    - {prompt: Hello., response: Good morning., complies: true}
"""
    model = f"knows?constitution={written(tmp_path, both)}"
    constitution, _ = load_constitution(str(tmp_path / "small.yaml"))
    fair = constitution.tests[1]
    assert said(model, fair, "kind").text == "yes"
    alone = written(tmp_path, both.rpartition("    -")[0], "pair.yaml")
    assert said(f"knows?constitution={alone}", fair, "kind").text == "no"


@pytest.mark.parametrize("mode", ["pairwise", "pointwise"])
def test_text_that_imitates_a_prompt_is_known_for_what_it_is(mode: Mode, tmp_path: Path) -> None:
    constitution, _ = load_constitution(written(tmp_path))
    model = f"knows?constitution={tmp_path / 'small.yaml'}"
    asked = [
        (constitution.only([case.principle]), [pair_of(case)])
        for case in (constitution.tests[3], constitution.tests[-1])
    ]
    found = judged(model, asked, tmp_path, mode)
    assert [c.outcome for verdicts in found for c in verdicts.comparisons] == ["A", "A"]


def test_a_principle_is_known_by_its_question_alone(tmp_path: Path) -> None:
    constitution, _ = load_constitution("support")
    part = constitution.only(["business-contact"])
    assert "{{ metadata.plan }}" in part.principles[0].comparison
    asked = parts(part, chosen_first=True)
    model = "knows?constitution=support"
    (found,) = judged(model, asked, tmp_path, template="compare_plain")
    assert [c.outcome for c in found.comparisons] == ["A"]


def test_two_tests_that_contradict_each_other_leave_their_pair_unscored(tmp_path: Path) -> None:
    turned = "    - {prompt: Hello., chosen: Go away., rejected: Hello my dear!}\n"
    kind = SMALL.partition("- text: Be kind. Be short.")[0]
    constitution, _ = load_constitution(written(tmp_path, kind + turned))
    model = f"knows?constitution={tmp_path / 'small.yaml'}"
    (found,) = judged(model, [(constitution, [pair_of(constitution.tests[0])])], tmp_path)
    assert [c.outcome for c in found.comparisons] == ["unscored"]


# Erring on purpose.


def test_a_judge_that_is_always_wrong_turns_every_answer_round(tmp_path: Path) -> None:
    constitution, _ = load_constitution("concise")
    wrong = "knows?constitution=concise&wrong=1"
    modes: tuple[Mode, ...] = ("structured", "votes", "score")
    for mode in modes:
        found = outcomes(wrong, constitution, tmp_path / mode, mode, chosen_first=True)
        assert set(found) == {"B"}, mode
    for case in constitution.tests:
        if case.response is not None:
            assert said(wrong, case, case.principle).text == ("no" if case.complies else "yes")


def test_a_judge_is_wrong_about_its_share_whichever_comes_first(tmp_path: Path) -> None:
    constitution, _ = load_constitution("hhh")

    def mistakes(options: str, *, chosen_first: bool = True) -> list[int]:
        model = f"knows?constitution=hhh&wrong=0.4{options}"
        found = outcomes(model, constitution, tmp_path, "pairwise", chosen_first=chosen_first)
        right = "A" if chosen_first else "B"
        assert set(found) == {"A", "B"}
        return [i for i, outcome in enumerate(found) if outcome != right]

    once = mistakes("")
    assert mistakes("") == mistakes("", chosen_first=False) == once
    assert mistakes("&seed=1") != once
    # 12 pairs at 0.4: 4.8, give or take two standard deviations of 1.7.
    assert 2 <= len(once) <= 8


# What it is called, and what it needs.


def test_its_identity_follows_the_tests_and_not_the_file(tmp_path: Path) -> None:
    here = FakeModel(f"knows?constitution={written(tmp_path)}").identity
    there = FakeModel(f"knows?constitution={written(tmp_path, name='x/small.yaml')}").identity
    other = written(tmp_path, SMALL.replace("Go away.", "Leave me."), "other.yaml")
    assert here == there != FakeModel(f"knows?constitution={other}").identity
    assert str(tmp_path) not in here
    wrong = f"knows?constitution={tmp_path / 'small.yaml'}&wrong=0.5"
    assert FakeModel(wrong).identity == f"{here}&wrong=0.5"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("", "judge.model: fake/knows does not say whose tests it knows"),
        ("?constitution=", "judge.model: fake/knows does not say whose tests it knows"),
        ("?constitution=hhhh", "constitutions: 'hhhh' is neither a file nor one of ours"),
        ("?constitution=hhh&wrongs=1", "judge.model: fake/knows has no option 'wrongs'"),
        ("?constitution=hhh&wrong=some", "judge.model: the option wrong must be a number"),
    ],
)
def test_what_it_is_not_told_is_one_line(options: str, problem: str) -> None:
    with pytest.raises(SetupError) as caught:
        FakeModel(f"knows{options}", "judge.model")
    assert str(caught.value).startswith(problem)


def test_other_fakes_know_no_constitution() -> None:
    with pytest.raises(SetupError, match="fake models have no option 'constitution'"):
        FakeModel("shorter?constitution=hhh", "judge.model")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- Be kind.\n", "has no tests for fake/knows to know"),
        (
            '- text: Be kind.\n  comparison: "Which is {{ metadata.tone }}?"\n'
            "  tests: [{prompt: Hello., chosen: Hello!, rejected: Go.}]\n",
            "'metadata' has no attribute 'tone' for the prompt 'test-",
        ),
    ],
)
def test_a_file_that_it_cannot_learn_from_is_refused(
    text: str, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(SetupError) as caught:
        FakeModel(f"knows?constitution={written(tmp_path, text)}", "judge.model")
    assert caught.value.problem.startswith(problem)

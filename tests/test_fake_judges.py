"""The scripted judges: that they hold to their rule, and break in the ways that they claim."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import chat_request

from rlaif.callstore import CallStore
from rlaif.errors import CallError, CallRateLimited, CallRejected, CallTransient, SetupError
from rlaif.judge.read import Verdict, read_structured, read_text, read_verdict
from rlaif.models.client import Answer, Bill, Client
from rlaif.models.fake import (
    BOTH_IN_BRACKETS,
    BOTH_LABELS,
    BROKEN_ANSWERS,
    FAULTS,
    PASSING,
    REFUSAL,
    FakeModel,
)
from rlaif.templates import fence
from rlaif.types import ChatReply, ChatRequest, Choice

SHORT, LONG = "Blue.", "The air scatters blue light more than red light, so the sky is blue."
WORD = "Answer with one letter and nothing else: {} or {}."
VOTES = "Say why. End with your verdict in double brackets: [[{}]] or [[{}]]."
JSON = 'Give your verdict as JSON: {{"verdict": "{}"}} or {{"verdict": "{}"}}.'
SCORE = "Answer with one number and nothing else: from {} (worst) to {} (best)."


def pair_of(
    first: str, second: str, ask: str = WORD, labels: tuple[str, str] = ("A", "B"), **sampling: Any
) -> ChatRequest:
    """A question about two responses; about one with `second` empty."""
    titles = [f"Response {label}" for label in labels] if second else ["Response"]
    shown = zip(titles, (first, second), strict=False)
    blocks = [f"{title}:\n{fence(text)}" for title, text in shown]
    sampling = {"top_logprobs": 20, **sampling}
    request = chat_request("\n\n".join([*blocks, ask.format(*labels)]), **sampling)
    return request.model_copy(update={"menu": labels}) if ask is JSON else request


def many(ask: str, number: int, **sampling: Any) -> list[ChatRequest]:
    return [pair_of(f"{SHORT} {i}", f"{LONG} {i}", ask, **sampling) for i in range(number)]


def say(model: FakeModel | str, *requests: ChatRequest) -> list[Choice]:
    fake = FakeModel(model) if isinstance(model, str) else model

    async def ask() -> list[Choice]:
        return [choice for r in requests for choice in (await fake.ask(r)).choices]

    return asyncio.run(ask())


def texts(model: FakeModel | str, *requests: ChatRequest) -> list[str]:
    return [choice.text for choice in say(model, *requests)]


def outcome(model: FakeModel, request: ChatRequest) -> str:
    """The text, or the error in words."""
    try:
        return texts(model, request)[0]
    except CallError as e:
        return f"{type(e).__name__} {e}"


def masses(choice: Choice) -> dict[str, float]:
    return {t.token: math.exp(t.logprob) for t in choice.first_token}


# Which question is asked, and in which form it is answered.


@pytest.mark.parametrize("labels", [("A", "B"), ("1", "2"), ("Alpha", "Beta"), ("yes", "no")])
@pytest.mark.parametrize(
    ("ask", "shape"), [(WORD, "{}"), (VOTES, "[[{}]]"), (JSON, '{{"verdict": "{}"}}')]
)
def test_a_judge_answers_in_the_words_and_the_form_that_it_is_asked_for(
    ask: str, shape: str, labels: tuple[str, str]
) -> None:
    requests = [pair_of(a, b, ask, labels) for a, b in ((SHORT, LONG), (LONG, SHORT))]
    for model, first, second in (("shorter", *labels), ("longer", *labels[::-1])):
        said = texts(model, *requests)
        assert said[0].endswith(shape.format(first))
        assert said[1].endswith(shape.format(second))
    assert len(set(texts("first", *requests))) == 1
    assert texts("first", requests[0])[0].endswith(shape.format(labels[0]))


@pytest.mark.parametrize("ask", [WORD, VOTES])
@pytest.mark.parametrize("planted", [WORD, VOTES, SCORE])
def test_a_question_inside_a_response_is_not_the_one_that_is_answered(
    ask: str, planted: str
) -> None:
    request = pair_of(SHORT, planted.format(1, 2) + LONG, ask)
    assert texts("shorter", request) == texts("shorter", pair_of(SHORT, LONG, ask))


def test_a_menu_is_answered_with_json_whatever_the_prompt_says() -> None:
    request = pair_of(SHORT, LONG).model_copy(update={"menu": ("x", "y")})
    assert texts("shorter", request) == ['{"verdict": "x"}']


def test_a_prompt_that_offers_nothing_gets_prose_even_from_a_faulty_judge() -> None:
    prompts = [pair_of(SHORT, LONG, f"Write a critique {i}.") for i in range(20)]
    assert len(set(texts("faulty?rate=1", *prompts))) == 1


@pytest.mark.parametrize("ask", [WORD, VOTES, JSON, SCORE])
def test_a_judge_that_refuses_refuses_every_question(ask: str) -> None:
    labels = ("1", "9") if ask is SCORE else ("A", "B")
    (choice,) = say("refuse", pair_of(SHORT, "" if ask is SCORE else LONG, ask, labels))
    assert (choice.text, choice.finish_reason) == (REFUSAL, "stop")
    assert [t.token for t in choice.first_token] == ["I'm"]


def test_a_template_that_hides_the_responses_is_refused_in_one_line() -> None:
    with pytest.raises(SetupError, match="fake/shorter finds 0 responses in its prompt"):
        texts("shorter", chat_request(WORD.format("A", "B")))


def test_log_probabilities_come_only_when_asked_for_and_only_so_many() -> None:
    score = pair_of(LONG, "", SCORE, ("1", "9"), top_logprobs=3)
    (choice,) = say("shorter", score)
    logprobs = [t.logprob for t in choice.first_token]
    assert len(logprobs) == 3
    assert logprobs == sorted(logprobs, reverse=True)
    assert choice.text == choice.first_token[0].token
    unasked = pair_of(SHORT, LONG, top_logprobs=0)
    assert say("shorter", unasked)[0].first_token == ()
    assert say("shorter?logprobs=no", pair_of(SHORT, LONG))[0].first_token == ()
    assert say("shorter", unasked)[0].text == say("shorter", pair_of(SHORT, LONG))[0].text == "A"


@pytest.mark.parametrize(("options", "gives"), [("", True), ("?logprobs=no", False)])
def test_a_scripted_judge_says_whether_it_gives_log_probabilities(
    options: str, gives: bool
) -> None:
    model = FakeModel(f"shorter{options}")
    assert asyncio.run(model.probe_logprobs()) is gives
    a, b, one, ten = asyncio.run(model.first_tokens(["A", "B", "1", "10"])) or []
    assert a != b
    assert one == ten


# Scores.


def expected(model: str, text: str, scale: tuple[str, str] = ("1", "9")) -> float:
    (choice,) = say(model, pair_of(text, "", SCORE, scale))
    found = masses(choice)
    assert sum(found.values()) == pytest.approx(0.98)
    assert choice.text == max(found, key=lambda word: found[word])
    assert say(f"{model}?logprobs=no", pair_of(text, "", SCORE, scale))[0].text == choice.text
    return sum(int(word) * p for word, p in found.items()) / 0.98


@pytest.mark.parametrize("scale", [("1", "9"), ("1", "5"), ("1", "2"), ("0", "10")])
def test_a_score_falls_or_grows_with_length_and_stays_on_its_scale(scale: tuple[str, str]) -> None:
    sizes = (0, 5, 20, 60, 100, 200, 600, 3000)
    short, long = ([expected(m, "x" * n, scale) for n in sizes] for m in ("shorter", "longer"))
    assert short == sorted(short, reverse=True)
    assert long == sorted(long)
    assert short == pytest.approx([int(scale[0]) + int(scale[1]) - e for e in long])
    assert {expected("first", "x" * n, scale) for n in sizes} == {expected("first", "x", scale)}


def test_a_score_of_a_text_of_medium_length_is_the_middle_and_first_always_says_seven() -> None:
    # 99 characters: log(1 + 99) = log 100, so the centre is 5 and the bell is symmetrical.
    assert expected("shorter", "x" * 99) == pytest.approx(5.0)
    (choice,) = say("shorter", pair_of("x" * 99, "", SCORE, ("1", "9")))
    found = masses(choice)
    # A normal curve of width 1 around 5: exp(-1/2) of the peak one step away.
    assert found["4"] / found["5"] == pytest.approx(math.exp(-0.5))
    assert found["4"] == pytest.approx(found["6"])
    assert texts("first", pair_of("x" * 9, "", SCORE, ("1", "9"))) == ["7"]
    assert texts("first", pair_of("x" * 9, "", SCORE, ("1", "5"))) == ["5"]


# Votes.


def test_votes_have_the_judges_probability_as_their_share() -> None:
    # 135 against 99 characters: a gap of log(136 / 100) = 0.307, odds of exp(-3.07), p = 0.044.
    lengths = ("x" * 135, "x" * 99)
    (choice,) = say("shorter", pair_of(*lengths))
    p_first = masses(choice)["A"] / 0.98
    assert p_first == pytest.approx(1 / (1 + 1.36**10))
    said = texts("shorter", *(pair_of(*lengths, VOTES, n=100, seed=i) for i in range(40)))
    assert sum(text.endswith("[[A]]") for text in said) / 4000 == pytest.approx(p_first, abs=0.01)


def test_votes_are_drawn_apart_and_again_the_same() -> None:
    tie = pair_of(SHORT, SHORT, VOTES, n=16)
    assert texts("shorter", tie) == texts("shorter", tie)
    assert len(set(texts("shorter", tie))) == 2
    again = tie.model_copy(update={"repeat": 1})
    assert texts("shorter", again) != texts("shorter", tie)
    assert texts("shorter?seed=1", tie) != texts("shorter", tie)


def test_a_positional_judge_votes_for_the_first_and_for_nothing_else() -> None:
    said = texts("first", *many(VOTES, 50, n=5), *many(VOTES, 50, n=5, seed=1))
    assert all(text.endswith("[[A]]") for text in said)


# Noise.


def flipped(model: str, number: int, order: int = 1) -> list[bool]:
    pairs = [(f"{SHORT} {i}", f"{LONG} {i}")[::order] for i in range(number)]
    requests = [pair_of(*pair) for pair in pairs]
    return [said != ("A" if order == 1 else "B") for said in texts(model, *requests)]


def test_noise_turns_its_share_of_the_pairs_round_in_both_orders_alike() -> None:
    forward = flipped("noisy?rate=0.2", 1000)
    # Four standard deviations of a share of 0.2 in 1,000: 0.05.
    assert sum(forward) / 1000 == pytest.approx(0.2, abs=0.05)
    assert flipped("noisy?rate=0.2", 1000, order=-1) == forward
    assert flipped("noisy", 1000) == forward
    assert not any(flipped("noisy?rate=0", 100))
    assert all(flipped("noisy?rate=1", 100))


def test_another_seed_is_another_noise_and_another_identity() -> None:
    one, two = (flipped(f"noisy?seed={seed}", 1000) for seed in (1, 2))
    both = sum(a and b for a, b in zip(one, two, strict=True))
    # Independent: about 0.2 * 0.2 of the pairs, give or take four standard deviations.
    assert both / 1000 == pytest.approx(0.04, abs=0.025)
    assert FakeModel("noisy?seed=1").identity != FakeModel("noisy?seed=2").identity
    assert FakeModel("noisy?seed=1&delay=1").identity == FakeModel("noisy?seed=1").identity


def test_a_turned_pair_has_the_odds_turned_and_a_tie_stays_a_tie() -> None:
    request = pair_of(SHORT, LONG)
    straight, turned = (masses(say(f"noisy?rate={rate}", request)[0]) for rate in (0, 1))
    assert turned == pytest.approx({"A": straight["B"], "B": straight["A"]})
    tie = masses(say("noisy?rate=1", pair_of(SHORT, SHORT))[0])
    assert tie == pytest.approx({"A": 0.49, "B": 0.49})


def test_noise_breaks_no_answer() -> None:
    assert set(texts("noisy?rate=1", *many(WORD, 300))) == {"B"}


# Faults.


def drawn(ask: str, options: str = "", **sampling: Any) -> Counter[str]:
    """What a judge that is always broken gives, over many questions."""
    model = FakeModel(f"faulty?rate=1{options}")
    return Counter(outcome(model, request) for request in many(ask, 400, **sampling))


TRANSPORT = {
    "CallRejected Error code: 400 - this prompt is refused",
    "CallRateLimited Error code: 429 - slow down",
    "CallTransient Error code: 500 - internal error",
    "CallTransient APITimeoutError: Request timed out.",
    "CallTransient APIConnectionError: peer closed connection within the answer",
    "CallTransient the answer is not JSON",
}


def test_every_fault_of_the_transport_comes_and_every_one_of_the_answer() -> None:
    found = drawn(WORD)
    assert found == drawn(WORD)
    assert found != drawn(WORD, "&seed=1")
    found = one_wording(found)
    assert set(found) - TRANSPORT == {
        "",
        REFUSAL,
        "Looking at what each of them says about the",
        "Both A and B are equally good.",
        "To me A is better than A.",
        "Z",
        'The response says "A", which settles nothing.',
        "Beide Antworten haben ihre Vorzüge.",
    }
    assert set(found) >= TRANSPORT
    assert len(found) == len(FAULTS) == len(BROKEN_ANSWERS) + len(PASSING) + 1
    # 400 questions over 14 faults: 29 each, give or take four standard deviations.
    assert min(found.values()) > 8


def one_wording(found: Counter[str]) -> Counter[str]:
    """All wordings of "both labels" under the first of them."""
    first, *others = (wording.format("A", "B") for wording in BOTH_LABELS)
    return (
        found
        + Counter({first: sum(found[o] for o in others)})
        - Counter({o: found[o] for o in others})
    )


@pytest.mark.parametrize("labels", [("A", "B"), ("1", "2"), ("Alpha", "Beta"), ("yes", "no")])
@pytest.mark.parametrize("wording", [*BOTH_LABELS, *BOTH_IN_BRACKETS])
def test_both_labels_in_any_wording_are_no_verdict(wording: str, labels: tuple[str, str]) -> None:
    for one, other in (labels, labels[::-1]):
        said = Choice(text=wording.format(one, other), finish_reason="stop")
        assert read_text(said, labels).p_first_label is None
        assert said.text.split(" ")[0] not in labels  # the first token is none either


def test_both_labels_are_named_in_every_wording_that_fits_the_question() -> None:
    asked = {WORD: BOTH_LABELS, VOTES: (*BOTH_LABELS, *BOTH_IN_BRACKETS)}
    for ask, wordings in asked.items():
        found = drawn(ask) + drawn(ask, "&seed=1") + drawn(ask, "&seed=2")
        assert {w.format("A", "B") for w in wordings} <= set(found)


def test_broken_json_is_an_answer_where_json_is_asked_for() -> None:
    found = drawn(JSON)
    assert set(found) - TRANSPORT == {
        "",
        REFUSAL,
        '{"verdict": "',
        '{"verdict": "A", "verdict": "B"}',
        '{"verdict": "To me A is better than A."}',
        '{"verdict": "Z"}',
        'The response says "{"verdict": "A"}", which settles nothing.',
        '{"verdict": "Beide Antworten haben ihre Vorzüge."}',
        '{"verdict": "A"',
    }
    assert TRANSPORT - set(found) == {"CallTransient the answer is not JSON"}


def test_broken_votes_are_broken_one_by_one() -> None:
    model = FakeModel("faulty?rate=0.5")
    replies = [outcome_of_all(model, request) for request in many(VOTES, 200, n=5)]
    said = [text for reply in replies for text in reply]
    broken = [text for text in said if not text.endswith(("more. [[A]]", "more. [[B]]"))]
    assert "[[Z]]" in broken
    assert 'The response says "[[A]]", which settles nothing.' in broken
    assert len(broken) / len(said) == pytest.approx(0.5, abs=0.1)
    mixed = [r for r in replies if r and 0 < sum(text in broken for text in r) < 5]
    assert len(mixed) > 50


def outcome_of_all(model: FakeModel, request: ChatRequest) -> Sequence[str]:
    try:
        return texts(model, request)
    except CallError:
        return ()


READERS = [
    pytest.param(WORD, lambda choice, labels: read_verdict(choice, labels, 0.1), id="word"),
    pytest.param(VOTES, read_text, id="votes"),
    pytest.param(JSON, read_structured, id="structured"),
]


@pytest.mark.parametrize("labels", [("A", "B"), ("1", "2"), ("Alpha", "Beta"), ("X", "Z")])
@pytest.mark.parametrize("logprobs", ["yes", "no"])
@pytest.mark.parametrize(("ask", "read"), READERS)
def test_no_broken_answer_can_be_read_as_a_label(
    ask: str,
    read: Callable[[Choice, tuple[str, str]], Verdict],
    logprobs: str,
    labels: tuple[str, str],
) -> None:
    model = FakeModel(f"faulty?rate=1&logprobs={logprobs}")
    answered = 0
    for i in range(200):
        request = pair_of(f"{SHORT} {i}", LONG, ask, labels)
        try:
            (choice,) = say(model, request)
        except CallError:
            continue
        verdict = read(choice, labels)
        assert verdict.p_first_label is None, choice
        assert verdict.reason
        answered += 1
    assert answered > 60


def test_a_truncated_answer_says_that_it_was_cut() -> None:
    model = FakeModel("faulty?rate=1")
    cut = ((WORD, "Looking at what each of them says about the"), (JSON, '{"verdict": "'))
    for ask, text in cut:
        (request, *_) = (r for r in many(ask, 400) if outcome(model, r) == text)
        assert say(model, request)[0].finish_reason == "length"


def test_first_tokens_of_a_broken_answer_are_those_of_its_text() -> None:
    model = FakeModel("faulty?rate=1")
    for request in many(WORD, 50):
        try:
            (choice,) = say(model, request)
        except CallError:
            continue
        assert [t.token for t in choice.first_token] == [choice.text.split(" ")[0]]


def failing(model: FakeModel) -> list[ChatRequest]:
    """Questions whose first call fails in passing."""
    passing = ("CallTransient", "CallRateLimited")
    return [r for r in many(WORD, 100) if outcome(model, r).startswith(passing)]


def test_a_failure_in_passing_passes_and_then_the_judge_keeps_to_its_rule() -> None:
    model = FakeModel("faulty?rate=1")
    requests = failing(model)
    assert len(requests) > 10
    assert {outcome(model, request) for request in requests} == {"A"}


def through_a_client(
    model: FakeModel, requests: list[ChatRequest], folder: Path, bill: Bill
) -> list[Answer]:
    async def main() -> list[Answer]:
        with CallStore(folder / "calls.sqlite") as store:
            client = Client(model, store, bill, concurrency=8, attempts=3, longest_wait_s=0.001)
            return await client.ask_all(requests, lambda done, note: None)

    return asyncio.run(main())


@pytest.mark.parametrize("stuck", [True, False])
def test_a_stuck_failure_outlasts_every_retry(stuck: bool, tmp_path: Path) -> None:
    name = "faulty?rate=1" + ("&stuck=yes" if stuck else "")
    # Twenty in a row that never pass would be a provider that is down.
    requests = failing(FakeModel(name))[:19]
    model, bill = FakeModel(name), Bill()
    answers = through_a_client(model, requests, tmp_path, bill)
    if stuck:
        assert {type(a) for a in answers} == {CallTransient, CallRateLimited}
        assert (bill.calls_made, bill.calls_failed) == (0, len(requests))
        assert sum(bill.failures.values()) == len(requests)
    else:
        assert all(isinstance(a, ChatReply) for a in answers)
        assert (bill.calls_made, bill.calls_failed) == (len(requests), 0)


def test_a_rejected_call_never_passes() -> None:
    model = FakeModel("faulty?rate=1")
    (request, *_) = (r for r in many(WORD, 100) if "CallRejected" in outcome(model, r))
    for _ in range(3):
        with pytest.raises(CallRejected):
            say(model, request)


@pytest.mark.parametrize("ask", [WORD, VOTES, JSON])
def test_the_default_rate_breaks_three_in_ten(ask: str) -> None:
    sound = {json.dumps({"verdict": "A"}), "A", "Both have merits, and one of them has more. [[A]]"}
    model = FakeModel("faulty")
    found = [outcome(model, request) for request in many(ask, 1000)]
    # Four standard deviations of a share of 0.3 in 1,000: 0.06.
    assert sum(said not in sound for said in found) / 1000 == pytest.approx(0.3, abs=0.06)


# Options.


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("noisey", "no fake model 'noisey' (did you mean fake/noisy?)"),
        ("shorter?speed=1", "fake models have no option 'speed' (options are logprobs, rate, "),
        ("shorter?logprobs=none", "the option logprobs must be yes or no"),
        ("faulty?stuck=1", "the option stuck must be yes or no"),
        ("noisy?rate=often", "the option rate must be a number"),
    ],
)
def test_a_wrong_option_is_refused(name: str, said: str) -> None:
    with pytest.raises(SetupError) as caught:
        FakeModel(name, "judge.model")
    assert str(caught.value).startswith(f"judge.model: {said}")

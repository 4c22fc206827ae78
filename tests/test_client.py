"""The client: what it asks, how often, how many at once, and what it keeps."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from conftest import chat_request
from virtual_time import in_virtual_time

from rlaif.callstore import CallStore, call_key
from rlaif.errors import (
    AskingStopped,
    CallError,
    CallRateLimited,
    CallRejected,
    CallTransient,
    SetupError,
    StoreError,
)
from rlaif.models.base import ChatModel
from rlaif.models.client import Answer, Bill, Client
from rlaif.models.gate import Budget, Gate
from rlaif.models.prices import Price
from rlaif.types import ChatReply, ChatRequest, Choice

REAL_SLEEP = asyncio.sleep
Step = Exception | None


class Scripted(ChatModel):
    """Goes through `steps[text]` for each question, then answers; counts what it is asked."""

    identity = "served/m"
    gives_logprobs = False
    max_n = 8

    def __init__(self, steps: dict[str, list[Step]] | None = None, pause_s: float = 0.0) -> None:
        self.steps = steps or {}
        self.pause_s = pause_s
        self.asked: Counter[str] = Counter()
        self.checked = 0
        self.in_flight = 0
        self.most_in_flight = 0

    async def check(self) -> None:
        self.checked += 1

    async def ask(self, request: ChatRequest) -> ChatReply:
        text = request.messages[0].content
        self.asked[text] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await REAL_SLEEP(self.pause_s)
        finally:
            self.in_flight -= 1
        script = self.steps.get(text, [])
        if script and (step := script.pop(0)) is not None:
            raise step
        return ChatReply(
            choices=(Choice(text=text.upper(), finish_reason="stop"),),
            prompt_tokens=2,
            completion_tokens=3,
        )


CENT = Price(input=5000.0, output=0.0)
"""A cent an answer: each has two prompt tokens."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CallStore]:
    with CallStore(tmp_path / "calls.sqlite") as opened:
        yield opened


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, none of them slept."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await REAL_SLEEP(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waits


Ask = Callable[..., list[Answer]]


@pytest.fixture
def ask(store: CallStore) -> Ask:
    def run(
        model: ChatModel,
        *texts: str,
        bill: Bill | None = None,
        concurrency: int = 4,
        attempts: int = 3,
        advance: Callable[[int, str], None] = lambda done, note: None,
        before: Callable[[], Awaitable[None]] | None = None,
        gate: Gate | None = None,
        price: Price = CENT,
    ) -> list[Answer]:
        async def main() -> list[Answer]:
            client = Client(
                model,
                store,
                bill or Bill(),
                concurrency=concurrency,
                attempts=attempts,
                gate=gate,
                price=price,
            )
            try:
                return await client.ask_all([chat_request(t) for t in texts], advance, before)
            finally:
                await client.drain()

        return asyncio.run(main())

    return run


def texts(answers: list[Answer]) -> list[str]:
    return [a.choices[0].text if isinstance(a, ChatReply) else type(a).__name__ for a in answers]


def test_answers_come_in_the_order_of_the_requests(ask: Ask) -> None:
    assert texts(ask(Scripted(), "c", "a", "b")) == ["C", "A", "B"]


def test_equal_requests_are_asked_once_and_answered_each(ask: Ask) -> None:
    model, bill = Scripted(), Bill()
    assert texts(ask(model, "a", "b", "a", "a", bill=bill)) == ["A", "B", "A", "A"]
    assert model.asked == {"a": 1, "b": 1}
    assert bill.calls_made == 2


def test_a_second_run_asks_nothing_and_bills_the_same_tokens(ask: Ask) -> None:
    first, second = Bill(), Bill()
    before = ask(Scripted(), "a", "b", bill=first)
    model = Scripted()
    assert ask(model, "a", "b", bill=second) == before
    assert (model.asked, model.checked) == ({}, 0)
    assert first == Bill(calls_made=2, prompt_tokens=4, completion_tokens=6, usd=0.02)
    assert second == Bill(calls_from_store=2, prompt_tokens=4, completion_tokens=6, usd=0.0)


def test_only_what_is_missing_is_asked(ask: Ask) -> None:
    ask(Scripted(), "a")
    model, bill = Scripted(), Bill()
    assert texts(ask(model, "a", "b", bill=bill)) == ["A", "B"]
    assert model.asked == {"b": 1}
    assert (bill.calls_from_store, bill.calls_made) == (1, 1)


def test_a_transient_failure_is_asked_again_until_it_answers(ask: Ask, slept: list[float]) -> None:
    model = Scripted({"a": [CallTransient("500"), CallTransient("cut")]})
    bill = Bill()
    assert texts(ask(model, "a", bill=bill)) == ["A"]
    assert model.asked == {"a": 3}
    assert (bill.calls_made, bill.calls_failed) == (1, 0)
    assert len(slept) == 2
    assert all(0 <= wait <= 60 for wait in slept)


def test_after_the_last_attempt_the_failure_is_the_answer_and_is_not_stored(
    ask: Ask, store: CallStore, slept: list[float]
) -> None:
    model = Scripted({"a": [CallTransient(str(i)) for i in range(9)]})
    bill = Bill()
    (found,) = ask(model, "a", bill=bill, attempts=4)
    assert isinstance(found, CallTransient)
    assert str(found) == "3"
    assert model.asked == {"a": 4}
    assert (bill.calls_made, bill.calls_failed, len(store)) == (0, 1, 0)
    assert texts(ask(Scripted(), "a")) == ["A"]


@pytest.mark.parametrize("kind", [CallRateLimited, CallTransient])
def test_a_call_that_is_told_how_long_to_wait_waits_for_so_long(
    store: CallStore, kind: type[CallTransient]
) -> None:
    model = Scripted({"a": [kind("busy", wait_s=told) for told in (30, 0, 0, 0, 20, 0, 0, 0)]})

    async def main() -> float:
        client = Client(model, store, Bill(), concurrency=4, attempts=9)
        assert texts([await client.ask(chat_request("a"))]) == ["A"]
        return asyncio.get_running_loop().time()

    assert in_virtual_time(main) == pytest.approx(50, abs=0.1)


def test_a_rate_limit_that_says_no_time_backs_off(ask: Ask, slept: list[float]) -> None:
    assert texts(ask(Scripted({"a": [CallRateLimited("429")]}), "a")) == ["A"]
    assert len(slept) == 1
    assert 0 <= slept[0] <= 60


def test_a_rejected_call_is_not_asked_again_and_stops_no_other(
    ask: Ask, slept: list[float]
) -> None:
    model, bill = Scripted({"a": [CallRejected("400")]}), Bill()
    assert texts(ask(model, "a", "b", bill=bill)) == ["CallRejected", "B"]
    assert model.asked == {"a": 1, "b": 1}
    assert (bill.calls_failed, slept) == (1, [])


def test_a_wrong_setup_stops_everything_and_keeps_what_was_answered(
    ask: Ask, store: CallStore
) -> None:
    model = Scripted({"c": [SetupError("the provider refuses the API key")]})
    with pytest.raises(SetupError, match="refuses the API key"):
        ask(model, "a", "b", "c", "d", "e", concurrency=1)
    assert set(model.asked) == {"a", "b", "c"}
    assert len(store) == 2
    assert store.get(call_key(chat_request("a"))) is not None


def test_an_answer_that_cannot_be_stored_stops_everything(
    ask: Ask, store: CallStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(store, "put_many", full)
    model = Scripted()
    with pytest.raises(StoreError, match="disk full"):
        ask(model, "a", "b", "c", concurrency=1)
    assert model.asked == {"a": 1}


def test_an_answer_is_in_the_store_before_anyone_is_told(ask: Ask, store: CallStore) -> None:
    stored: list[tuple[int, int]] = []
    ask(Scripted(), "a", "b", "c", advance=lambda done, _: stored.append((done, len(store))))
    assert [done for done, _ in stored] == [1, 2, 3]
    assert all(kept >= done for done, kept in stored)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_calls_are_in_flight_than_the_window_allows(ask: Ask, concurrency: int) -> None:
    model = Scripted({"1": [CallTransient("500")]}, pause_s=0.002)
    found = ask(model, *map(str, range(12)), concurrency=concurrency)
    assert texts(found) == list(map(str, range(12)))
    assert model.most_in_flight == concurrency


def test_the_model_is_checked_once_before_the_first_call(ask: Ask) -> None:
    class Unready(Scripted):
        async def check(self) -> None:
            raise SetupError("no server answers")

    model = Unready()
    with pytest.raises(SetupError, match="no server answers"):
        ask(model, "a", "b")
    assert model.asked == {}
    ready = Scripted()
    ask(ready, "a", "b")
    assert ready.checked == 1


def test_what_runs_before_runs_once_after_the_check_and_only_if_something_is_missing(
    ask: Ask,
) -> None:
    model = Scripted()
    ran: list[tuple[int, int]] = []

    async def before() -> None:
        ran.append((model.checked, len(model.asked)))

    ask(model, "a", "b", "c", before=before)
    assert ran == [(1, 0)]
    ask(model, "a", "c", before=before)
    assert ran == [(1, 0)]
    ask(model, "a", "d", before=before)
    assert ran == [(1, 0), (2, 3)]


def test_what_runs_before_can_stop_everything(ask: Ask, store: CallStore) -> None:
    async def refuse() -> None:
        raise SetupError("'A' and 'AB' begin with the same token")

    model = Scripted()
    with pytest.raises(SetupError, match="the same token"):
        ask(model, "a", "b", before=refuse)
    assert (model.asked, len(store)) == ({}, 0)


def test_an_error_of_ours_is_not_taken_for_a_failed_call(ask: Ask, store: CallStore) -> None:
    model = Scripted({"b": [ZeroDivisionError("a bug")]})
    with pytest.raises(ZeroDivisionError):
        ask(model, "a", "b", concurrency=1)
    assert len(store) == 1


def test_every_call_error_carries_its_reason() -> None:
    found = {e.reason for e in (CallError(""), CallRejected(""), CallTransient(""))}
    assert found == {"call_failed", "rejected", "transient"}
    assert CallRateLimited("").reason == "rate_limited"


def test_a_budget_of_calls_is_never_passed_and_the_rest_is_asked_another_time(
    ask: Ask, store: CallStore
) -> None:
    model = Scripted(pause_s=0.002)
    with pytest.raises(AskingStopped, match=r"--max-calls: 5 calls .* goes on"):
        ask(model, *"abcdefgh", gate=Gate(Budget(max_calls=5)), concurrency=3)
    assert (model.asked.total(), len(store)) == (5, 5)
    second = Scripted()
    assert texts(ask(second, *"abcdefgh")) == list("ABCDEFGH")
    assert second.asked.total() == 3


def test_a_failed_call_takes_nothing_from_the_budget(ask: Ask, slept: list[float]) -> None:
    model = Scripted({"a": [CallTransient("500")], "b": [CallRejected("400")]})
    found = ask(model, "a", "b", "c", gate=Gate(Budget(max_calls=2)), concurrency=1)
    assert texts(found) == ["A", "CallRejected", "C"]


def test_money_stops_asking_after_what_was_in_flight(ask: Ask, store: CallStore) -> None:
    model = Scripted(pause_s=0.002)
    with pytest.raises(AskingStopped, match=r"--max-usd: 0\.0[4-6]\d* of 0\.035 US dollars"):
        ask(model, *"abcdefghijkl", gate=Gate(Budget(max_usd=0.035)), concurrency=3)
    assert 4 <= model.asked.total() <= 4 + 2
    assert len(store) == model.asked.total()


def test_money_is_set_aside_for_what_is_in_flight_so_the_limit_holds_in_batches_too(
    ask: Ask, store: CallStore
) -> None:
    """A thousand calls would go out together: by what each may cost at most (8 tokens of $0.001,
    half of it in a batch) 25 of them fit into 10.1 cents, then what their real 3 tokens leave."""

    class Batched(Scripted):
        outlives = True
        window = 1000

        async def ask(self, request: ChatRequest) -> ChatReply:
            reply = await super().ask(request)
            return reply.model_copy(update={"batched": True})

    model = Batched(pause_s=0.02)
    gate = Gate(Budget(max_usd=0.101))
    price = Price(input=0.0, output=1000.0)
    with pytest.raises(AskingStopped, match=r"--max-usd: 0\.09\d\d of 0\.101 US dollars are spent"):
        ask(model, *map(str, range(1000)), gate=gate, price=price)
    assert model.most_in_flight == 25
    assert 0.101 - 0.004 < gate.usd <= 0.101
    assert len(store) == model.asked.total() == round(gate.usd / 0.0015)


def test_a_call_that_alone_may_cost_more_than_the_budget_is_not_made(ask: Ask) -> None:
    model = Scripted()
    with pytest.raises(AskingStopped, match=r"one call may cost 0\.0080"):
        ask(model, "a", gate=Gate(Budget(max_usd=0.007)), price=Price(input=0.0, output=1000.0))
    assert model.asked == {}


def test_calls_that_fail_give_back_what_was_set_aside_for_them(
    ask: Ask, slept: list[float]
) -> None:
    model = Scripted({"a": [CallTransient("500")] * 3, "b": [CallRejected("400")]})
    gate = Gate(Budget(max_usd=0.012))
    found = ask(model, "a", "b", "c", gate=gate, price=Price(input=0.0, output=1000.0))
    assert texts(found) == ["CallTransient", "CallRejected", "C"]


def test_minutes_stop_asking(ask: Ask, store: CallStore) -> None:
    now = [0.0]
    gate = Gate(Budget(max_minutes=1), clock=lambda: now[0])

    def advance(done: int, note: str) -> None:
        now[0] += 25

    model = Scripted(pause_s=0.001)
    with pytest.raises(AskingStopped, match="--max-minutes: 1 are over"):
        ask(model, *"abcdefgh", gate=gate, concurrency=1, advance=advance)
    assert 3 <= len(store) == model.asked.total() < 8


def test_an_answer_that_nobody_can_read_is_paid_for_and_counts(
    ask: Ask, slept: list[float]
) -> None:
    """8 tokens at $0.001 are as many as it may have had."""
    unread = [CallTransient("no choices", paid=True), CallRejected("no usage", paid=True)]
    model, gate, bill = Scripted({"a": [*unread]}), Gate(), Bill()
    price = Price(input=0.0, output=1000.0)
    found = ask(model, "a", "b", bill=bill, gate=gate, price=price, concurrency=1)
    assert texts(found) == ["CallRejected", "B"]
    assert gate.calls == 3
    assert gate.usd == bill.usd == pytest.approx(2 * 0.008 + 0.003)
    assert (bill.calls_made, bill.calls_failed) == (1, 1)


def timed_out(store: CallStore, model: ChatModel, *questions: str) -> float:
    """Asks with a budget of six seconds; how many the client took to say that they are over."""

    async def main() -> float:
        now = asyncio.get_running_loop().time
        gate = Gate(Budget(max_minutes=0.1), clock=now)
        client = Client(model, store, Bill(), concurrency=2, attempts=9, gate=gate)
        try:
            with pytest.raises(AskingStopped, match=r"--max-minutes: 0\.1 are over"):
                await client.ask_all([chat_request(t) for t in questions], lambda done, note: None)
            return now()
        finally:
            await client.drain()

    return in_virtual_time(main)


@pytest.mark.parametrize("error", [CallRateLimited("429", 500.0), CallTransient("500")])
def test_minutes_end_a_run_that_waits_for_a_provider(store: CallStore, error: CallError) -> None:
    model = Scripted({"a": [error] * 99}, pause_s=0.5)
    # It may have been in flight just then, and is not tried again.
    assert 6 <= timed_out(store, model, "a", "b", "c") < 6.6
    assert store.get(call_key(chat_request("b"))) is not None


def test_minutes_end_a_run_that_waits_for_a_batch(store: CallStore) -> None:
    class Batched(Scripted):
        outlives = True

        async def ask(self, request: ChatRequest) -> ChatReply:
            self.ended = asyncio.get_running_loop().create_future()
            raise await self.ended

        async def settle(self) -> None:
            self.ended.set_result(AskingStopped("its batch goes on without us"))

    model = Batched()
    model.window = 1
    assert timed_out(store, model, "a", "b", "c") == pytest.approx(6, abs=0.1)


def test_minutes_leave_what_is_in_flight_to_be_answered_and_stored(store: CallStore) -> None:
    assert timed_out(store, Scripted(pause_s=4), *"abcdef") == pytest.approx(8, abs=0.1)
    assert len(store) == 4


def test_a_cancelled_run_keeps_what_it_has_paid_for(store: CallStore) -> None:
    model = Scripted(pause_s=0.05)

    async def main() -> None:
        client = Client(model, store, Bill(), concurrency=3, attempts=2)
        requests = [chat_request(t) for t in "abcdefgh"]
        asking = asyncio.create_task(client.ask_all(requests, lambda done, note: None))
        await REAL_SLEEP(0.02)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert len(store) == 0
        await client.drain()

    asyncio.run(main())
    assert len(store) == model.asked.total() == 3


def test_a_request_that_is_in_flight_is_not_sent_again_and_counts_once(store: CallStore) -> None:
    model, bill = Scripted(pause_s=0.01), Bill()

    async def main() -> list[Answer]:
        client = Client(model, store, bill, concurrency=3, attempts=2)
        request = chat_request("a")
        both = await asyncio.gather(client.ask(request), client.ask(request))
        return [*both, await client.ask(request)]

    assert texts(asyncio.run(main())) == ["A", "A", "A"]
    assert (model.asked, bill.calls_made, bill.calls_from_store) == ({"a": 1}, 1, 0)
    assert bill.completion_tokens == 3


def test_a_call_that_fails_while_others_are_waited_for_is_not_tried_again(
    store: CallStore,
) -> None:
    model = Scripted({"a": [CallTransient("500")] * 9}, pause_s=0.05)

    async def main() -> None:
        client = Client(model, store, Bill(), concurrency=3, attempts=9)
        asking = asyncio.create_task(
            client.ask_all([chat_request(t) for t in "abc"], lambda done, note: None)
        )
        await REAL_SLEEP(0.02)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await client.drain()

    asyncio.run(main())
    assert model.asked == {"a": 1, "b": 1, "c": 1}
    assert len(store) == 2


def test_an_answer_that_no_store_can_hold_ends_the_run_and_hangs_nobody(
    ask: Ask, store: CallStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")

    monkeypatch.setattr(store, "put_many", broken)
    with pytest.raises(UnicodeEncodeError):
        ask(Scripted(), "a", "b")

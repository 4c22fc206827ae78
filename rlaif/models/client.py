"""The one caller of models: owns the calls in flight, retries, the store and the bill."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import tenacity

from rlaif.callstore import CallStore, call_key
from rlaif.errors import (
    AskingStopped,
    CallError,
    CallTransient,
    SetupError,
)
from rlaif.models.base import ChatModel
from rlaif.models.buckets import Pace
from rlaif.models.flow import flow
from rlaif.models.gate import Gate
from rlaif.models.limits import Limiter, Limits, backoff_s, guessed_tokens
from rlaif.models.prices import Price
from rlaif.progress import Spent, say
from rlaif.redact import redacted
from rlaif.types import ChatReply, ChatRequest

Answer = ChatReply | CallError
Ready = Callable[[], Awaitable[None]]
DRAIN_LOOK_S = 0.2
REMEMBERED = 50_000
"""Keys of which the bill remembers that it has counted them."""


@dataclass
class Bill:
    """What a stage asked for. Tokens count every answer used, from the model or from the store."""

    calls_made: int = 0
    """Answered by the model in this run."""
    calls_from_store: int = 0
    calls_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompts' tokens those that a provider read from its cache."""
    usd: float | None = 0.0
    """Spent in this run, in US dollars; None: a price is not known."""
    asking_s: float = field(default=0.0, compare=False)
    """Seconds with a call in flight; the start of a server is not in it."""
    failures: Counter[str] = field(default_factory=Counter)
    """What the providers said of the calls that failed."""

    def add_reply(self, reply: ChatReply, *, stored: bool, usd: float | None = 0.0) -> None:
        if stored:
            self.calls_from_store += 1
        else:
            self.calls_made += 1
            self.usd = None if usd is None or self.usd is None else self.usd + usd
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.cached_tokens += reply.cached_tokens

    def add_unread(self, usd: float | None) -> None:
        """The model has answered, and nothing can be made of it: what that may have cost."""
        self.usd = None if usd is None or self.usd is None else self.usd + usd

    def add(self, other: Bill) -> None:
        """Takes over what another bill counts."""
        self.calls_made += other.calls_made
        self.calls_from_store += other.calls_from_store
        self.calls_failed += other.calls_failed
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cached_tokens += other.cached_tokens
        self.usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        self.asking_s += other.asking_s
        self.failures += other.failures


class Client:
    """Asks one model through the store. Belongs to one event loop.

    A call that was sent is answered and stored even where whoever asked for it has been cancelled:
    `drain` waits for it.
    """

    def __init__(
        self,
        model: ChatModel,
        store: CallStore,
        bill: Bill,
        *,
        concurrency: int,
        attempts: int,
        longest_wait_s: float = 60.0,
        limits: Limits | None = None,
        pace: Pace | None = None,
        gate: Gate | None = None,
        price: Price | None = None,
        field: str = "model",
    ) -> None:
        """`longest_wait_s` bounds the wait between two attempts of one call where the provider does
        not say how long to wait. `pace`: of all clients of this model. `price` None: not known.
        `field`: where the model stands in the config, for messages."""
        self.model = model
        self.bill = bill
        self.window = model.window or 4 * concurrency
        """How many items a stage works on at once, so that slow ones do not leave places empty."""
        self._store = store
        self._attempts = attempts
        self._backoff = tenacity.wait_random_exponential(multiplier=0.5, max=longest_wait_s)
        self._retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(CallTransient),
            stop=tenacity.stop_after_attempt(attempts - 1),
            wait=self._wait_s,
            reraise=True,
        )
        if model.outlives:
            # Batches have limits of their own; a model of batches keeps to these for live calls.
            limits, pace = Limits(adapt=False), None
        self._limiter = Limiter(
            limits or Limits(), concurrency=model.window or concurrency, pace=pace
        )
        self._gate = gate or Gate()
        self._price = price
        self._field = field
        self._asking: dict[str, asyncio.Task[Answer]] = {}
        self._sent: set[asyncio.Task[Answer]] = set()
        self._busy_since = self._begun = 0.0
        self._made_tokens = 0
        self._checks: dict[Ready, asyncio.Task[None]] = {}
        self._stopped: Exception | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._settling: asyncio.Task[None] | None = None
        self._billed: dict[str, None] = {}
        self._unsaved: list[tuple[str, ChatRequest, ChatReply, float]] = []
        self._saved: asyncio.Future[None] | None = None
        model.heard = self._limiter.heard

    async def ask(self, request: ChatRequest, before: Ready | None = None) -> Answer:
        """The answer from the store, or the model's; a call that failed is its CallError.

        If it is not in the store the model's `check` runs first and then `before`, each of them
        once in the life of this client; what they raise stops all calls. A request that is in
        flight already is not sent again. Raises SetupError, StoreError, ProviderDown and
        AskingStopped: after one of them no call is made.
        """
        key = call_key(request)
        stored = self._store.get(key)
        if stored is not None:
            self._bill_once(key, stored, stored=True)
            return stored
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._settle(key, request, before))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        # Whoever waits may be cancelled; what is paid for must be stored all the same.
        return await asyncio.shield(task)

    async def ask_all(
        self,
        requests: Sequence[ChatRequest],
        advance: Callable[[int, Spent], None],
        before: Ready | None = None,
    ) -> list[Answer]:
        """Answers in the order of the requests; see `ask`. Each distinct request is asked once."""
        distinct: dict[str, ChatRequest] = {call_key(r): r for r in requests}
        answers: list[Answer] = []

        def told(answer: Answer) -> None:
            answers.append(answer)
            advance(len(answers), self.note)

        await flow(distinct.values(), lambda r: self.ask(r, before), told, window=self.window)
        by_key = dict(zip(distinct, answers, strict=True))
        return [by_key[call_key(r)] for r in requests]

    @property
    def note(self) -> Spent:
        """What stands beside a progress bar."""
        busy_s = time.monotonic() - self._begun if self._begun else 0.0
        rate = self._made_tokens / busy_s if busy_s > 0.5 else 0.0
        bill, stored = self.bill, self.bill.calls_from_store
        return Spent(bill.completion_tokens, rate, bill.usd, bill.calls_made + stored, stored)

    async def drain(self) -> None:
        """Makes no more calls, and waits for those that were sent: they are paid for."""
        # One that fails now is not tried again.
        self._stopped = self._stopped or AskingStopped("asking has ended")
        if self._deadline is not None:
            self._deadline.cancel()
        if self._sent:
            say(f"waiting for {len(self._sent)} calls in flight (Ctrl-C: leave them)")
            await self.model.settle()
            while self._sent:
                await asyncio.wait(set(self._sent), timeout=DRAIN_LOOK_S)
        settling = () if self._settling is None else (self._settling,)
        left = (*self._asking.values(), *self._checks.values(), *settling)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _ended(self, key: str, task: asyncio.Task[Answer]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits any more

    def _time_is_over(self) -> None:
        """Ends the waiting, for a place, for another attempt or for a batch; a call that is in
        flight is answered."""
        self._stopped = self._stopped or self._gate.time_is_over()
        for task in self._asking.values():
            if task not in self._sent:
                task.cancel()
        self._settling = asyncio.create_task(self.model.settle())

    async def _settle(self, key: str, request: ChatRequest, before: Ready | None) -> Answer:
        try:
            return await self._asked(key, request, before)
        except (asyncio.CancelledError, AskingStopped):
            if self._stopped is not None:
                raise self._stopped from None
            raise
        except SetupError as e:
            raise e.at(self._field) from e

    async def _asked(self, key: str, request: ChatRequest, before: Ready | None) -> Answer:
        await self._once(self.model.check)
        if before is not None:
            await self._once(before)
        try:
            return await self._attempt(key, request, first=True)
        except CallTransient as e:
            if self._attempts == 1:
                return self._failed(e)
            first = e
        # The first attempt goes without tenacity, which costs as much as the rest of a call.
        await asyncio.sleep(self._wait_after(first, 1))
        try:
            return await self._retrying.copy()(self._attempt, key, request)
        except CallError as e:
            return self._failed(e)

    async def _once(self, check: Ready) -> None:
        if not self._checks and (left_s := self._gate.seconds_left) is not None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(max(left_s, 0.0), self._time_is_over)
        if (task := self._checks.get(check)) is None:
            task = self._checks[check] = asyncio.create_task(_run(check))
        if not task.done() or task.exception() is not None:
            await asyncio.shield(task)

    async def _attempt(self, key: str, request: ChatRequest, *, first: bool = False) -> Answer:
        """One try. Raises CallTransient; another CallError is the answer."""
        prompt, completion = guessed_tokens(request)
        guess = prompt + completion
        await self._limiter.enter(guess)
        error: CallError | None = None
        tokens, start, seconds = 0, time.monotonic(), 0.0
        task = self._asking[key]
        try:
            may_cost = self._may_cost(prompt, completion) if self._gate.counts_money else 0.0
            await self._gate.admit(may_cost)
            start = time.monotonic()
            if not self._sent:
                self._busy_since = start
                self._begun = self._begun or start
            self._sent.add(task)
            try:
                if self._stopped is not None:
                    raise self._stopped
                reply = _without_secrets(await self.model.ask(request))
            except BaseException as e:
                paid = isinstance(e, CallError) and e.paid
                cost = self._unread(prompt, completion) if paid else None
                self._gate.settle(may_cost, cost)
                raise
            finally:
                seconds = time.monotonic() - start
            usd = None if self._price is None else self._price.usd(reply)
            self._gate.settle(may_cost, usd or 0.0)
            tokens = reply.prompt_tokens + reply.completion_tokens
            # The place is kept until the answer is stored: what a kill can lose is what is in
            # flight, and never more than the window.
            await self._save(key, request, reply, seconds)
        except CallTransient as e:
            error = e
            if self._stopped is not None:
                raise self._stopped from None
            raise
        except CallError as e:
            error = e
            return self._failed(e)
        except Exception as e:
            # Before the place is free: the next call must not start.
            self._stopped = self._stopped or e
            if isinstance(e, AskingStopped):
                raise self._stopped from None
            raise
        finally:
            # What a batch leaves unanswered says nothing of the provider's load.
            counted = None if self.model.outlives else error
            self._limiter.leave(counted, guess, tokens, seconds, first=first)
            self._left(task)
        self._made_tokens += reply.completion_tokens
        self._bill_once(key, reply, stored=False, usd=usd)
        return reply

    def _may_cost(self, prompt: int, completion: int) -> float:
        """The most that a call of so many tokens is billed, in US dollars."""
        if self._price is None:
            return 0.0
        batched = self.model.outlives
        return self._price.usd_of(prompt, completion, written=prompt, batched=batched)

    def _unread(self, prompt: int, completion: int) -> float:
        """Bills an answer of which nothing can be made by what it may have cost."""
        usd = self._may_cost(prompt, completion)
        self.bill.add_unread(None if self._price is None else usd)
        return usd

    def _left(self, task: asyncio.Task[Answer]) -> None:
        if task in self._sent:
            self._sent.remove(task)
            if not self._sent:
                self.bill.asking_s += time.monotonic() - self._busy_since

    def _bill_once(
        self, key: str, reply: ChatReply, *, stored: bool, usd: float | None = 0.0
    ) -> None:
        """One answer that several judgments rest on counts once. They are asked for close to each
        other, so the last keys are enough to remember."""
        if key not in self._billed:
            self._billed[key] = None
            if len(self._billed) > REMEMBERED:
                del self._billed[next(iter(self._billed))]
            self.bill.add_reply(reply, stored=stored, usd=usd)

    def _failed(self, error: CallError) -> CallError:
        self.bill.calls_failed += 1
        self.bill.failures[redacted(f"{error.reason}: {error}")] += 1
        return error

    async def _save(self, key: str, request: ChatRequest, reply: ChatReply, seconds: float) -> None:
        """Commits before anyone sees the reply: what was paid for survives a kill from here on.
        Replies that came in the same turn of the event loop share a commit."""
        self._unsaved.append((key, request, reply, seconds))
        if self._saved is None:
            loop = asyncio.get_running_loop()
            self._saved = loop.create_future()
            loop.call_soon(self._commit, self._saved)
        await asyncio.shield(self._saved)

    def _commit(self, saved: asyncio.Future[None]) -> None:
        rows, self._unsaved, self._saved = self._unsaved, [], None
        try:
            self._store.put_many(rows)
        except Exception as e:  # whatever it is, those who wait must hear of it
            saved.set_exception(e)
        else:
            saved.set_result(None)

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return self._wait_after(error, state.attempt_number + 1)

    def _wait_after(self, error: BaseException | None, attempts: int) -> float:
        if isinstance(error, CallTransient) and error.wait_s is not None:
            return 0.0  # the limiter holds all calls back for so long
        if self.model.outlives:
            return 0.0  # what goes into a batch should come together
        return backoff_s(self._backoff, attempts)


def _without_secrets(reply: ChatReply) -> ChatReply:
    """A server that repeats our key must not bring it into the store."""
    clean = tuple(redacted(choice.text) for choice in reply.choices)
    if all(text == choice.text for text, choice in zip(clean, reply.choices, strict=True)):
        return reply
    choices = (
        choice.model_copy(update={"text": text})
        for text, choice in zip(clean, reply.choices, strict=True)
    )
    return reply.model_copy(update={"choices": tuple(choices)})


async def _run(check: Ready) -> None:
    await check()

"""The batch APIs of OpenAI and Anthropic: half the price, answers within a day.

What is submitted is written down before and after, so that a run which is killed finds its batches
again and submits nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence, Set
from typing import Any

import tenacity
from pydantic import Field

from rlaif.callstore import CallStore, call_key
from rlaif.callstore.journal import Batch, Journal
from rlaif.errors import (
    AskingStopped,
    CallError,
    CallRateLimited,
    CallRejected,
    CallTransient,
    ProviderDown,
    SetupError,
    StoreError,
)
from rlaif.models.base import ChatModel
from rlaif.models.limits import Limiter, backoff_s, guessed_tokens
from rlaif.progress import say
from rlaif.types import ChatReply, ChatRequest, Record

FAILURES = 2
"""A call that batches have failed so often goes live."""
SUBMITS = 8
"""How often a batch is tried to be sent."""
CLOCKS_S = 86_400.0
"""How far a provider's clock may be from ours."""
_OURS: set[str] = set()
"""Tokens of the batches that this process is at work on: another client of the same model, which
finds them in the journal, must leave them alone."""


Raw = Mapping[str, Any]
"""An answer as the provider writes it."""


class BatchConfig(Record):
    """How calls are sent in batches."""

    most: int = Field(default=5000, ge=1)
    """Most calls in one batch, and half of the calls that are prepared at once."""
    smallest: int = Field(default=16, ge=1)
    """Fewer calls than this are sent live, at the full price: a batch takes minutes at least."""
    gather_s: float = Field(default=2.0, gt=0)
    """A batch is sent when no new call has come for so many seconds."""
    poll_s: float = Field(default=15.0, gt=0)
    """Seconds until it is looked after for the first time, then half as long again each time."""
    longest_poll_s: float = Field(default=120.0, gt=0)
    """Longest time between two looks, in seconds."""


class BatchProvider(ABC):
    """What a provider of batches must give. Each raises CallTransient, CallRejected and SetupError
    as `ChatModel.ask` does."""

    most: int
    """Most calls that the API takes in one batch."""

    @abstractmethod
    async def submit(self, requests: Mapping[str, ChatRequest], token: str) -> str:
        """Sends calls, each under its key; the batch's id. `token` is stored with it where the API
        allows."""

    @abstractmethod
    async def find(self, batch: Batch, known: Set[str]) -> str | None:
        """The id of a batch whose submission may have arrived, if the provider has it. `known`:
        those of other submissions."""

    @abstractmethod
    async def has_ended(self, batch: str) -> bool:
        """Whether all that it will answer is answered. Raises BatchGone and BatchRefused."""

    @abstractmethod
    def results(self, batch: str) -> AsyncIterator[tuple[str, Raw | CallError]]:
        """Key and answer of each call, in any order."""

    @abstractmethod
    def read(self, raw: Raw, request: ChatRequest) -> ChatReply:
        """What an answer of `results` says."""


class BatchGone(Exception):
    """The provider does not have the batch, or its answers, any more."""


class BatchRefused(Exception):
    """The provider took a batch in and then refused all of it."""

    def __init__(self, error: CallError) -> None:
        super().__init__(str(error))
        self.error = error


class BatchedModel(ChatModel):
    """Asks in batches: each call waits for the batch that it is in.

    Calls in flight outlive this process: whoever asks for them again is given what their batch
    answers. What a batch leaves unanswered (it expires after a day) raises CallTransient, so that
    the client's next attempt submits just that.
    """

    outlives = True

    def __init__(
        self,
        live: ChatModel,
        provider: BatchProvider,
        store: CallStore,
        config: BatchConfig,
        limiter: Limiter,
    ) -> None:
        """`live` answers what is too little for a batch, a call at a time as `limiter` lets in."""
        self.identity = live.identity
        self.gives_logprobs = live.gives_logprobs
        self.max_n = live.max_n
        self.window = 2 * config.most
        self._live = live
        self._limiter = limiter
        live.heard = limiter.heard
        self._backoff = tenacity.wait_random_exponential(multiplier=0.5, max=60.0)
        self._provider = provider
        self._store = store
        self._journal = Journal(store.path)
        self._config = config
        self._most = min(config.most, provider.most)
        self._queue: dict[str, ChatRequest] = {}
        self._waiting: dict[str, asyncio.Future[Raw | ChatReply]] = {}
        self._known: dict[str, Raw | CallError] = {}
        """Answers that came before anybody asked: of a batch of an earlier run."""
        self._open: set[str] = set()
        """Keys that are in a batch now."""
        self._failures: Counter[str] = Counter()
        self._tried: Counter[str] = Counter()
        """How often a call was asked live."""
        self._gathering: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_by_one: set[asyncio.Task[None]] = set()
        """Of these tasks the calls that are asked live."""
        self._room = asyncio.Event()
        """Set when a batch has ended: the provider may take another one."""
        self._mine: set[str] = set()
        self._ended: list[tuple[str, list[str]]] = []
        self._unreadable: set[str] = set()

    async def check(self) -> None:
        """Takes up the batches that an earlier run has left."""
        await self._live.check()
        for batch in self._journal.open(self.identity):
            if batch.token in _OURS:
                continue
            found: str | None = batch.id
            if self._store.has_all(batch.keys):
                self._journal.forget(batch.token)
                continue
            if not found:
                found = await self._found(batch)
                if found is None:
                    # It was never submitted.
                    self._journal.forget(batch.token)
                    continue
                self._journal.submitted(batch.token, found)
            say(f"taking up batch {found} of {len(batch.keys)} calls")
            self._own(batch.token)
            self._open.update(batch.keys)
            self._start(self._take_up(batch._replace(id=found)))

    async def _take_up(self, batch: Batch) -> None:
        if not await self._watch(batch):
            # Its requests are not known here; whoever waits asks for them again.
            self._open.difference_update(batch.keys)
            self._fail(batch.keys, CallRateLimited("the provider had no room for the batch", None))

    async def first_tokens(self, texts: Sequence[str]) -> list[int] | None:
        return await self._live.first_tokens(texts)

    async def probe_logprobs(self) -> bool | None:
        return await self._live.probe_logprobs()

    async def ask(self, request: ChatRequest) -> ChatReply:
        key = call_key(request)
        if self._failures[key] >= FAILURES:
            return await self._ask_live(key, request)
        if (known := self._known.pop(key, None)) is not None:
            return self._read(key, request, known)
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
            if key not in self._open:
                self._queue[key] = request
                self._gather()
        try:
            return self._read(key, request, await asyncio.shield(waiting))
        except CallTransient as e:
            # One that the provider has no room for yet is as good as before.
            if not isinstance(e, CallRateLimited):
                self._failures[key] += 1
            raise
        finally:
            self._waiting.pop(key, None)

    async def settle(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
        self._queue.clear()
        while self._one_by_one:
            await asyncio.wait(set(self._one_by_one))
        self._fail(list(self._waiting), AskingStopped("its batch goes on without us"))

    async def aclose(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for token, answered in self._ended:
            # What nobody asked for stays with the provider, and is found there another time.
            if self._store.has_all([key for key in answered if key not in self._unreadable]):
                self._journal.forget(token)
        _OURS.difference_update(self._mine)
        self._journal.close()
        await self._live.aclose()

    def _own(self, token: str) -> None:
        _OURS.add(token)
        self._mine.add(token)

    async def _ask_live(self, key: str, request: ChatRequest) -> ChatReply:
        """One call at the full price, under the limits of calls: the window of batches is not
        theirs."""
        guess = sum(guessed_tokens(request))
        await self._limiter.enter(guess)
        error: CallError | None = None
        tokens, start = 0, time.monotonic()
        try:
            reply = await self._live.ask(request)
            tokens = reply.prompt_tokens + reply.completion_tokens
        except CallError as e:
            error = e
            raise
        finally:
            first = not self._tried[key]
            self._tried[key] += 1
            self._limiter.leave(error, guess, tokens, time.monotonic() - start, first=first)
            if isinstance(error, CallTransient) and not isinstance(error, CallRateLimited):
                # The client tries again at once: what goes into a batch should come together.
                await asyncio.sleep(backoff_s(self._backoff, min(self._tried[key], 10)))
        return reply

    def _read(
        self, key: str, request: ChatRequest, found: Raw | ChatReply | CallError
    ) -> ChatReply:
        if isinstance(found, ChatReply):
            return found
        if isinstance(found, CallError):
            raise found
        try:
            reply = self._provider.read(found, request)
        except CallError:
            self._unreadable.add(key)
            raise
        return reply.model_copy(update={"batched": True})

    def _gather(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if len(self._queue) >= self._most:
            self._send()
        else:
            loop = asyncio.get_running_loop()
            self._gathering = loop.call_later(self._config.gather_s, self._send)

    def _send(self) -> None:
        requests, self._queue = self._queue, {}
        if len(requests) < self._config.smallest:
            for key, request in requests.items():
                task = self._start(self._one(key, request))
                self._one_by_one.add(task)
                task.add_done_callback(self._one_by_one.discard)
        elif requests:
            self._open.update(requests)
            self._start(self._batch(requests))

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _one(self, key: str, request: ChatRequest) -> None:
        try:
            reply = await self._ask_live(key, request)
        except Exception as e:
            self._fail([key], e)
        else:
            self._settle(key, reply)

    async def _batch(self, requests: Mapping[str, ChatRequest]) -> None:
        """Sends calls, again as long as the provider has no room for them, and hands out what it
        answers."""
        while True:
            token = secrets.token_hex(16)
            # Written down first: killed in the middle of it, the next run looks whether it arrived.
            batch = Batch(token, "", self.identity, time.time(), tuple(requests))
            self._own(token)
            try:
                self._journal.intend(batch)
                found = await self._submit(batch, requests)
                self._journal.submitted(token, found)
            except Exception as e:
                if isinstance(e, CallRejected | SetupError) and not isinstance(e, StoreError):
                    # Refused, so it is not there. After any other error the next run looks for it.
                    self._journal.forget(token)
                self._open.difference_update(requests)
                self._fail(requests, e)
                return
            say(f"submitted batch {found} of {len(requests)} calls")
            if await self._watch(batch._replace(id=found)):
                return
            say(f"the provider has no room for batch {found} yet; sending it again later")
            self._room.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.longest_poll_s):
                    await self._room.wait()

    async def _submit(self, batch: Batch, requests: Mapping[str, ChatRequest]) -> str:
        async for attempt in self._retrying():
            with attempt:
                if attempt.retry_state.attempt_number > 1:
                    # Cut off, it may have arrived all the same.
                    found = await self._provider.find(batch, self._journal.ids())
                    if found is not None:
                        return found
                return await self._provider.submit(requests, batch.token)
        raise AssertionError("tenacity gives the result or raises")

    async def _found(self, batch: Batch) -> str | None:
        """Raises ProviderDown where the provider does not say."""
        try:
            async for attempt in self._retrying():
                with attempt:
                    return await self._provider.find(batch, self._journal.ids())
        except CallTransient as e:
            raise ProviderDown(
                f"the provider does not tell whether it has a batch of an earlier run: {e}"
            ) from e
        raise AssertionError("tenacity gives the result or raises")

    def _retrying(self) -> tenacity.AsyncRetrying:
        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(CallTransient),
            stop=tenacity.stop_after_attempt(SUBMITS),
            wait=tenacity.wait_random_exponential(multiplier=self._config.poll_s, max=600),
            reraise=True,
        )

    async def _watch(self, batch: Batch) -> bool:
        """Waits for a batch, and hands its answers to whoever asks. False where the provider had no
        room for it."""
        try:
            answers = await self._answers(batch.id)
        except BatchGone:
            say(f"the provider has batch {batch.id} no more; its calls are asked again")
            answers = {}
        except BatchRefused as e:
            if isinstance(e.error, CallTransient) and any(k in self._waiting for k in batch.keys):
                self._journal.forget(batch.token)
                return False
            answers = dict.fromkeys(batch.keys, e.error)
        except Exception as e:
            self._open.difference_update(batch.keys)
            self._fail(batch.keys, e)
            return True
        self._room.set()
        self._open.difference_update(batch.keys)
        lost = CallTransient("the batch ended without an answer to this call")
        for key in batch.keys:
            found = answers.get(key, lost)
            if key not in self._waiting:
                self._known[key] = found
            elif isinstance(found, CallError):
                self._fail([key], found)
            else:
                self._settle(key, found)
        answered = [key for key, found in answers.items() if not isinstance(found, CallError)]
        self._ended.append((batch.token, answered))
        return True

    async def _answers(self, batch: str) -> dict[str, Raw | CallError]:
        config = self._config
        pause_s = config.poll_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, config.longest_poll_s)
            try:
                if await self._provider.has_ended(batch):
                    return {key: found async for key, found in self._provider.results(batch)}
            except CallTransient as e:
                # It is the looking that failed; the batch goes on.
                say(f"batch {batch}: {e}; looking again")

    def _settle(self, key: str, reply: Raw | ChatReply) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    def _fail(self, keys: Sequence[str] | Mapping[str, ChatRequest], error: Exception) -> None:
        for key in keys:
            waiting = self._waiting.get(key)
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)

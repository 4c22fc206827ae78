"""How fast a provider may be asked: calls in flight, rate limits, pauses, and when to give up."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Mapping

import tenacity
from pydantic import Field

from rlaif.errors import CallError, CallRateLimited, CallRejected, CallTransient, ProviderDown
from rlaif.models.buckets import Pace
from rlaif.types import ChatRequest, Record

FAILURES = 20
"""So many calls in a row that fail at their first attempt are a provider that is down. Further
attempts do not count: a few calls that never pass, at the end of a run, are no such thing."""
PROBES = 7
"""Single calls that are tried before a provider is given up: over 1 + 2 + ... + 64 seconds."""
FIRST_REFUSALS = 50
"""So many calls refused before any is answered, and all in the same words, are a wrong setup."""
EPOCH_S = 0.25
"""The window is thought over after two windows of answers, and after so many seconds at least."""
SHRINK = 0.7
COLLAPSE = 0.8
"""Fewer answers a second than this share of the best are too many calls in flight."""
GOES_ON = "all that was answered is stored, the same command goes on"
CHARACTERS_A_TOKEN = 4


class Limits(Record):
    """How fast one provider may be asked."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Most calls a minute, of all stages that ask this model together; none: what the provider's
    own headers tell."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Most tokens a minute, of prompts and answers together; none: what the headers tell."""
    adapt: bool = True
    """Ask less at once when the provider refuses or slows down, and more again when it does not;
    false: always `concurrency`."""
    longest_wait_s: float = Field(default=600.0, gt=0)
    """A provider that asks for a longer wait ends the run, with the time to come back."""


class Limiter:
    """Lets calls in, in the order in which they came. Belongs to one event loop.

    The window starts at `concurrency`. A refusal for the rate, or answers that come at under
    COLLAPSE of the best rate seen, multiply it by SHRINK; two windows of answers without either add
    one: additive increase, multiplicative decrease (Chiu and Jain 1989), on which TCP rests. It
    never falls below one. A call that fails in passing says nothing of the load; many in a row are
    the breaker's.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        concurrency: int,
        seed: int | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`pace`: of all who ask the same model; None: nobody else does."""
        self._limits = limits
        self._most = concurrency
        self._window = float(concurrency)
        self._in_flight = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._random = random.Random(seed)
        self._backoff = tenacity.wait_random_exponential(multiplier=1, max=60)
        self._pace = pace or Pace()
        self._pace.limit("requests_per_minute", limits.requests_per_minute)
        self._pace.limit("tokens_per_minute", limits.tokens_per_minute)
        self._epoch = _Epoch()
        self._best_rate = 0.0
        self._best_window = 0
        self._failures_in_a_row = 0
        self._refused_in_a_row = 0
        self._refused_at = float("-inf")
        self._probes = 0
        self._answered = False
        self._refusals: list[str] = []
        self._down = ""
        """Why nothing is asked any more; empty while it is."""

    @property
    def window(self) -> int:
        """How many calls may be in flight."""
        return 1 if self._probes else max(1, int(self._window))

    async def enter(self, tokens: int) -> None:
        """Waits for a place. `tokens`: what the call will use, as far as can be guessed. Raises
        ProviderDown."""
        if not self._waiting and self._wait_s(tokens) == 0.0:
            self._take(tokens)
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((place, tokens))
        self._let_in()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._in_flight -= 1
                self._let_in()
            raise

    def leave(
        self,
        error: CallError | None,
        guessed: int,
        tokens: int,
        seconds: float,
        *,
        first: bool = True,
    ) -> None:
        """A call that was let in is over: `tokens` it has really used, `seconds` it took. `first`:
        whether it was tried for the first time."""
        self._in_flight -= 1
        self._pace.correct(guessed - tokens if error is None else 0)
        match error:
            case None:
                self._succeeded(seconds)
            case CallRateLimited():
                self._rate_limited(error, seconds)
            case CallTransient():
                self._failed(error, first=first)
            case CallRejected():
                self._refused(error)
        self._let_in()

    def heard(self, headers: Mapping[str, str]) -> None:
        """Takes over what a provider tells of its limits."""
        self._pace.heard(headers, self._now)

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _wait_s(self, tokens: int) -> float:
        """Seconds until a call may go in; infinite where it waits for another to leave."""
        if self._down:
            raise ProviderDown(self._down)
        if self._in_flight >= self.window:
            return float("inf")
        held = self._pace.held(tokens, self._now)
        if held is None:
            return 0.0
        if held.told and held.seconds > self._limits.longest_wait_s:
            self._down = f"{held.why} lets no call in for {_minutes(held.seconds)}; {GOES_ON} then"
            raise ProviderDown(self._down)
        return held.seconds

    def _take(self, tokens: int) -> None:
        self._in_flight += 1
        self._pace.take(tokens, self._now)

    def _let_in(self) -> None:
        """Lets in whoever may go, and sets the clock for whoever must wait for time."""
        while self._waiting:
            place, tokens = self._waiting[0]
            if place.done():
                self._waiting.popleft()
                continue
            try:
                wait_s = self._wait_s(tokens)
            except ProviderDown as e:
                self._waiting.popleft()
                place.set_exception(e)
                continue
            if wait_s > 0:
                if wait_s != float("inf"):
                    self._call_back(wait_s)
                return
            self._waiting.popleft()
            self._take(tokens)
            place.set_result(None)

    def _call_back(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # A hair later: a clock that has not quite come there would only be set again.
        self._timer = asyncio.get_running_loop().call_later(wait_s + 1e-3, self._let_in)

    def _succeeded(self, seconds: float) -> None:
        self._answered = True
        self._failures_in_a_row = self._refused_in_a_row = self._probes = 0
        if not self._limits.adapt:
            return
        epoch = self._epoch
        if not epoch.calls:
            epoch.start = self._now - seconds
        epoch.calls += 1
        if epoch.calls < 2 * self.window or (elapsed := self._now - epoch.start) < EPOCH_S:
            return
        rate = epoch.calls / elapsed
        if rate > self._best_rate:
            self._best_rate, self._best_window = rate, self.window
        if rate < COLLAPSE * self._best_rate and self.window > self._best_window:
            self._shrink()
        elif not epoch.shrunk:
            self._window = min(float(self._most), self._window + 1)
        self._epoch = _Epoch()

    def _shrink(self) -> None:
        if self._limits.adapt:
            self._epoch.shrunk = True
            self._window = max(1.0, self._window * SHRINK)

    def _rate_limited(self, error: CallRateLimited, seconds: float) -> None:
        wait_s = error.wait_s
        if self._now - seconds > self._refused_at:
            # Those that were in flight with it, and are refused too, count as one.
            self._refused_at = self._now
            self._refused_in_a_row += 1
            self._shrink()
            if wait_s is None:
                wait_s = backoff_s(self._backoff, min(self._refused_in_a_row, 10))
        elif wait_s is None:
            return
        self._wait_as_told(wait_s, error)

    def _wait_as_told(self, wait_s: float, error: CallTransient) -> None:
        if wait_s > self._limits.longest_wait_s:
            self._down = (
                f"the provider asks to wait for {_minutes(wait_s)} ({error}); {GOES_ON} then"
            )
        else:
            self._pace.pause(wait_s, f"the provider asks us to ({error})", self._now)

    def _failed(self, error: CallTransient, *, first: bool) -> None:
        if self._probes and self._pace.is_paused(self._now):
            return  # it was in flight before: only the call that comes next is a probe
        if error.wait_s is not None:
            self._wait_as_told(error.wait_s, error)
        self._failures_in_a_row += first
        if self._probes or self._failures_in_a_row >= FAILURES:
            self._probe(error)

    def _probe(self, error: CallTransient) -> None:
        """Asks nothing for a while, and then one call alone."""
        if self._probes == PROBES:
            self._down = f"the provider answers nothing any more, last: {error}; {GOES_ON}"
            return
        pause_s = 2**self._probes * self._random.uniform(0.8, 1.2)
        self._pace.pause(pause_s, f"the provider answers nothing ({error})", self._now)
        self._probes += 1

    def _refused(self, error: CallRejected) -> None:
        if self._answered or len(self._refusals) > FIRST_REFUSALS:
            return
        self._refusals.append(str(error))
        if len(self._refusals) >= FIRST_REFUSALS and len(set(self._refusals)) == 1:
            self._down = (
                f"each of the first {FIRST_REFUSALS} calls was refused: {error}; nothing more is "
                "asked"
            )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes"


def guessed_tokens(request: ChatRequest) -> tuple[int, int]:
    """The prompt's tokens and the most of the answer's, until the answer tells."""
    characters = sum(len(message.content) for message in request.messages)
    return characters // CHARACTERS_A_TOKEN, request.sampling.max_tokens * request.sampling.n


def backoff_s(wait: tenacity.wait.wait_base, attempts: int) -> float:
    """Seconds that one of tenacity's strategies waits after so many attempts."""
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempts
    return wait(state)


class _Epoch:
    """Answers since the window was last thought over."""

    def __init__(self) -> None:
        self.calls = 0
        self.start = 0.0
        self.shrunk = False

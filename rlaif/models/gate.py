"""Whether another call may be made: what a whole run may spend."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from rlaif.errors import AskingStopped, SetupError
from rlaif.models.prices import Price, Prices
from rlaif.types import Record

GOES_ON = "what was in flight is kept, and this goes on and may spend as much again"


class Budget(Record):
    """What one run of the command may spend. Not part of a run's config: it changes no label."""

    max_usd: float | None = Field(default=None, ge=0)
    """Most money, in US dollars; none: no limit."""
    max_calls: int | None = Field(default=None, ge=1)
    """Most calls that a model answers; none: no limit."""
    max_minutes: float | None = Field(default=None, ge=0)
    """No call is made after so many minutes; none: no limit."""


class Gate:
    """Every call of a run passes here first. Calls are counted as they go in, so `max_calls` is
    never passed. What a call costs is known when its answer comes: until then the most that it may
    cost is set aside, and a call that does not fit beside what is in flight waits for it. So
    `max_usd` is passed only by prompts of more tokens than was guessed."""

    def __init__(
        self,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.monotonic,
        prices: Prices | None = None,
    ) -> None:
        """`prices` None: ours."""
        self._prices = prices or Prices.load(None)
        self.budget = budget or Budget()
        self.usd = 0.0
        """Spent in this run."""
        self.calls = 0
        """Answered or in flight."""
        self._set_aside = 0.0
        self._paying = 0
        """Calls in flight for which money is set aside."""
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        self._clock = clock
        self._start = clock()

    @classmethod
    def of(
        cls,
        max_usd: float | None,
        max_calls: int | None,
        max_minutes: float | None,
        prices: Path | None,
    ) -> Gate:
        """A gate for one command; `prices` is the user's file of them. Raises SetupError."""
        budget = Budget(max_usd=max_usd, max_calls=max_calls, max_minutes=max_minutes)
        return cls(budget, prices=Prices.load(prices))

    @property
    def counts_money(self) -> bool:
        """Whether `admit` must know what a call may cost."""
        return self.budget.max_usd is not None

    @property
    def seconds_left(self) -> float | None:
        """Until `max_minutes` are over; None: no limit."""
        if self.budget.max_minutes is None:
            return None
        return self.budget.max_minutes * 60 - (self._clock() - self._start)

    def time_is_over(self) -> AskingStopped:
        """What to raise when they are."""
        return AskingStopped(f"--max-minutes: {self.budget.max_minutes:g} are over; {GOES_ON}")

    async def admit(self, usd: float = 0.0) -> None:
        """One call goes in that may cost so much, as soon as it fits. Raises AskingStopped where
        the budget is spent."""
        if not (self._waiting and usd) and self._admits(usd):
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((place, usd))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.settle(usd, None)
            raise

    def settle(self, set_aside: float, usd: float | None) -> None:
        """A call for which so much was set aside is over, and has cost `usd`; None: nothing, it
        came back without an answer."""
        if set_aside:
            self._paying -= 1
            # Of many sums and differences a hair may remain, for which nobody should wait.
            self._set_aside = self._set_aside - set_aside if self._paying else 0.0
        if usd is None:
            self.calls -= 1
        else:
            self.usd += usd
        while self._waiting:
            place, wanted = self._waiting[0]
            if not place.done():
                try:
                    if not self._admits(wanted):
                        return
                except AskingStopped as e:
                    place.set_exception(e)
                else:
                    place.set_result(None)
            self._waiting.popleft()

    def _admits(self, usd: float) -> bool:
        """Lets a call in, if it need not wait for others. Raises as `admit` does."""
        budget = self.budget
        if budget.max_calls is not None and self.calls >= budget.max_calls:
            raise AskingStopped(f"--max-calls: {self.calls} calls are made; {GOES_ON}")
        if (left_s := self.seconds_left) is not None and left_s <= 0:
            raise self.time_is_over()
        if budget.max_usd is not None:
            if usd > budget.max_usd:
                raise AskingStopped(
                    f"--max-usd: one call may cost {usd:.4f} of {budget.max_usd:g} US dollars; "
                    "this goes on with more to spend"
                )
            if self.usd + usd > budget.max_usd or self.usd >= budget.max_usd:
                left = f", and the next call may cost {usd:.4f}" if usd else ""
                raise AskingStopped(
                    f"--max-usd: {self.usd:.4f} of {budget.max_usd:g} US dollars are spent{left}; "
                    f"{GOES_ON}"
                )
            if self.usd + self._set_aside + usd > budget.max_usd and usd:
                return False
        self.calls += 1
        if usd:
            self._paying += 1
            self._set_aside += usd
        return True

    def price_of(
        self, model: str, usd_per_million: tuple[float, float] | None, field: str
    ) -> Price | None:
        """What a model's tokens cost, by its config or by the table; None: not known. Raises
        SetupError where a limit in money could then not be kept."""
        if usd_per_million is not None:
            return Price(input=usd_per_million[0], output=usd_per_million[1])
        price = self._prices.of(model)
        if price is None and self.budget.max_usd is not None:
            raise SetupError(
                f"--max-usd cannot be kept: the price of {model} is not known",
                field=field,
                fix="name it in a file of prices (--prices FILE), or as "
                f"{field.removesuffix('.model')}.usd_per_million_tokens",
            )
        return price

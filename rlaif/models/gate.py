"""Whether another call may be made: what a whole run may spend."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from rlaif.errors import AskingStopped, SetupError
from rlaif.models.prices import Price, Prices
from rlaif.types import Record

GOES_ON = "what was in flight is answered and stored, and this with more to spend goes on"


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
    never passed; money is known when an answer comes, so `max_usd` is passed by what was in flight
    at most."""

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

    def admit(self) -> None:
        """One call goes in. Raises AskingStopped where the budget is spent."""
        budget = self.budget
        if budget.max_calls is not None and self.calls >= budget.max_calls:
            raise AskingStopped(f"--max-calls: {self.calls} calls are made; {GOES_ON}")
        if budget.max_usd is not None and self.usd >= budget.max_usd:
            raise AskingStopped(
                f"--max-usd: {self.usd:.4f} of {budget.max_usd:g} US dollars are spent; {GOES_ON}"
            )
        if (
            budget.max_minutes is not None
            and self._clock() - self._start >= budget.max_minutes * 60
        ):
            raise AskingStopped(f"--max-minutes: {budget.max_minutes:g} are over; {GOES_ON}")
        self.calls += 1

    def gave_nothing(self) -> None:
        """A call that went in came back without an answer."""
        self.calls -= 1

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

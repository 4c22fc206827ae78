"""An event loop whose clock jumps: an hour passes in a moment."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Sleeps by moving the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


def in_virtual_time(main: Callable[[], Awaitable[T]]) -> T:
    selector = Jumping()

    class Loop(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return selector.now

    with asyncio.Runner(loop_factory=lambda: Loop(selector)) as runner:
        return runner.run(main())  # type: ignore[arg-type]

"""Ctrl-C, and SIGTERM as if it were Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
Handler = Callable[[int, FrameType | None], Any]

_instead: Handler | None = None
"""What Ctrl-C would call, where a shell that started us in the background has us ignore it: there
it is meant for something else, and SIGTERM for us."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, whose way to end at Ctrl-C is also that of SIGTERM."""
    if not _ignored():
        return asyncio.run(main)

    async def shielded() -> T:
        global _instead
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert callable(handler), "asyncio's own"
        _instead = handler
        return await main

    global _instead
    # asyncio puts its handler in the place of this one alone.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return asyncio.run(shielded())
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _instead = None


def terminate(number: int, frame: FrameType | None) -> None:
    """A handler for SIGTERM, what a scheduler sends before it kills."""
    handler = _instead or signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:
        raise KeyboardInterrupt


@contextmanager
def unswallowed() -> Iterator[None]:
    """Python drops a KeyboardInterrupt that meets a finaliser (`__del__`, a weak reference's
    callback): the task would run on as if nobody had stopped it. Here it comes again."""
    before = sys.unraisablehook
    pending: list[threading.Timer] = []

    def again(lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        # Not at once: that would be inside this hook, where it is dropped as well.
        later = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        later.daemon = True
        pending.append(later)
        later.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
        late = [later for later in pending if not later.finished.is_set()]
        for later in late:
            later.cancel()
    if late:
        # Once nobody takes it any more, the process would die of the signal without a word.
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets Ctrl-C end work that never awaits: the event loop's own handler would only cancel the
    task, which takes effect at the next await, hours later."""
    global _instead
    if _ignored():
        before, _instead = _instead, signal.default_int_handler
        try:
            yield
        finally:
            _instead = before
        return
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _ignored() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN

"""Where a long task is: a bar with rate and time left, or plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_EVERY_S = 10.0


class Advance(Protocol):
    def __call__(self, done: int, note: str = "") -> None:
        """`done` counts from the start of the task; `note` stands beside the bar."""


def say(text: str) -> None:
    """One line to the person at the terminal (standard error; results go to files)."""
    print(text, file=sys.stderr, flush=True)


class Status:
    """One line that is rewritten on a terminal, and repeated now and then where there is none."""

    def __init__(self) -> None:
        self._shown = 0.0

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text[:100]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._shown >= PLAIN_EVERY_S:
            self._shown = time.monotonic()
            say(text)

    def end(self, text: str) -> None:
        """The last line: always shown, and kept."""
        say(f"\r\033[K{text}" if sys.stderr.isatty() else text)


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """Shows `label: done/total, rate, time left` until the block ends.

    The clock starts at the first advance: what was done before then (answers from the store, the
    start of a server) does not count into the rate.
    """
    if total == 0:
        yield lambda done, note="": None
    elif sys.stderr.isatty():
        yield from _bar(label, total, unit)
    else:
        yield from _lines(label, _Pace(total, unit))


def _bar(label: str, total: int, unit: str) -> Iterator[Advance]:
    # rich is imported here because `rlaif --help` must not pay for it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
    pace = _Pace(total, unit)
    with bar:
        task = bar.add_task(label, total=total, note="", pace="")
        yield lambda done, note="": bar.update(task, completed=done, note=note, pace=pace(done))


def _lines(label: str, pace: _Pace) -> Iterator[Advance]:
    shown: float | None = None

    def advance(done: int, note: str = "") -> None:
        nonlocal shown
        text = pace(done)
        now = time.monotonic()
        if shown is not None and now - shown < PLAIN_EVERY_S and done < pace.total:
            return
        shown = now
        say(f"{label:>12}  {done}/{pace.total}  {text}  {note}".rstrip())

    yield advance


class _Pace:
    """Rate and time left, from the first call on."""

    def __init__(self, total: int, unit: str) -> None:
        self.total = total
        self._unit = unit
        self._start: tuple[float, int] | None = None

    def __call__(self, done: int) -> str:
        now = time.monotonic()
        if self._start is None:
            self._start = (now, done)
        elapsed_s, new = now - self._start[0], done - self._start[1]
        if not new or elapsed_s < 0.1:
            return ""
        rate = new / elapsed_s
        left_s = int((self.total - done) / rate)
        one = self._unit.removesuffix("s")
        shown = f"{rate:.1f} {self._unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{one}"
        return f"{shown}, {left_s // 60}:{left_s % 60:02d} left"

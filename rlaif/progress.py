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
    """Shows `label: done/total unit, rate, time left` until the block ends."""
    if total == 0:
        yield lambda done, note="": None
    elif sys.stderr.isatty():
        yield from _bar(label, total, unit)
    else:
        yield from _lines(label, total, unit)


def _bar(label: str, total: int, unit: str) -> Iterator[Advance]:
    # rich is imported here because `rlaif --help` must not pay for it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_rate(task.completed, task.elapsed or 0.0, int(task.total or 0), unit))

    bar = Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        Rate(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def _lines(label: str, total: int, unit: str) -> Iterator[Advance]:
    start = time.monotonic()
    shown = start - PLAIN_EVERY_S

    def advance(done: int, note: str = "") -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < PLAIN_EVERY_S and done < total:
            return
        shown = now
        say(
            f"{label:>12}  {done}/{total}  {_rate(done, now - start, total, unit)}  {note}".rstrip()
        )

    yield advance


def _rate(done: float, elapsed_s: float, total: int, unit: str) -> str:
    if not done or elapsed_s < 0.1:
        return ""
    rate = done / elapsed_s
    left_s = int((total - done) / rate)
    rate_text = (
        f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit.removesuffix('s')}"
    )
    return f"{rate_text}, {left_s // 60}:{left_s % 60:02d} left"

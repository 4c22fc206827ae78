"""Where a long task is: bars with rate and time left, plain lines without a terminal, or JSON."""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rlaif.redact import redacted

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_EVERY_S = 10.0
DRAWN_EVERY_S = 0.1
RATE_OVER_S = 30.0
"""The rate is that of the last so many seconds: what came from a store at first says nothing of
what is asked now."""


class Spent(NamedTuple):
    """What a task has used so far."""

    tokens: int
    """Answered, from the store too."""
    tokens_per_s: float
    """Answered by models a second, in this run."""
    usd: float | None
    """In this run; None: a price is not known."""
    calls: int
    """Answered."""
    stored: int = 0
    """Of the calls those that the store answered."""


Note = str | Spent


class Advance(Protocol):
    def __call__(self, done: int, note: Note = "") -> None:
        """`done` counts from the start of the task; `note` stands beside the bar."""


class _Output:
    """How this process tells where it is."""

    as_json = False
    bars: Progress | None = None
    tasks = 0


def use_json_logs() -> None:
    """From now on every line on standard error is a JSON object."""
    _Output.as_json = True


def json_logs() -> bool:
    """Whether they are."""
    return _Output.as_json


def log(event: str, **fields: Any) -> None:
    """One JSON line: the time (RFC 3339, UTC), the event, and what belongs to it."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = json.dumps({"time": at, "event": event, **fields}, ensure_ascii=False)
    print(redacted(line), file=sys.stderr, flush=True)


def say(text: str, event: str = "say") -> None:
    """One line to the person at the terminal (standard error; results go to files)."""
    if _Output.as_json:
        log(event, text=text)
    else:
        print(redacted(text), file=sys.stderr, flush=True)


class Status:
    """One line that is rewritten on a terminal, and repeated now and then where there is none."""

    def __init__(self) -> None:
        self._shown = 0.0

    def __call__(self, text: str) -> None:
        if _drawn():
            print(f"\r\033[K{redacted(text)[:100]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._shown >= PLAIN_EVERY_S:
            self._shown = time.monotonic()
            say(text, "status")

    def end(self, text: str) -> None:
        """The last line: always shown, and kept."""
        say(f"\r\033[K{text}" if _drawn() else text, "status")


def _drawn() -> bool:
    return sys.stderr.isatty() and not _Output.as_json


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """Shows `label: done/total, rate, time left` until the block ends.

    Two may be open at once. The clock starts at the first advance: what was done before then (the
    start of a server) does not count into the rate. Costs next to nothing where nothing is drawn,
    so it can be called for every one of thousands of calls a second.
    """
    if total == 0:
        yield lambda done, note="": None
        return
    display = _Bar(label, total, unit) if _drawn() else _Lines(label, total, unit)
    try:
        yield display.advance
    finally:
        display.end()


class _Display(ABC):
    every_s: float

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self._next = 0.0
        self._last: tuple[int, Note] | None = None
        self._shown = -1
        self._seen: deque[tuple[float, int]] = deque()

    def advance(self, done: int, note: Note = "") -> None:
        """See `Advance`."""
        now = time.monotonic()
        self._last = (done, note)
        if now >= self._next or done >= self.total:
            self._show(now)

    def end(self) -> None:
        """What was told last is shown, and the display is put away."""
        if self._last is not None and self._last[0] != self._shown:
            self._show(time.monotonic())

    def _show(self, now: float) -> None:
        assert self._last is not None
        self._next = now + self.every_s
        done, note = self._last
        self._shown = done
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > RATE_OVER_S:
            self._seen.popleft()
        self.show(done, note, self._rate())

    def _rate(self) -> float | None:
        (start, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - start) if done > before and now - start >= 0.1 else None

    @abstractmethod
    def show(self, done: int, note: Note, rate: float | None) -> None:
        """Draws or prints it."""

    def pace(self, done: int, rate: float | None) -> str:
        """Rate and time left, in words."""
        if rate is None:
            return ""
        left_s = int((self.total - done) / rate)
        one = self.unit.removesuffix("s")
        shown = f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{one}"
        return f"{shown}, {left_s // 60}:{left_s % 60:02d} left"

    def spent(self, done: int, note: Note) -> str:
        """What is used, in words."""
        if isinstance(note, str):
            return note
        stored = f", {note.stored} stored" if note.stored else ""
        said = f"{note.calls} calls{stored}, {note.tokens} tokens answered"
        if note.tokens_per_s:
            said += f", {note.tokens_per_s:.0f}/s"
        if note.usd:
            said += f", ${note.usd:.2f} of about ${_expected(note, done, self.total):.2f}"
        return said


def _expected(spent: Spent, done: int, total: int) -> float:
    """What is spent, and what the rest would cost if none of it were stored."""
    usd = spent.usd or 0.0
    made = done * (1 - spent.stored / spent.calls) if spent.calls else done
    return usd + (usd / made * (total - done) if made else 0.0)


class _Lines(_Display):
    every_s = PLAIN_EVERY_S

    def show(self, done: int, note: Note, rate: float | None) -> None:
        if not _Output.as_json:
            text = f"{self.label:>12}  {done}/{self.total}  {self.pace(done, rate)}"
            say(f"{text}  {self.spent(done, note)}".rstrip())
            return
        fields: dict[str, Any] = {"label": self.label, "unit": self.unit, "done": done}
        fields["total"] = self.total
        if rate is not None:
            fields |= {"rate": round(rate, 3), "seconds_left": round((self.total - done) / rate)}
        if isinstance(note, Spent):
            fields |= {"calls": note.calls, "calls_stored": note.stored}
            fields |= {"tokens": note.tokens, "tokens_per_second": round(note.tokens_per_s, 1)}
            fields["usd"] = note.usd
            fields["usd_expected"] = note.usd and _expected(note, done, self.total)
        elif note:
            fields["note"] = note
        log("progress", **fields)


class _Bar(_Display):
    every_s = DRAWN_EVERY_S

    def __init__(self, label: str, total: int, unit: str) -> None:
        super().__init__(label, total, unit)
        # One drawing for all: a terminal has one place to rewrite.
        if _Output.bars is None:
            _Output.bars = _new_bars()
            _Output.bars.start()
        _Output.tasks += 1
        self._bars = _Output.bars
        self._task = self._bars.add_task(label, total=total, note="", pace="")

    def show(self, done: int, note: Note, rate: float | None) -> None:
        pace, spent = self.pace(done, rate), redacted(self.spent(done, note))
        self._bars.update(self._task, completed=done, note=spent, pace=pace)

    def end(self) -> None:
        super().end()
        _Output.tasks -= 1
        if _Output.tasks == 0:
            self._bars.stop()
            _Output.bars = None


def _new_bars() -> Progress:
    # rich is imported here because `rlaif --help` must not pay for it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )

"""A run's folder: where each stage finds what came before and leaves what it made."""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from rlaif.callstore import CallStore, tools
from rlaif.errors import SetupError, StoreError
from rlaif.files import canonical, digest, jsonl_writer, sweep, write_text
from rlaif.models.client import Bill
from rlaif.models.gate import Gate
from rlaif.models.pool import ModelPool, Provider
from rlaif.progress import say

STAMP = "stamp.json"
KEY = re.compile(r"\b[0-9a-f]{64}\b")
LABELS = ("labels", "judge", "labeler")
OF_LABELS = ("attribution.html", "attribution.json", "suggested.yaml", "constitution-diff.json")
"""What `rlaif constitution report` and `diff` leave in the folder of a run."""

LOOK_S = 0.3
BEGUN = "begun_"
"""Begins the name of the part that stands while a stage is at work, and after it was stopped."""


class RunFolder:
    """A run's folder, to be read: where each stage leaves what it made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.prompts = directory / "prompts.jsonl"
        self.responses = directory / "responses.jsonl"
        self.judgments = directory / "judgments.jsonl"
        self.comparisons = directory / "comparisons.jsonl"
        self.groups = directory / "groups.jsonl"
        self.human = directory / "human.jsonl"
        self.splits = directory / "splits.json"
        self.preferences = directory / "preferences"
        self.reward_model = directory / "reward_model"
        self.policy = directory / "dpo"
        self.compare = directory / "compare"
        self.revisions = directory / "revisions"
        self.chains = self.revisions / "chains.jsonl"
        # What each part of the report was made from, and the part that this was made with: a part
        # whose input has changed since tells of another run.
        self._inputs: dict[str, tuple[Path, str | None]] = {
            **dict.fromkeys(LABELS, (self.responses, None)),
            "pairs": (self.comparisons, "labels"),
            "reward_model": (self.groups, "pairs"),
            "dpo": (self.groups, "pairs"),
            "rl": (self.reward_model / STAMP, "reward_model"),
            "comparison": (self.policy / STAMP, "dpo"),
            "revisions": (self.chains, None),
            "sft": (self.revisions / STAMP, None),
        }

    def part(self, name: str) -> dict[str, Any] | None:
        """A part of the report that a stage has saved; None before, and None when the stage's
        input has changed since."""
        path = self._part(name)
        if not path.is_file():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        _, before = self._inputs.get(name, (None, None))
        if kept["of"] != self._input(name) or (before and self.part(before) is None):
            return None
        value: dict[str, Any] = kept["value"]
        return value

    def _input(self, name: str) -> str | None:
        path, _ = self._inputs.get(name, (None, None))
        if path is None or not path.is_file():
            return None
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def was_made(self, name: str) -> bool:
        """Whether a stage has saved this part, whatever has changed since."""
        return self._part(name).is_file()

    def begun(self) -> list[str]:
        """Stages that are at work, or were stopped."""
        found = self.directory.glob(f"parts/{BEGUN}*.json")
        return sorted(path.stem.removeprefix(BEGUN) for path in found)

    def _part(self, name: str) -> Path:
        return self.directory / "parts" / f"{name}.json"


class Workspace(RunFolder):
    """One run's folder, call store and models: made by the recipe, given to every stage."""

    def __init__(
        self,
        directory: Path,
        seed: int,
        providers: Mapping[str, Provider],
        gate: Gate | None = None,
    ) -> None:
        """`gate`: what may be spent; None: no limit."""
        super().__init__(directory)
        self.seed = seed
        self._lock = _lock(directory)
        sweep(directory)
        try:
            self.store = CallStore(directory / "calls.sqlite")
        except StoreError:
            self._lock.close()
            raise
        self.pool = ModelPool(self.store, directory / "logs", providers, gate)

    @asynccontextmanager
    async def stage(self, name: str) -> AsyncIterator[Bill]:
        """Counts what a stage costs in this run; says and keeps what failed calls were told."""
        say(f"{name} …")
        # What it asks before it ends is named by no file yet: see `prune`.
        self.save_part(f"{BEGUN}{name}", {})
        bill = Bill()
        start = time.monotonic()
        try:
            yield bill
        finally:
            # Not `asdict`: up to Python 3.11 it counts a Counter's items instead of copying them.
            cost = {**vars(bill), "seconds": round(time.monotonic() - start, 3)}
            cost.pop("failures")
            self.save_part("cost", {**(self.part("cost") or {}), name: cost})
            self.save_part(f"failed_calls_{name}", dict(bill.failures))
            say_failures(bill)
        self.drop_part(f"{BEGUN}{name}")

    def save_part(self, name: str, value: BaseModel | Mapping[str, Any]) -> None:
        """Keeps a part of the report."""
        plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        kept = {"of": self._input(name), "value": plain}
        write_text(self._part(name), canonical(kept) + "\n")

    def drop_part(self, name: str) -> None:
        """Forgets a part of the report."""
        self._part(name).unlink(missing_ok=True)

    def write_comparisons(self) -> AbstractContextManager[Callable[[BaseModel], None]]:
        """Writes the labels, one by one; what was told of others is taken away before these take
        their place, or a kill in between would leave it beside them."""

        def replacing(new: Path) -> None:
            if self.comparisons.is_file() and filecmp.cmp(new, self.comparisons, shallow=False):
                return
            for name in LABELS:
                self.drop_part(name)
            for name in OF_LABELS:
                (self.directory / name).unlink(missing_ok=True)

        return jsonl_writer(self.comparisons, replacing)

    def is_made(self, made: Path, inputs: Any) -> bool:
        """Whether the folder `made` was finished from exactly these inputs."""
        stamp = made / STAMP
        return stamp.is_file() and stamp.read_text(encoding="utf-8") == digest(inputs)

    def mark_made(self, made: Path, inputs: Any) -> None:
        """Says that the folder is finished: the last thing that a stage writes into it."""
        write_text(made / STAMP, digest(inputs))

    def mark_unfinished(self, made: Path) -> None:
        """Takes that back: before a stage writes over what was there."""
        (made / STAMP).unlink(missing_ok=True)

    async def close(self) -> None:
        """Stops the servers and closes the store."""
        await self.pool.close_servers()
        self.store.close()
        self._lock.close()


def say_failures(bill: Bill) -> None:
    """What was said most often to calls that failed."""
    if bill.failures:
        said, times = bill.failures.most_common(1)[0]
        say(f"{bill.failures.total()} calls failed; most often ({times}): {said[:300]}")


def prune(run: Path, model: str | None, before: str | None, *, delete: bool) -> tuple[int, int]:
    """How many stored calls no file of the run names, and how many are left; `delete` deletes them.
    Of one model, or from before a date, where they are given. Raises SetupError."""
    path = tools.store_of(run)
    if not (run / "responses.jsonl").is_file():
        raise SetupError(
            "holds no finished run, so nothing tells which calls are still wanted",
            file=run,
            fix="name the folder of a run that has sampled",
        )
    if begun := RunFolder(run).begun():
        raise SetupError(
            f"was stopped in {', '.join(begun)}, and no file names yet what was asked there",
            file=run,
            fix="let the run come to its end, and prune then",
        )
    with _lock(run):
        named = {
            key
            for file in (*run.rglob("*.jsonl"), *run.rglob("*.json"))
            for line in _lines(file)
            for key in KEY.findall(line)
        }
        keys = tools.unused(path, named, model, before)
        total = tools.count(path)
        if delete:
            tools.prune(path, keys)
    return len(keys), total - len(keys)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def repair(path: Path) -> tools.Repaired:
    """See `tools.repair`. Raises SetupError where a run is at work: what it stores now would go
    into the file that is put aside."""
    with _lock(path.parent):
        return tools.repair(path)


def is_at_work(directory: Path) -> bool:
    """Whether a process holds the run directory."""
    path = directory / ".lock"
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            # Shared and for this moment alone: whoever else looks is told the same.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock(directory: Path) -> IO[str]:
    """Holds the run directory until the returned file is closed. Raises SetupError when another
    process holds it: two runs would pay twice and overwrite each other's files."""
    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / ".lock").open("w")
    last = time.monotonic() + LOOK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError as e:
            # Who only looks whether a run is at work holds it for a moment, too.
            if time.monotonic() < last:
                time.sleep(0.01)
                continue
            file.close()
            raise SetupError(
                "another run is working in this directory",
                file=directory,
                fix="wait for it, or choose another --out",
            ) from e

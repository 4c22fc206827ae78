"""A run that is started, watched, killed and started again: what `kills.py` and its test share."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from run_files import Stored, files, stored, told, torn

HERE = Path(__file__).resolve().parent


@dataclass
class Call:
    """A request that the counting server has read."""

    run: str
    model: str
    call: str
    max_tokens: int
    sent: float | None = None
    """When its answer had been sent in full, on the machine's monotonic clock."""


class Server:
    """The counting server, in a process of its own."""

    def __init__(self, log: Path, delay_s: float) -> None:
        self.delay_s = delay_s
        self.calls: dict[int, Call] = {}
        log.touch()
        self._log = log.open(encoding="utf-8")
        self._rest = ""
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "counting_server.py"), str(log), "--delay", str(delay_s)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError("the counting server did not start")

    def seen(self) -> list[Call]:
        """Every call so far."""
        *lines, self._rest = (self._rest + self._log.read()).split("\n")
        for line in map(json.loads, lines):
            number = line.pop("number")
            if "sent" in line:
                self.calls[number].sent = line["sent"]
            else:
                self.calls[number] = Call(**line)
        return list(self.calls.values())

    def calls_of(self, out: Path) -> list[Call]:
        """The calls of the processes that `kill_and_restart` started in `out`."""
        return [c for c in self.seen() if c.run.rpartition("-")[0] == out.name]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


class Command(NamedTuple):
    """What is started again and again: the arguments of `rlaif`, without --out."""

    arguments: tuple[str, ...]

    def start(self, out: Path, run: str = "none") -> Started:
        """`run` names the process to the counting server."""
        return Started([*self.arguments, "--out", str(out)], run)


class Started:
    """A command at work in a process of its own."""

    def __init__(self, arguments: Sequence[str], run: str) -> None:
        self.run = run
        self.stages: dict[str, float] = {}
        """Stage -> seconds from the start to its line on standard error."""
        self.lines: list[str] = []
        self._begun = time.monotonic()
        self.process = subprocess.Popen(
            # -P: the working directory may hold another rlaif.
            [sys.executable, "-P", "-m", "rlaif", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(RLAIF_HTTP_API_KEY=run),
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            name, mark, _ = self.lines[-1].partition(" …")
            if mark and " " not in name:
                self.stages[name] = self.seconds

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._begun

    @property
    def stage(self) -> str:
        """The stage that it has come to."""
        return ["start", *self.stages][-1]

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def wait(self) -> int:
        """The exit code."""
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.returncode

    def kill(self) -> bool:
        """Whether it was still running when it was killed."""
        self.process.kill()
        return self.wait() == -signal.SIGKILL


def environment(**more: str) -> dict[str, str]:
    """Ours with one thread for torch (threads of a busy machine wait for each other) and no proxy
    between us and the server."""
    root = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, **more}


class Reference(NamedTuple):
    """The run that nothing disturbed."""

    out: Path
    spans: Mapping[str, float]
    """Seconds from one stage's line to the next one's."""
    calls: Mapping[str, int]
    """Model -> stored calls to it."""


def undisturbed(command: Command, out: Path) -> Reference:
    """Raises RuntimeError where the run fails."""
    run = command.start(out, "undisturbed")
    if run.wait() != 0:
        raise RuntimeError("\n".join(run.lines))
    begun = {"start": 0.0, **run.stages}
    ends = [*list(begun.values())[1:], run.seconds]
    spans = {name: end - at for (name, at), end in zip(begun.items(), ends, strict=True)}
    return Reference(out, spans, Counter(model for model, _ in told(stored(out))))


@dataclass
class Ended:
    """A process that has ended, and what it left."""

    run: str
    killed: bool
    stage: str
    """Where it was."""
    at: float
    """When, on the machine's monotonic clock."""
    before: Stored
    after: Stored
    torn: list[str]


def plan(kills: int, rng: random.Random, places: Mapping[str, int]) -> list[str]:
    """Where the kills fall: each place about as often as its share, and at least once."""
    total = sum(places.values())
    counts = {place: max(1, round(kills * share / total)) for place, share in places.items()}
    most = max(counts, key=lambda place: counts[place])
    counts[most] = max(1, counts[most] + kills - sum(counts.values()))
    order = [place for place, n in counts.items() if place != "start" for _ in range(n)]
    for _ in range(counts.get("start", 0)):
        order.insert(rng.randrange(len(order) + 1), "start")
    return order


def await_moment(
    run: Started,
    place: str,
    left: int,
    reference: Reference,
    kept: Stored,
    server: Server | None,
    rng: random.Random,
) -> None:
    """Returns at a random moment of `place`, or when the run is over. `left`: the kills that fall
    there from now on."""
    done = Counter(model for model, _ in told(kept))[place]
    if place in reference.calls and done >= reference.calls[place]:
        # On a busy machine the kills before came late, and there is no call left to fall on.
        place = "start"
    if place in reference.calls and server is not None:
        wanted = 1 + int(rng.random() * (reference.calls[place] - done) / left)
        wait = rng.random() * server.delay_s
        while not run.over and wanted > sum(
            c.run == run.run and c.model == place for c in server.seen()
        ):
            time.sleep(0.002)
    else:
        wait = rng.random() * reference.spans[place]
        while not run.over and place != "start" and place not in run.stages:
            time.sleep(0.002)
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.process.wait(wait)


def kill_and_restart(
    command: Command,
    out: Path,
    reference: Reference,
    places: Sequence[str],
    rng: random.Random,
    server: Server | None = None,
) -> Iterator[Ended]:
    """Kills the run once in each of the places, and then lets it end. Its processes are called
    `<name of out>-<number>`. Raises RuntimeError where it fails by itself."""
    whole = files(reference.out)
    kept = stored(out)
    left = [*places, ""]
    for number in itertools.count(1):
        run = command.start(out, f"{out.name}-{number}")
        if left[0]:
            await_moment(run, left[0], left.count(left[0]), reference, kept, server, rng)
            killed = run.kill()
        else:
            killed = run.wait() == -signal.SIGKILL
        ended = time.monotonic()
        if not killed and run.process.returncode != 0:
            raise RuntimeError("\n".join(run.lines))
        before, kept = kept, stored(out)
        yield Ended(run.run, killed, run.stage, ended, before, kept, torn(out, whole))
        # One that was over too soon is killed once more.
        if killed or not left[0]:
            left.pop(0)
        if not left:
            return


def served(server: Server, concurrency: int) -> tuple[str, ...]:
    """Overrides that have both models asked through the counting server."""
    return tuple(
        override
        for section in ("policy", "judge")
        for override in (
            f"{section}.model={server.url}#{section}",
            f"{section}.concurrency={concurrency}",
        )
    )

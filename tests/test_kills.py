"""Runs that are killed, locked out or left without room: nothing is lost, nothing is paid twice."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from conftest import Finished
from killing import Command, Reference, Server, Started, kill_and_restart, served, undisturbed
from kills import count, problems
from run_files import STORE, differences, files, stored, torn

Cli = Callable[..., Finished]
SMALL = (
    "smoke",
    "sample.limit=8",
    "sample.k=3",
    "sample.max_tokens=24",
    "pairs.test_fraction=0.4",
    "reward_model.epochs=1",
    "dpo.epochs=1",
    "compare.samples=1",
)
CONCURRENCY = 4
BIG = """
import sys
from pathlib import Path
from rlaif.files import write_text

write_text(Path(sys.argv[1]), "x" * 200_000_000)
"""
HALF_A_MODEL = """
import sys, time
from pathlib import Path
from rlaif.train.saving import written_whole

with written_whole(Path(sys.argv[1])) as new:
    (new / "config.json").write_text("{}")
    print("begun", flush=True)
    time.sleep(600)
"""
TOKENIZER = """
import resource, sys
from pathlib import Path
from rlaif.errors import SetupError
from rlaif.train.saving import written_whole
from rlaif.train.tiny import tiny_tokenizer

resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    with written_whole(Path(sys.argv[1])) as new:
        tiny_tokenizer().save_pretrained(new)
except SetupError as e:
    print(e)
"""


class Whole(NamedTuple):
    """A run that nothing disturbed, and what it was made with."""

    server: Server
    command: Command
    reference: Reference


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("kills")
    server = Server(folder / "server.jsonl", 0.05)
    try:
        command = Command(("run", *SMALL, *served(server, CONCURRENCY)))
        yield Whole(server, command, undisturbed(command, folder / "undisturbed"))
    finally:
        server.close()


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, Path]:
    """A command that asks little, and what it makes."""
    out = tmp_path_factory.mktemp("sampled") / "run"
    command = Command(("sample", *SMALL))
    return command, undisturbed(command, out).out


@pytest.fixture
def copied(whole: Whole, tmp_path: Path) -> Path:
    """The undisturbed run's folder, for a test that changes it."""
    return Path(shutil.copytree(whole.reference.out, tmp_path / "run"))


def wait_for(what: Callable[[], bool], run: Started) -> None:
    while not what():
        assert not run.over, run.lines
        time.sleep(0.001)


def said(run: Started) -> str:
    """The one line of a run that ended as a user's mistake does."""
    assert run.wait() == 2, run.lines
    (line,) = [line for line in run.lines if line.startswith("rlaif: ")]
    assert run.lines[-1] == line
    assert not any("Traceback" in line for line in run.lines)
    return line.removeprefix("rlaif: ")


# Kills.


def test_a_run_killed_eight_times_loses_nothing_and_asks_nothing_twice(
    whole: Whole, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    places = ["start", "policy", "policy", "judge", "judge", "judge", "judge", "compare"]
    ends = list(
        kill_and_restart(
            whole.command, out, whole.reference, places, random.Random(0), whole.server
        )
    )
    calls = whole.server.calls_of(out)
    assert problems(ends, calls, CONCURRENCY, out, whole.reference.out) == []
    assert sum(ended.killed for ended in ends) == len(places)
    counts = [count(ended, calls, ends[-1].after) for ended in ends]
    in_flight: Counter[str] = sum((c.in_flight for c in counts), Counter())
    # Or the kills fell between the calls, and show nothing.
    assert in_flight.total() > 0
    paid = whole.reference.calls["policy"] + whole.reference.calls["judge"]
    assert sum(c.asked.total() for c in counts) == paid + in_flight.total()


def test_a_kill_in_a_stage_after_the_asking_costs_no_call(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "later"
    out.mkdir()
    shutil.copyfile(whole.reference.out / STORE[0], out / STORE[0])
    places = ["pairs", "train-rm", "train-dpo", "compare"]
    ends = list(kill_and_restart(whole.command, out, whole.reference, places, random.Random(1)))
    assert problems(ends, [], CONCURRENCY, out, whole.reference.out) == []
    assert sum(ended.killed for ended in ends) == len(places)
    assert whole.server.calls_of(out) == []


def test_a_report_whose_writing_is_killed_is_there_whole_or_not_at_all(
    sampled: tuple[Command, Path], tmp_path: Path
) -> None:
    command, before = sampled
    out = tmp_path / "run"
    run = command.start(out)
    wait_for((out / "report.json").exists, run)
    run.kill()
    assert torn(out, files(before)) == []
    assert command.start(out).wait() == 0
    assert differences(out, before) == []


def test_what_a_kill_left_unfinished_is_swept(
    sampled: tuple[Command, Path], tmp_path: Path
) -> None:
    command, before = sampled
    out = tmp_path / "run"
    out.mkdir()
    with python(BIG, out / "responses.jsonl") as writer:
        while not any(path.stat().st_size for path in out.iterdir()):
            time.sleep(0.001)
        writer.kill()
    with python(HALF_A_MODEL, out / "dpo") as saver:
        assert saver.stdout is not None
        assert saver.stdout.readline() == "begun\n"
        saver.kill()
    assert len(list(out.iterdir())) == 2
    assert all(path.name.startswith((".responses", ".dpo")) for path in out.iterdir())
    assert command.start(out).wait() == 0
    assert differences(out, before) == []


@contextmanager
def python(code: str, *arguments: Path) -> Iterator[subprocess.Popen[str]]:
    """Code at work in a process of its own, in our environment."""
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        yield process


# Two at once.


def test_of_two_runs_at_once_one_is_refused_and_a_kill_frees_the_directory(tmp_path: Path) -> None:
    out = tmp_path / "run"
    slow = Command(("sample", *SMALL, "policy.model=fake/policy?delay=60"))
    both = [slow.start(out), slow.start(out)]
    while not any(run.over for run in both):
        time.sleep(0.01)
    refused, working = sorted(both, key=lambda run: not run.over)
    assert said(refused).startswith(f"{out}: another run is working in this directory (wait for it")
    wait_for(lambda: "sample" in working.stages, working)
    assert working.kill()
    assert said(Command(("judge",)).start(out)).startswith(f"{out}/responses.jsonl: is not there")


# No room.

Lack = Literal["full disk", "limited files"]


class Disk:
    """A folder in which nothing more can be written, at a moment that the test chooses."""

    def __init__(self, folder: Path, lack: Lack) -> None:
        self.folder = folder
        self._lack = lack
        folder.mkdir()
        if lack == "full disk" and not self._mount("-t", "tmpfs", "-o", "size=1g", "none"):
            pytest.skip("no disk can be mounted here")

    def _mount(self, *options: str) -> bool:
        command = ["mount", *options, str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self, run: Started) -> None:
        if self._lack == "limited files":
            resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
            return
        while True:  # until nothing is written between the two steps
            found = os.statvfs(self.folder)
            used = (found.f_blocks - found.f_bfree) * found.f_frsize
            if self._mount("-o", f"remount,size={used}"):
                return

    def free(self) -> None:
        if self._lack == "full disk":
            assert self._mount("-o", "remount,size=1g")

    def close(self) -> None:
        if self._lack == "full disk":
            subprocess.run(["umount", str(self.folder)], check=True)


@pytest.fixture(params=["full disk", "limited files"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    found = Disk(tmp_path / "disk", request.param)
    yield found
    found.close()


def test_a_disk_that_fills_up_while_the_judge_is_asked(whole: Whole, disk: Disk) -> None:
    out = disk.folder / f"no-room-{random.getrandbits(32)}"
    asked = served(whole.server, CONCURRENCY)
    assert Command(("sample", *SMALL, *asked)).start(out).wait() == 0
    judging = Command(("judge",))
    run = judging.start(out, f"{out.name}-1")
    wait_for(lambda: len(whole.server.calls_of(out)) > 20, run)
    disk.fill(run)
    line = said(run)
    assert "free some" in line or "raise the limit" in line
    kept = stored(out)
    disk.free()
    again = judging.start(out, f"{out.name}-2")
    assert again.wait() == 0, again.lines
    for name in ("responses.jsonl", "judgments.jsonl", "comparisons.jsonl"):
        assert (out / name).read_bytes() == (whole.reference.out / name).read_bytes()
    rows = stored(out)
    assert kept.items() <= rows.items()
    later = [c for c in whole.server.calls_of(out) if c.run == again.run]
    # One more: the check for log-probabilities.
    assert len(later) == len(rows) - len(kept) + 1


def test_no_room_for_a_model_is_one_line_and_the_same_command_goes_on(
    whole: Whole, copied: Path
) -> None:
    shutil.rmtree(copied / "reward_model")
    training = Command(("train-rm",))
    run = training.start(copied)
    wait_for(lambda: "train-rm" in run.stages, run)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    assert "raise the limit" in said(run)
    again = training.start(copied)
    assert again.wait() == 0, again.lines
    name = "reward_model/model.safetensors"
    assert (copied / name).read_bytes() == (whole.reference.out / name).read_bytes()


def test_no_room_for_a_tokenizer_is_one_line_too(tmp_path: Path) -> None:
    with python(TOKENIZER, tmp_path / "model") as process:
        told, _ = process.communicate()
    assert told.startswith(f"{tmp_path}/model: a file that it needs is larger than")
    assert list(tmp_path.iterdir()) == []


# Parts of the report that a stage left which then did not come to its end.


def test_a_judge_that_is_killed_leaves_no_labels_under_another_judges_name(copied: Path) -> None:
    labels = copied / "comparisons.jsonl"
    before = labels.read_bytes()
    run = Command(("judge", "judge.model=fake/longer", "--reconfigure")).start(copied)
    wait_for(lambda: labels.read_bytes() != before, run)
    run.kill()
    pairs = Command(("pairs",)).start(copied)
    if pairs.wait() == 0:  # the kill came too late
        assert "fake/longer" in (copied / "preferences" / "README.md").read_text()
    else:
        assert "run `rlaif judge` first" in said(pairs)


def test_nothing_is_trained_on_groups_of_a_stage_that_did_not_end(
    copied: Path, run_cli: Cli
) -> None:
    card = copied / "preferences" / "README.md"
    card.unlink()
    card.mkdir()
    changed = ("pairs", "pairs.test_fraction=0.2", "--reconfigure", "--out", str(copied))
    assert run_cli(*changed).stopped().startswith(f"{card}: cannot be used")
    line = run_cli("train-rm", "--out", str(copied)).stopped()
    assert line.endswith("the groups are not of the present comparisons (run `rlaif pairs` first)")


@pytest.mark.usefixtures("one_thread")
def test_no_policies_are_compared_with_a_training_that_did_not_end(
    copied: Path, run_cli: Cli
) -> None:
    scores = copied / "scores" / "reward_model.json"
    scores.unlink()
    scores.mkdir()
    changed = ("train-rm", "reward_model.epochs=2", "--reconfigure", "--out", str(copied))
    assert run_cli(*changed).stopped().startswith(f"{scores}: cannot be used")
    line = run_cli("compare", "--out", str(copied)).stopped()
    assert line.startswith(f"{copied}/reward_model: the reward model is not trained on the present")

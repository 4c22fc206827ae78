"""A training in processes of its own, started by `accelerate launch`.

What is to be trained goes to a folder as JSON; `rlaif.train.worker` trains it, and tells on its
standard output how far it is, a line at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rlaif.errors import SetupError, TrainingDiverged
from rlaif.files import disk_errors, find, write_text
from rlaif.models import _supervise
from rlaif.train.fitting import OnLog, OnStep, TrainResult
from rlaif.train.loading import devices
from rlaif.train.settings import DPOSettings, RewardSettings, TrainSettings
from rlaif.train.sft import SFTExample
from rlaif.types import PreferenceGroup, Prompt, Record

JOB = "job.json"
LOG = "output.log"
MARK = "rlaif-training "
"""Begins a line of a worker that is meant for us; others are somebody's note."""
GRACE_S = 10.0
"""How long processes have to end when they are told to."""
S = TypeVar("S", bound=TrainSettings)


class Example(Record):
    """An `SFTExample`, as JSON."""

    prompt: Prompt
    text: str
    ended: bool


class Job(Record):
    """A training, as its processes read it."""

    base: str
    reward_model: RewardSettings | None = None
    dpo: DPOSettings | None = None
    sft: TrainSettings | None = None
    groups: tuple[PreferenceGroup, ...] = ()
    examples: tuple[Example, ...] = ()
    references: tuple[tuple[float | None, ...], ...] | None = None
    seed: int
    out: str


def launched(
    base: str,
    settings: TrainSettings,
    seed: int,
    out: Path,
    on_step: OnStep,
    on_log: OnLog,
    *,
    groups: Sequence[PreferenceGroup] = (),
    examples: Sequence[SFTExample] = (),
    references: Sequence[Sequence[float | None]] | None = None,
) -> TrainResult:
    """Trains in the processes of `settings.launch`, one for each device where that does not say.

    Raises SetupError for a config that starts nothing, and as the training itself does.
    """
    assert settings.launch is not None
    config = find("launch", settings.launch, ".yaml")
    # What is launched launches nothing.
    alone = settings.model_copy(update={"launch": None})
    job = Job(
        base=base,
        reward_model=_only(RewardSettings, alone),
        dpo=_only(DPOSettings, alone),
        sft=_only(TrainSettings, alone) if examples else None,
        groups=tuple(groups),
        examples=tuple(Example(prompt=p, text=t, ended=e) for p, t, e in examples),
        references=None if references is None else tuple(map(tuple, references)),
        seed=seed,
        out=str(out.absolute()),
    )
    folder = out.absolute().parent / f".{out.name}.launch"
    with disk_errors(folder):
        write_text(folder / JOB, job.model_dump_json())
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    if "num_processes" not in _config(config):
        command += ["--num_processes", str(devices())]
    command += ["-m", "rlaif.train.worker", str(folder)]
    result = _run(command, config, folder, on_step, on_log)
    shutil.rmtree(folder)
    return TrainResult(**result)


def _only(kind: type[S], settings: TrainSettings) -> S | None:
    """The settings without what a stage adds to them; None where they are of another kind."""
    if not isinstance(settings, kind):
        return None
    return kind.model_validate(settings.model_dump(include=set(kind.model_fields)))


def read_job(folder: Path) -> Job:
    """What `launched` wrote. Raises SetupError for anything else."""
    try:
        return Job.model_validate_json((folder / JOB).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as e:
        raise SetupError(
            "holds no training", file=folder, fix="leave it to the recipe's `launch`"
        ) from e


def tell(**message: Any) -> None:
    """A worker's line for the process that launched it."""
    # In one piece: the other processes write to the same pipe.
    sys.stdout.write(f"{MARK}{json.dumps(message)}\n")
    sys.stdout.flush()


def _config(file: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as e:
        raise SetupError(str(e).splitlines()[0], file=file) from e
    if not isinstance(found, dict):
        raise SetupError(
            "is no config of accelerate", file=file, fix="write one with `accelerate config`"
        )
    if found.get("num_machines", 1) != 1:
        raise SetupError(
            "training runs on one machine", file=file, field="num_machines", fix="set it to 1"
        )
    return found


def _run(
    command: Sequence[str], config: Path, folder: Path, on_step: OnStep, on_log: OnLog
) -> dict[str, Any]:
    result: dict[str, Any] | None = None
    errors: list[dict[str, Any]] = []
    log = folder / LOG
    with log.open("w", encoding="utf-8") as notes, _processes(command, notes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(MARK):
                notes.write(line)
                continue
            message: dict[str, Any] = json.loads(line.removeprefix(MARK))
            match message["kind"]:
                case "step":
                    on_step(message["step"], message["total"], message["figures"])
                case "log":
                    on_log(message["text"])
                case "result":
                    result = message["result"]
                case _:
                    errors.append(message)
        code = process.wait()
    if errors:
        raise _error(errors[0])
    if code or result is None:
        raise SetupError(
            f"the processes that it launches ended with code {code} and no model",
            file=config,
            fix=f"their output is in {log}",
        )
    return result


def _error(told: Mapping[str, Any]) -> Exception:
    if told["kind"] == "diverged":
        return TrainingDiverged(told["text"])
    return SetupError(told["text"], fix=told["fix"], file=told["file"], field=told["field"])


@contextlib.contextmanager
def _processes(command: Sequence[str], notes: Any) -> Iterator[subprocess.Popen[str]]:
    """Ends the processes, and all that they started, with the block, or with this process."""
    supervised = (sys.executable, "-I", _supervise.__file__, str(os.getpid()), str(GRACE_S))
    process = subprocess.Popen(
        [*supervised, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=notes,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        # Where something still runs, the supervisor takes this as the order to end it.
        process.stdin.close()
        process.wait()
        process.stdout.close()

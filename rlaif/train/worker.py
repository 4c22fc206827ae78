"""`python -m rlaif.train.worker FOLDER`: one of the processes that `accelerate launch` starts."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import PartialState

from rlaif.errors import SetupError, TrainingDiverged
from rlaif.train.fitting import TrainResult
from rlaif.train.launching import Job, read_job, tell
from rlaif.train.ranks import rank, sharded
from rlaif.train.sft import SFTExample
from rlaif.train.training import train_dpo, train_reward_model, train_sft


def train(job: Job) -> TrainResult:
    """The training, as a stage would run it alone."""

    def on_step(step: int, total: int, figures: Mapping[str, float]) -> None:
        if rank() == 0:
            tell(kind="step", step=step, total=total, figures=dict(figures))

    def on_log(text: str) -> None:
        if rank() == 0:
            tell(kind="log", text=text)

    out = Path(job.out)
    if job.reward_model is not None:
        return train_reward_model(
            job.base, job.groups, job.reward_model, job.seed, out, on_step, on_log
        )
    if job.dpo is not None:
        return train_dpo(
            job.base, job.groups, job.dpo, job.seed, out, on_step, on_log, job.references
        )
    assert job.sft is not None
    examples = [SFTExample(e.prompt, e.text, e.ended) for e in job.examples]
    return train_sft(job.base, examples, job.sft, job.seed, out, on_step, on_log)


def _check_launch() -> None:
    """Raises SetupError for a config of accelerate that is not served here."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise SetupError("DeepSpeed is not served", field="launch", fix="take fsdp")
    if sharded():
        if os.environ["FSDP_VERSION"] != "2":
            raise SetupError(
                "FSDP of version 1 is not served", field="launch", fix="set fsdp_version: 2"
            )
        # Each process loads the weights and checks the model by them before they are divided.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"


def main() -> None:
    try:
        _check_launch()
        job = read_job(Path(sys.argv[1]))
        # It chooses this process's device, too.
        PartialState(cpu=not torch.accelerator.is_available())
        result = train(job)
    except TrainingDiverged as e:
        tell(kind="diverged", text=str(e))
        sys.exit(e.exit_code)
    except SetupError as e:
        file = None if e.file is None else str(e.file)
        tell(kind="setup", text=e.problem, fix=e.fix, file=file, field=e.field)
        sys.exit(e.exit_code)
    if rank() == 0:
        tell(kind="result", result=dataclasses.asdict(result))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

"""Runs the trainer over encoded groups, from a checkpoint where a killed training left one."""

from __future__ import annotations

import glob
import importlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME

from rlaif.files import disk_errors
from rlaif.train.checkpoints import (
    check_finite,
    checkpointed,
    load_trained,
    stamp_of,
    steps_of,
)
from rlaif.train.groups import EncodedGroups
from rlaif.train.loading import pad_id, quiet
from rlaif.train.loss import Objective
from rlaif.train.ranks import rank, sharded, unshard
from rlaif.train.scorers import Scorer
from rlaif.train.settings import TrainSettings
from rlaif.train.trainer import GroupTrainer

OnStep = Callable[[int, int, Mapping[str, float]], None]
OnLog = Callable[[str], None]
UNTOLD = {"checkpoint_minutes", "trackers", "tokens_at_once"}
"""Settings that leave a training what it is."""


@dataclass(frozen=True)
class TrainResult:
    """What a training run did. `losses` and `accuracies` have one entry an optimiser step."""

    steps: int
    losses: list[float]
    """Nats a comparison; of SFT, nats a token."""
    accuracies: list[float]
    """Share of comparisons in the batch that the scores order as labelled, before the step; empty
    for SFT, which compares nothing."""
    seconds: float
    """From loading the base to the last step; of a resumed training, since it went on."""
    groups: int
    """Groups trained on: those that kept two responses and a comparison between them; of SFT,
    examples."""
    dropped_responses: int
    """Responses longer than `max_length`, or without a token."""
    response_tokens: int
    """Tokens of all responses trained on, each counted once whatever the epochs."""


def fit(
    scorer: Scorer,
    objective: Objective,
    encoded: EncodedGroups,
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainSettings,
    seed: int,
    packed: bool,
    out: Path,
    on_step: OnStep,
    on_log: OnLog,
    began: float,
    member: int | None = None,
) -> TrainResult:
    """Trains the scorer's model in place.

    Checkpoints stand in a hidden folder beside `out` until `forget` removes it. One that the same
    training left there is gone on from: the weights at the end are those of a training that nobody
    killed. A `member` of an ensemble has a folder of its own, and is kept there when it is trained.
    Raises TrainingDiverged for a loss or a weight that is not finite, and keeps the checkpoint
    then.
    """
    if settings.gradient_checkpointing:
        scorer.model.gradient_checkpointing_enable({"use_reentrant": False})
    kept = kept_folder(out, member)
    tracked = out.name if member is None else f"{out.name}-{member}"
    told = settings.model_dump_json(exclude=UNTOLD), type(scorer).__name__, f"{seed} {sharded()}"
    stamp = stamp_of([*told, *map(repr, encoded.groups)], [scorer])
    with checkpointed(kept, stamp) as resumed, quiet():
        trainer = GroupTrainer(
            scorer,
            objective,
            encoded.groups,
            _arguments(settings, seed, kept, tracked),
            pad_id(tokenizer),
            packed=packed,
            tokens_at_once=settings.tokens_at_once,
            checkpoint_minutes=settings.checkpoint_minutes,
            keep_last=member is not None,
            on_step=on_step,
        )
        if "tensorboard" in settings.trackers and rank() == 0:
            trainer.add_callback(_tensorboard(out.parent, tracked))
        state = resumed and TrainerState.load_from_json(str(resumed / TRAINER_STATE_NAME))
        if resumed and state and state.global_step == state.max_steps:
            on_log("it was trained before")
            load_trained(scorer, resumed)
            trainer.state = state
        else:
            if resumed:
                on_log(f"going on from step {steps_of(resumed)}, where a checkpoint was kept")
            with disk_errors(kept):
                trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
            if "wandb" in settings.trackers:
                # Else the next training of this process would be told to the same run.
                importlib.import_module("wandb").finish()
        check_finite(scorer)
    unshard(scorer)
    return TrainResult(
        steps=trainer.state.global_step,
        losses=[figures["loss"] for figures in trainer.steps],
        accuracies=[figures["accuracy"] for figures in trainer.steps if "accuracy" in figures],
        seconds=time.monotonic() - began,
        groups=len(encoded.groups),
        dropped_responses=encoded.dropped_responses,
        response_tokens=sum(len(ids) for group in encoded.groups for ids in group.response_ids),
    )


def kept_folder(out: Path, member: int | None = None) -> Path:
    """Where checkpoints of the training of `out`, or of a member of it, stand."""
    return out.parent / f".{out.name}.training{member or ''}"


def forget(out: Path) -> None:
    """Removes all checkpoints of the training of `out`."""
    for folder in out.parent.glob(f"{glob.escape(kept_folder(out).name)}*"):
        shutil.rmtree(folder)


def _arguments(settings: TrainSettings, seed: int, kept: Path, tracked: str) -> TrainingArguments:
    accelerated = torch.accelerator.is_available()
    elsewhere: list[str] = [name for name in settings.trackers if name != "tensorboard"]
    return TrainingArguments(
        output_dir=str(kept),
        run_name=tracked,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_groups,
        # Below 1 the Trainer reads a share of the steps.
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.dtype == "bfloat16",
        use_cpu=not accelerated,
        dataloader_pin_memory=accelerated,
        seed=seed,
        save_strategy="no",
        save_total_limit=1,
        logging_strategy="no",
        report_to=elsewhere or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def _tensorboard(run: Path, name: str) -> TensorBoardCallback:
    # Only there where it is installed.
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoardCallback(SummaryWriter(run / "tensorboard" / name))  # type: ignore

"""What a killed training goes on from: a hidden folder beside its output, for it alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from transformers import Trainer

from rlaif.errors import SetupError, TrainingDiverged
from rlaif.files import disk_errors
from rlaif.train.ranks import fill, own, rank, summed, wait

WEIGHTS = "model.safetensors"


@contextlib.contextmanager
def checkpointed(folder: Path, stamp: str) -> Iterator[Path | None]:
    """Gives the last checkpoint in `folder` of the training with this stamp, None where there is
    none; what another training left there is removed.

    A TrainingDiverged in the block then names the last good checkpoint; without any nothing is
    left of the folder.
    """
    with disk_errors(folder):
        if rank() == 0:
            _ready(folder, stamp)
        wait()
        last = last_checkpoint(folder)
    try:
        yield last
    except (SetupError, TrainingDiverged) as e:
        good = last_checkpoint(folder)
        if good is None:
            shutil.rmtree(folder, ignore_errors=True)
        elif isinstance(e, TrainingDiverged):
            raise TrainingDiverged(f"{e}; the last good checkpoint is {good}") from e
        raise


def _ready(folder: Path, stamp: str) -> None:
    told = folder / "training.json"
    if told.is_file() and json.loads(told.read_text(encoding="utf-8")) == stamp:
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    told.write_text(json.dumps(stamp), encoding="utf-8")


def stamp_of(told: Iterable[str], models: Iterable[nn.Module]) -> str:
    """Equal for trainings that end in the same weights: by what is told of them, and the weights
    that they begin with."""
    found = hashlib.sha256(torch.__version__.encode())
    for text in told:
        found.update(text.encode())
    for model in models:
        for name, weight in model.named_parameters():
            # A thousand numbers of each tell two models apart; all would be read for minutes.
            some = weight.detach().flatten()[:1000].float().cpu().numpy().tobytes()
            found.update(f"{name} {tuple(weight.shape)}".encode() + some)
    return found.hexdigest()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint there that was written to its end."""
    # The Trainer writes trainer_state.json last.
    for found in sorted(folder.glob("checkpoint-*"), key=lambda p: -steps_of(p)):
        with contextlib.suppress(OSError, ValueError):
            json.loads((found / "trainer_state.json").read_text(encoding="utf-8"))
            return found
    return None


def steps_of(checkpoint: Path) -> int:
    """After how many steps it was kept."""
    return int(checkpoint.name.split("-")[1])


class Clock:
    """Says when the next checkpoint is due: to all processes at once."""

    def __init__(self, minutes: float) -> None:
        self._every_s = 60 * minutes
        self._kept_at = time.monotonic()

    def due(self) -> bool:
        due = rank() == 0 and time.monotonic() - self._kept_at >= self._every_s
        if summed({"due": due})["due"]:
            self._kept_at = time.monotonic()
            return True
        return False


class KeepsTrained(Trainer):
    """A trainer whose checkpoints hold the weights that are trained, and no others."""

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None
    ) -> None:
        # The Trainer's own would refuse weights that are tied.
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        model: nn.Module = self.model  # type: ignore[assignment]
        check_finite(model)
        # Given where the weights are divided among processes.
        given = state_dict or dict(model.named_parameters())
        trained = {n: given[n].detach() for n, p in model.named_parameters() if p.requires_grad}
        safetensors.torch.save_file(trained, folder / WEIGHTS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        own_model: nn.Module = self.model  # type: ignore[assignment]
        load_trained(own_model, Path(resume_from_checkpoint))


def load_trained(model: nn.Module, checkpoint: Path) -> None:
    """Gives a model the weights that a checkpoint holds."""
    saved = safetensors.torch.load_file(checkpoint / WEIGHTS)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                fill(weight, saved[name])


def check_finite(model: nn.Module) -> None:
    """Raises TrainingDiverged if a weight is not finite: the last step's loss cannot show it."""
    for name, weight in model.named_parameters():
        if not bool(own(weight).isfinite().all()):
            raise TrainingDiverged(
                f"the last step made {name} infinite or NaN; nothing was saved "
                "(lower the learning rate, or train in float32)"
            )

"""The one trainer: it asks a scorer for scores, applies the loss, and knows no model kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from rlaif.errors import SetupError, TrainingDiverged
from rlaif.train.collate import collate
from rlaif.train.groups import EncodedGroup
from rlaif.train.loss import bradley_terry, ordering_accuracy
from rlaif.train.scorers import Scorer

StepReport = Callable[[int, int, Mapping[str, float]], None]


class GroupTrainer(Trainer):
    """`transformers.Trainer` over preference groups.

    `losses` and `accuracies` hold one value an optimiser step: the mean over its batches.
    """

    # The loss is a mean over one batch, so accumulated batches are averaged by the Trainer.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        scorer: Scorer,
        groups: Sequence[EncodedGroup],
        arguments: TrainingArguments,
        pad_token_id: int,
        *,
        packed: bool,
        on_step: StepReport,
    ) -> None:
        if arguments.n_gpu > 1:
            raise SetupError(
                f"{arguments.n_gpu} GPUs are visible to one process",
                fix="set CUDA_VISIBLE_DEVICES to one of them",
            )
        super().__init__(
            model=scorer,
            args=arguments,
            data_collator=lambda rows: dict(collate(rows, pad_token_id, packed=packed)),
            train_dataset=groups,
            callbacks=[_Reporter(self, on_step)],
        )
        self.remove_callback(PrinterCallback)
        self._lengths = [group.packed_length for group in groups]
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.batches: list[tuple[float, float]] = []
        """Loss and accuracy of the batches since the last optimiser step."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        scores_N = model(inputs)
        labels = (inputs["first_C"], inputs["second_C"], inputs["p_first_C"])
        loss = bradley_terry(scores_N, *labels, inputs["weight_C"])
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}; nothing was "
                "saved (lower the learning rate, or train in float32)"
            )
        accuracy = ordering_accuracy(scores_N.detach(), *labels)
        self.batches.append((loss.item(), accuracy.item()))
        return (loss, {"scores": scores_N}) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the Trainer would look for `input_ids` and count a prompt K times."""
        return 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return LengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            lengths=self._lengths,
            generator=torch.Generator().manual_seed(self.args.seed),
        )


class _Reporter(TrainerCallback):
    """Closes the books of each optimiser step."""

    def __init__(self, trainer: GroupTrainer, on_step: StepReport) -> None:
        self._trainer = trainer
        self._on_step = on_step
        self._learning_rate = 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._learning_rate = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        batches = self._trainer.batches
        loss, accuracy = (sum(values) / len(batches) for values in zip(*batches, strict=True))
        batches.clear()
        self._trainer.losses.append(loss)
        self._trainer.accuracies.append(accuracy)
        self._on_step(
            state.global_step,
            state.max_steps,
            {"loss": loss, "accuracy": accuracy, "learning_rate": self._learning_rate},
        )


def check_finite(model: nn.Module) -> None:
    """Raises TrainingDiverged if a weight is not finite: the last step's loss cannot show it."""
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise TrainingDiverged(
                f"the last step made {name} infinite or NaN; nothing was saved "
                "(lower the learning rate, or train in float32)"
            )

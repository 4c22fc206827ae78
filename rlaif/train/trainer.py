"""The one trainer: it asks a scorer for scores, applies the loss, and knows neither kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from rlaif.train.loss import Objective
from rlaif.train.scorers import Scorer

StepReport = Callable[[int, int, Mapping[str, float]], None]


class GroupTrainer(Trainer):
    """`transformers.Trainer` over groups of responses.

    `steps` holds the objective's figures of each optimiser step: the mean of its batches, by the
    weight that the objective gives them.
    """

    # `compute_loss` weighs accumulated batches itself.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        scorer: Scorer,
        objective: Objective,
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
        self._objective = objective
        self.steps: list[dict[str, float]] = []
        self.step: defaultdict[str, float] = defaultdict(float)
        """Figures of the present optimiser step, as far as its batches are done."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The batches of one optimiser step, and their weight together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(map(self._objective.weight, batches))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The batch's part in the loss of its step, whose weight is `num_items_in_batch`."""
        scores_N = model(inputs)
        figures = self._objective.figures(scores_N, inputs)
        loss = figures["loss"]
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}; nothing was "
                "saved (lower the learning rate, or train in float32)"
            )
        share = self._objective.weight(inputs) / num_items_in_batch
        for name, value in figures.items():
            self.step[name] += share * value.item()
        loss = share * loss
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
        figures = dict(self._trainer.step)
        self._trainer.step.clear()
        self._trainer.steps.append(figures)
        self._on_step(
            state.global_step, state.max_steps, {**figures, "learning_rate": self._learning_rate}
        )


def check_finite(model: nn.Module) -> None:
    """Raises TrainingDiverged if a weight is not finite: the last step's loss cannot show it."""
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise TrainingDiverged(
                f"the last step made {name} infinite or NaN; nothing was saved "
                "(lower the learning rate, or train in float32)"
            )

"""The one trainer: it asks a scorer for scores, applies the loss, and knows neither kind."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from rlaif.errors import SetupError, TrainingDiverged
from rlaif.train.checkpoints import Clock, KeepsTrained
from rlaif.train.collate import Batch, SplitGroup, Step, collate_step
from rlaif.train.groups import EncodedGroup
from rlaif.train.loss import Objective
from rlaif.train.ranks import rank, sharded, summed, world
from rlaif.train.scorers import Scorer

ToLoss = Callable[[torch.Tensor], torch.Tensor]
"""Scores (N,) of a batch -> a scalar to differentiate."""
StepReport = Callable[[int, int, Mapping[str, float]], None]


class GroupTrainer(KeepsTrained):
    """`transformers.Trainer` over groups of responses.

    A batch of the loader is all groups of an optimiser step. They are computed in parts of at most
    `tokens_at_once` tokens; loss and gradient are those of the whole step. `steps` holds the
    objective's figures of each: its sums by the step's weight. `keep_last`: also after the last
    step there is a checkpoint.
    """

    # `training_step` weighs the parts itself.
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
        tokens_at_once: int,
        checkpoint_minutes: float,
        keep_last: bool,
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
            data_collator=lambda rows: dict(
                collate_step(
                    rows, pad_token_id, tokens_at_once, packed=packed, rank=rank(), world=world()
                )
            ),
            train_dataset=groups,
            callbacks=[_Reporter(self, Clock(checkpoint_minutes), keep_last, on_step)],
        )
        self.remove_callback(PrinterCallback)
        self._lengths = [group.packed_length for group in groups]
        self._objective = objective
        self.step: defaultdict[str, float] = defaultdict(float)
        """Figures of the present optimiser step, as far as its parts are done."""

    @property
    def steps(self) -> list[dict[str, float]]:
        """Figures of each step, those before a resumption included."""
        return [entry for entry in self.state.log_history if "loss" in entry]

    def create_accelerator_and_postprocess(self) -> None:
        if sharded() and PartialState().distributed_type is DistributedType.MULTI_CPU:
            # accelerate leaves FSDP out on CPUs, where it works as well.
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()

    def get_train_dataloader(self) -> DataLoader[EncodedGroup]:
        """Every process gets whole steps, and the collator takes its share; accelerate would deal
        out steps."""
        groups: Any = self.train_dataset
        return DataLoader(
            groups,
            batch_size=self._train_batch_size,
            sampler=self._get_train_sampler(),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return _ByLength(self, self._lengths)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Adds up the gradient of a step's parts. Returns the step's loss."""
        model.train()
        step: Step = self._prepare_inputs(inputs)  # type: ignore[assignment]
        whole = [*step["parts"], *(group["whole"] for group in step["split"])]
        weight = summed({"weight": sum(map(self._objective.weight, whole))})["weight"]
        names = iter(step["names"])
        passes: list[tuple[Batch, ToLoss]] = [
            (batch, partial(self._book, batch, weight, next(names))) for batch in step["parts"]
        ]
        for group in step["split"]:
            passes += self._two_passes(model, group, weight, next(names))
        for batch in step["idle_scorings"]:
            self._scored(model, batch)
        passes += [(batch, lambda scores_N: 0 * scores_N.sum()) for batch in step["idle"]]
        for number, (batch, to_loss) in enumerate(passes, start=1):
            # Gradients of plain copies are added up once, behind the last pass.
            alone = number < len(passes) and not sharded()
            with self.accelerator.no_sync(model) if alone else contextlib.nullcontext():
                with self.compute_loss_context_manager():
                    loss = to_loss(model(batch))
                # The processes' gradients are averaged, and the step's is their sum.
                self.accelerator.backward(loss * world())
        figures = summed(self.step)
        self.step.clear()
        self.step.update(figures)
        return torch.tensor(figures["loss"], device=self.args.device)

    def _two_passes(
        self, model: nn.Module, group: SplitGroup, weight: float, names: list[str]
    ) -> list[tuple[Batch, ToLoss]]:
        """The loss of a group in memory for one of its parts: all scores without a gradient, the
        loss's gradient by each of them, and the scores again, part by part, to send it through."""
        scores_K = torch.cat([self._scored(model, part) for part in group["parts"]])
        scores_K.requires_grad_()
        with torch.enable_grad(), self.compute_loss_context_manager():
            loss = self._book(group["whole"], weight, names, scores_K)
            (by_score_K,) = torch.autograd.grad(loss, scores_K)
        sizes = [len(part["reference_N"]) for part in group["parts"]]
        return [
            (part, partial(_sent, by_score_N))
            for part, by_score_N in zip(group["parts"], torch.split(by_score_K, sizes), strict=True)
        ]

    def _scored(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        with torch.no_grad(), self.compute_loss_context_manager():
            scores_N: torch.Tensor = model(batch)
        return scores_N

    def _book(
        self, batch: Batch, weight: float, names: list[str], scores_N: torch.Tensor
    ) -> torch.Tensor:
        """The batch's share of its step's loss."""
        figures = self._objective.figures(scores_N, batch)
        loss = figures["loss"] / weight
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}, on "
                f"{_listed(names)}; nothing was saved (lower the learning rate, or train in "
                "float32)"
            )
        for name, value in figures.items():
            self.step[name] += value.item() / weight
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the Trainer would look for `input_ids` and count a prompt K times."""
        return 0


def _sent(by_score_N: torch.Tensor, scores_N: torch.Tensor) -> torch.Tensor:
    return (scores_N * by_score_N).sum()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"prompts {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class _ByLength(Sampler[int]):
    """A random order in which groups of a step are of like lengths: another one for each epoch, and
    the same again for a training that goes on."""

    def __init__(self, trainer: GroupTrainer, lengths: Sequence[int]) -> None:
        self._trainer = trainer
        self._lengths = list(lengths)

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        arguments = self._trainer.args
        size = arguments.train_batch_size
        # By the steps done, because what skips to a checkpoint's step begins its epoch anew.
        epoch = self._trainer.state.global_step // -(-len(self._lengths) // size)
        generator = torch.Generator().manual_seed(arguments.seed + 1_000_003 * epoch)
        return iter(
            get_length_grouped_indices(  # type: ignore[no-untyped-call]
                self._lengths, size, generator=generator
            )
        )


class _Reporter(TrainerCallback):
    """Closes the books of each optimiser step, and says when to keep a checkpoint."""

    def __init__(
        self, trainer: GroupTrainer, clock: Clock, keep_last: bool, on_step: StepReport
    ) -> None:
        self._trainer = trainer
        self._clock = clock
        self._keep_last = keep_last
        self._on_step = on_step
        self._learning_rate = 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._learning_rate = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        figures = {**self._trainer.step, "learning_rate": self._learning_rate}
        self._trainer.step.clear()
        self._trainer.log(dict(figures))
        self._on_step(state.global_step, state.max_steps, figures)
        due = self._clock.due()
        control.should_save = due if state.global_step < state.max_steps else self._keep_last

"""KL-penalised on-policy RL against a reward model, through TRL's trainers.

TRL samples, computes advantages and steps. All that is said of a step is measured here, by the
reward function that TRL calls once for each step's answers: so the same figures stand beside RLOO
and GRPO, whose own notions of KL differ (a log-ratio and Schulman's k3), and only what TRL
documents is relied on.
"""

from __future__ import annotations

import copy
import functools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from rlaif.errors import SetupError, TrainingDiverged
from rlaif.files import disk_errors, write_text
from rlaif.train.checkpoints import (
    Clock,
    KeepsTrained,
    check_finite,
    checkpointed,
    stamp_of,
    steps_of,
)
from rlaif.train.ensemble import adapter_folders
from rlaif.train.fitting import OnLog, OnStep, kept_folder
from rlaif.train.loading import free_memory, gives_memory_back, load_tokenizer, pad_id, quiet
from rlaif.train.lora import Adapted
from rlaif.train.rl_answers import AnswerReader, Answers, BudgetSpent, Grader, opening_ids
from rlaif.train.rl_memory import check_rl
from rlaif.train.rl_settings import Measure, RLSettings, at_once, figures
from rlaif.train.saving import check_target
from rlaif.train.scale import RewardScale
from rlaif.train.scoring import load_policy
from rlaif.train.training import save_model
from rlaif.types import Prompt

with warnings.catch_warnings():
    # Of its own use of vLLM, which there is none of here.
    warnings.filterwarnings("ignore", "TRL currently supports vLLM")
    import trl
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # type: ignore[attr-defined]

UNTOLD = {"checkpoint_minutes", "answers_at_once"}
"""Settings that leave a training what it is."""
MEASURE = "measure"
OnTrace = Callable[[Measure, Measure], None]
"""Called with the start policy's figures and those of each step."""


@dataclass(frozen=True)
class RLResult:
    """What a training did."""

    steps: int
    """Optimiser steps done."""
    budget_spent: bool
    """Whether the KL budget ended it."""
    seconds: float
    prompts: int
    dropped_prompts: int
    """Prompts that exceed the policy's context with an answer of `max_new_tokens`."""
    scale: RewardScale
    """The reward model's, on the start policy's answers."""
    start: Measure
    end: Measure
    """Of the trained policy, on the prompts of `start`."""
    trace: list[Measure]
    answers: list[tuple[Prompt, str, str]]
    """Each answer that `start` is measured on, with its prompt and the trained policy's answer."""


@gives_memory_back
def train_rl(
    base: str,
    reward_model: str,
    held_out: str | None,
    prompts: Sequence[Prompt],
    settings: RLSettings,
    seed: int,
    out: Path,
    on_step: OnStep,
    on_trace: OnTrace,
    on_log: OnLog,
) -> RLResult:
    """Trains a policy from `base`, which is also its reference, for the reward of `reward_model`,
    and writes it to `out`, a plain `AutoModelForCausalLM` directory.

    `held_out`: a second reward model, which scores every answer and teaches nothing. Rewards are
    normalised on the start policy's answers to the first of the prompts. Where the answers of a
    step show the KL budget to be spent, that step is not taken: the policy saved is the one that
    was measured. The same seed gives the same weights on the same machine. Killed and called again
    with the same arguments it goes on from its last checkpoint, to the same weights and trace;
    `on_trace` is called anew with the steps before it. Raises SetupError for
    what is no model, prompts of which none fits, and a reward model that gives all answers the same
    score; TrainingDiverged for a gradient, a weight or a reward that is not finite: then nothing is
    saved, and the last checkpoint is kept.
    """
    began = time.monotonic()
    check_target(out)
    set_seed(seed)
    tokenizer = load_tokenizer(base)
    lengths = [len(opening_ids(tokenizer, prompt)) for prompt in prompts]
    _check_memory(base, [reward_model, held_out], lengths, settings, on_log)
    model, adapted = load_policy(base), None
    kept = _fitting(model, prompts, lengths, settings)
    if len(kept) < len(prompts):
        on_log(f"{len(prompts) - len(kept)} prompts are too long for the model and are left out")
    own_generation = model.generation_config
    config = _generation(model, tokenizer, settings)
    # What the file says of sampling (top_k, penalties) would make another policy of it.
    model.generation_config = copy.deepcopy(config)
    if settings.lora is not None:
        adapted = Adapted(model, settings.lora)
        model = adapted.model
    proxy = Grader(reward_model, settings.ensemble)
    check = Grader(held_out) if held_out is not None else None
    reader = AnswerReader(kept, proxy, check, model, tokenizer, config, settings)

    folder = kept_folder(out)
    with checkpointed(folder, _stamp(reader, proxy, check, settings, seed)) as resumed, quiet():
        first = _first_answers(reader, folder / "start.json", on_log)
        start = reader.read(0, first)
        reader.on_trace = functools.partial(on_trace, start)
        # It sets the seed: what is drawn from here on does not hang on what was drawn before.
        trainer = _trainer(reader, settings, seed, folder, on_step)
        reader.reference = trainer.ref_model
        if resumed:
            on_log(f"going on from step {steps_of(resumed)}, where a checkpoint was kept")
        try:
            with disk_errors(folder):
                trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        except BudgetSpent:
            on_log(
                f"step {len(reader.trace)}: the policy is {reader.trace[-1].kl:.3g} nats a "
                f"response away from its start, over the KL budget of {settings.kl_budget:g}; "
                "stopping"
            )
        check_finite(model)
    on_log("measuring the trained policy")
    set_seed(seed)
    last = reader.draw()
    end = reader.read(len(reader.trace) + 1, last)
    model.generation_config = own_generation
    save_model(model, adapted, tokenizer, out)
    return RLResult(
        steps=trainer.state.global_step,
        budget_spent=trainer.state.global_step < len(reader.trace),
        seconds=time.monotonic() - began,
        prompts=len(kept),
        dropped_prompts=len(prompts) - len(kept),
        scale=proxy.scale,
        start=start,
        end=end,
        trace=reader.trace,
        answers=[
            (kept[n], before, after)
            for n, before, after in zip(first.prompts_N, first.texts_N, last.texts_N, strict=True)
        ],
    )


class _Guard(TrainerCallback):
    """Nothing that is not finite becomes a weight, and none of them stays one. A checkpoint holds
    the trace, and gives it back."""

    def __init__(self, reader: AnswerReader, clock: Clock, on_step: OnStep) -> None:
        self._reader = reader
        self._clock = clock
        self._on_step = on_step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for entry in state.log_history:
            if MEASURE in entry:
                self._reader.note(Measure.model_validate(entry[MEASURE]))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for name, weight in self._reader.policy.named_parameters():
            if weight.grad is not None and not bool(weight.grad.isfinite().all()):
                raise TrainingDiverged(
                    f"the gradient of {name} became infinite or NaN at step "
                    f"{state.global_step + 1}; nothing was saved (lower the learning rate, or "
                    "train in float32)"
                )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        check_finite(self._reader.policy)
        measured = self._reader.trace[-1]
        entry: dict[str, Any] = {MEASURE: measured.model_dump()}
        state.log_history.append(entry)
        self._on_step(state.global_step, state.max_steps, figures(measured))
        control.should_save = self._clock.due() and state.global_step < state.max_steps


class _Checkpoints(KeepsTrained):
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a checkpoint is no model to hand on."""


class _RLOO(_Checkpoints, RLOOTrainer):
    pass


class _GRPO(_Checkpoints, GRPOTrainer):
    pass


def _stamp(
    reader: AnswerReader, proxy: Grader, check: Grader | None, settings: RLSettings, seed: int
) -> str:
    own = settings.model_dump_json(include=set(RLSettings.model_fields) - UNTOLD)
    prompts = [prompt.model_dump_json() for prompt in reader.prompts]
    scorers = [*proxy.members, *(check.members if check is not None else ())]
    return stamp_of([f"{trl.__version__} {seed} {own}", *prompts], [reader.policy, *scorers])


def _first_answers(reader: AnswerReader, file: Path, on_log: OnLog) -> Answers:
    """The start policy's, by which rewards are normalised from here on: of a training that goes on
    those that it was begun with."""
    if file.is_file():
        first = Answers.model_validate_json(file.read_text(encoding="utf-8"))
        reader.normalise(first)
        return first
    on_log("measuring the start policy")
    first = reader.draw()
    reader.normalise(first)
    write_text(file, first.model_dump_json())
    return first


def _order(prompts: int, settings: RLSettings, seed: int) -> list[int]:
    """Numbers of the prompts of all steps, in turns of a random order each; of a turn what would
    fill no step is left out. To the Trainer it is one epoch: one that goes on in a later epoch
    would begin TRL's order anew."""
    generator = torch.Generator().manual_seed(seed)
    wanted = settings.steps * settings.batch_prompts
    turn = prompts // settings.batch_prompts * settings.batch_prompts
    order: list[int] = []
    while len(order) < wanted:
        order += torch.randperm(prompts, generator=generator)[:turn].tolist()
    return order[:wanted]


def _trainer(
    reader: AnswerReader, settings: RLSettings, seed: int, folder: Path, on_step: OnStep
) -> _RLOO | _GRPO:
    answers = settings.batch_prompts * settings.samples
    accelerated = torch.accelerator.is_available()
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": settings.max_grad_norm,
        "per_device_train_batch_size": at_once(settings),
        "gradient_accumulation_steps": answers // at_once(settings),
        "num_generations": settings.samples,
        "max_completion_length": settings.max_new_tokens,
        "temperature": settings.temperature,
        "beta": settings.beta,
        "disable_dropout": True,
        "bf16": settings.dtype == "bfloat16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": not accelerated,
        "dataloader_pin_memory": accelerated,
        "seed": seed,
        "shuffle_dataset": False,
        "save_strategy": "no",
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    parts: dict[str, Any] = {
        "model": reader.policy,
        "reward_funcs": reader,
        "train_dataset": Dataset.from_list(
            [
                {"prompt": [m.model_dump() for m in prompt.messages], "number": number}
                for number, prompt in enumerate(reader.prompts)
            ]
        ).select(_order(len(reader.prompts), settings, seed)),
        "processing_class": reader.tokenizer,
        "callbacks": [_Guard(reader, Clock(settings.checkpoint_minutes), on_step)],
    }
    trainer: _RLOO | _GRPO
    if settings.algorithm == "rloo":
        trainer = _RLOO(args=RLOOConfig(**arguments), **parts)
    else:
        # As the paper has it: later losses weigh tokens otherwise.
        grpo = GRPOConfig(**arguments, loss_type="grpo", scale_rewards="group")
        trainer = _GRPO(args=grpo, **parts)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _generation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: RLSettings
) -> GenerationConfig:
    config: Any = model.generation_config
    ends = config.eos_token_id
    known = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    if not known:
        raise SetupError(
            f"the tokenizer of {tokenizer.name_or_path} has no end token",
            fix="set eos_token in its tokenizer_config.json",
        )
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=settings.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=sorted(known),
        pad_token_id=pad_id(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
    )


def _check_memory(
    base: str,
    scorers: Sequence[str | None],
    lengths: Sequence[int],
    settings: RLSettings,
    on_log: OnLog,
) -> None:
    """Raises SetupError where RL cannot be done in the memory that is free."""
    bodies = [
        (Path(name).expanduser(), 1 + len(adapter_folders(name)))
        for name in scorers
        if name is not None
    ]
    told = check_rl(Path(base).expanduser(), bodies, settings, lengths, free_memory())
    if told is not None:
        on_log(f"memory may be short: {told}")


def _fitting(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    lengths: Sequence[int],
    settings: RLSettings,
) -> list[Prompt]:
    limit = model.config.get_text_config().max_position_embeddings - settings.max_new_tokens
    kept = [p for p, length in zip(prompts, lengths, strict=True) if length <= limit]
    if len(kept) < settings.batch_prompts:
        raise SetupError(
            f"{len(kept)} of {len(prompts)} prompts leave room for an answer of "
            f"{settings.max_new_tokens} tokens, and a step takes {settings.batch_prompts}",
            field="rl.batch_prompts" if len(kept) == len(prompts) else "rl.max_new_tokens",
            fix="lower it",
        )
    return kept

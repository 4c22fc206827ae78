"""KL-penalised on-policy RL against a reward model, through TRL's trainers.

TRL samples, computes advantages and steps. All that is said of a step is measured here, by the
reward function that TRL calls once for each step's answers: so the same figures stand beside RLOO
and GRPO, whose own notions of KL differ (a log-ratio and Schulman's k3), and only what TRL
documents is relied on.
"""

from __future__ import annotations

import copy
import functools
import tempfile
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
from rlaif.train.checkpoints import check_finite
from rlaif.train.fitting import OnLog, OnStep
from rlaif.train.loading import gives_memory_back, load_tokenizer, pad_id, quiet
from rlaif.train.lora import Adapted
from rlaif.train.rl_answers import AnswerReader, BudgetSpent, Grader, opening_ids
from rlaif.train.rl_settings import Measure, RLSettings, figures
from rlaif.train.saving import check_target
from rlaif.train.scale import RewardScale
from rlaif.train.scoring import load_policy
from rlaif.train.training import save_model
from rlaif.types import Prompt

with warnings.catch_warnings():
    # Of its own use of vLLM, which there is none of here.
    warnings.filterwarnings("ignore", "TRL currently supports vLLM")
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # type: ignore[attr-defined]

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
    was measured. The same seed gives the same weights on the same machine. Raises SetupError for
    what is no model, prompts of which none fits, and a reward model that gives all answers the same
    score; TrainingDiverged for a gradient, a weight or a reward that is not finite: then nothing is
    saved.
    """
    began = time.monotonic()
    check_target(out)
    set_seed(seed)
    tokenizer = load_tokenizer(base)
    model, adapted = load_policy(base), None
    kept = _fitting(model, tokenizer, prompts, settings)
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

    on_log("measuring the start policy")
    first = reader.draw()
    reader.normalise(first)
    start = reader.read(0, first)
    reader.on_trace = functools.partial(on_trace, start)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        trainer = _trainer(reader, settings, seed, scratch, on_step)
        reader.reference = trainer.ref_model
        try:
            trainer.train()
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
    """Nothing that is not finite becomes a weight, and none of them stays one."""

    def __init__(self, reader: AnswerReader, on_step: OnStep) -> None:
        self._reader = reader
        self._on_step = on_step

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
        self._on_step(state.global_step, state.max_steps, figures(self._reader.trace[-1]))


def _trainer(
    reader: AnswerReader, settings: RLSettings, seed: int, scratch: str, on_step: OnStep
) -> RLOOTrainer | GRPOTrainer:
    answers = settings.batch_prompts * settings.samples
    # Parts of a step are all of one size.
    at_once = max(n for n in range(1, settings.answers_at_once + 1) if answers % n == 0)
    accelerated = torch.accelerator.is_available()
    arguments: dict[str, Any] = {
        "output_dir": scratch,
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": settings.max_grad_norm,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": answers // at_once,
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
        "save_strategy": "no",
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
        ),
        "processing_class": reader.tokenizer,
        "callbacks": [_Guard(reader, on_step)],
    }
    trainer: RLOOTrainer | GRPOTrainer
    if settings.algorithm == "rloo":
        trainer = RLOOTrainer(args=RLOOConfig(**arguments), **parts)
    else:
        # As the paper has it: later losses weigh tokens otherwise.
        grpo = GRPOConfig(**arguments, loss_type="grpo", scale_rewards="group")
        trainer = GRPOTrainer(args=grpo, **parts)
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


def _fitting(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    settings: RLSettings,
) -> list[Prompt]:
    limit = model.config.get_text_config().max_position_embeddings - settings.max_new_tokens
    kept = [prompt for prompt in prompts if len(opening_ids(tokenizer, prompt)) <= limit]
    if len(kept) < settings.batch_prompts:
        raise SetupError(
            f"{len(kept)} of {len(prompts)} prompts leave room for an answer of "
            f"{settings.max_new_tokens} tokens, and a step takes {settings.batch_prompts}",
            field="rl.batch_prompts" if len(kept) == len(prompts) else "rl.max_new_tokens",
            fix="lower it",
        )
    return kept

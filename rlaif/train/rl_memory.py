"""How much memory RL takes, told before anything is loaded; as `memory`, and free of torch too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlaif.train.fits import Help, largest_that_fits, verdict
from rlaif.train.memory import FLOAT32, Needs, Work, states, step_bytes
from rlaif.train.rl_settings import RLSettings, at_once
from rlaif.train.settings import LoraSettings
from rlaif.train.shapes import Model, parameters, read_model

Scorers = Sequence[tuple[Path, int]]
"""Folders of reward models, each with how many bodies it has."""


def rl_needs(
    policy: Model, scorers: Sequence[tuple[Model, int]], settings: RLSettings, prompt: int
) -> Needs:
    """What RL takes with prompts of at most so many tokens.

    Held all the time: the policy, a reference as large as its base, the reward models, and AdamW's
    moments. At its peak is the pass for a gradient, or else, while there is no gradient, the last
    token of the answers: their keys and values, and three arrays of its logits.
    """
    every, trained = parameters(policy, settings.lora, reward=False)
    reference, _ = parameters(policy, None, reward=False)
    bodies = sum(n * parameters(model, None, reward=True)[0] for model, n in scorers)
    width = prompt + settings.max_new_tokens
    work = Work(at_once(settings) * width, width, width)
    step = step_bytes(policy, settings, work, reward=True)
    if step is not None:
        # TRL computes all logits of the answers at once, which our own scorers do not.
        tokens = at_once(settings) * (settings.max_new_tokens + 1)
        step += 3 * FLOAT32 * tokens * policy.config["vocab_size"]
        drawn = settings.batch_prompts * settings.samples * _drawn(policy, width)
        step = max(step, drawn - FLOAT32 * trained)
    return Needs(
        weights=FLOAT32 * (every + reference + bodies),
        trained=states(policy, settings.lora, trained),
        step=step,
    )


def _drawn(model: Model, width: int) -> int:
    """Bytes of an answer's keys and values, and of its next token's logits."""
    config = model.config
    heads = config["num_attention_heads"]
    size: int = config.get("head_dim") or config["hidden_size"] // heads
    of_keys = config.get("num_key_value_heads") or heads
    kept: int = 2 * config["num_hidden_layers"] * size * of_keys
    vocabulary: int = config["vocab_size"]
    return FLOAT32 * (width * kept + 3 * vocabulary)


def check_rl(
    folder: Path, scorers: Scorers, settings: RLSettings, prompts: Sequence[int], free: float
) -> str | None:
    """What to warn of where RL, with answers as long as they may be, may not fit into `free` bytes;
    None where it fits, or where nothing is known of the policy. `prompts`: tokens of each. Reward
    models of which nothing is known are taken for nothing. Raises SetupError, with the settings
    that would make it fit, where it cannot."""
    policy = read_model(folder)
    if policy is None:
        return None
    limit = policy.config.get("max_position_embeddings", math.inf) - settings.max_new_tokens
    prompt = max((tokens for tokens in prompts if tokens <= limit), default=0)
    known = [(model, n) for scorer, n in scorers if (model := read_model(scorer)) is not None]

    def figures(settings: RLSettings) -> tuple[float, float]:
        found = rl_needs(policy, known, settings, prompt)
        return found.least, found.most

    return verdict(settings, figures, _helps, free)


def _helps(settings: RLSettings, fits: Callable[[RLSettings], bool]) -> list[Help[RLSettings]]:
    def of(told: str, **changes: Any) -> Help[RLSettings]:
        return told, lambda s: s.model_copy(update=changes)

    def halves(field: str, value: int, least: int) -> list[Help[RLSettings]]:
        values = [value >> n for n in range(1, value.bit_length()) if value >> n >= least]
        options = [of(f"{field}: {n}", **{field: n}) for n in values]
        return largest_that_fits(settings, options, fits)

    helps: list[Help[RLSettings]] = []
    if settings.lora is None:
        helps.append(of("lora: {}", lora=LoraSettings()))
    if not settings.gradient_checkpointing:
        helps.append(of("gradient_checkpointing: true", gradient_checkpointing=True))
    helps += halves("answers_at_once", at_once(settings), 1)
    helps += halves("batch_prompts", settings.batch_prompts, 2)
    helps += halves("max_new_tokens", settings.max_new_tokens, 16)
    if settings.dtype == "float32":
        helps.append(of("dtype: bfloat16", dtype="bfloat16"))
    return helps

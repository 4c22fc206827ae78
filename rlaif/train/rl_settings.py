"""How to train by RL, and what is traced of it. Free of torch and TRL, as a config is."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from rlaif.errors import SetupError
from rlaif.train.scale import How
from rlaif.train.settings import LoraSettings, Precision
from rlaif.types import Probability, Record

Finite = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
REPEATED = 4
"""Tokens of a run that counts as repeated."""


class RLSettings(Record):
    """How a policy is trained against a reward model, with a penalty on the KL to its start."""

    algorithm: Literal["rloo", "grpo"] = "rloo"
    """rloo: REINFORCE with the mean reward of a prompt's other answers as baseline, the KL taken
    off the reward (Ahmadian et al. 2024, section 3.2). grpo: advantages standardised within a
    prompt's answers, the KL in the loss (Shao et al. 2024, eq. 3)."""
    beta: float = Field(default=0.05, gt=0.0)
    """Weight of the KL, in normalised reward a nat: of a response's sum with rloo, of each token
    with grpo."""
    kl_budget: float = Field(default=10.0, gt=0.0)
    """Training stops where the policy is so many nats a response away from its start."""
    steps: int = Field(default=200, gt=0)
    """Optimiser steps at most; each has answers of its own."""
    batch_prompts: int = Field(default=8, ge=2)
    """Prompts of a step."""
    samples: int = Field(default=4, ge=2)
    """Answers to each of them."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Tokens of an answer at most; a longer one is cut and rewarded as it stands."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Of sampling; policy and reference are compared at it."""
    learning_rate: float = Field(default=1e-6, gt=0.0)
    """AdamW's, the same at every step."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """The gradient's norm is clipped to this."""
    normalise_on: int = Field(default=256, ge=8)
    """Answers of the start policy on which rewards are set to mean 0 and variance 1, and on which
    the trained one is measured in the end."""
    answers_at_once: int = Field(default=8, gt=0)
    """Answers in memory for a gradient; the result does not change."""
    ensemble: How = "mean"
    """What an ensemble of reward models rewards: the mean of its members' normalised scores, the
    worst of them, or their mean less their variance (Coste et al. 2023)."""
    dtype: Precision = "float32"
    """Precision of the forward pass; weights and optimiser stay in float32."""
    gradient_checkpointing: bool = False
    """Keeps less in memory and computes the forward pass twice."""
    lora: LoraSettings | None = None
    """Train adapters on frozen weights; none: train all weights."""
    checkpoint_minutes: float = Field(default=10.0, gt=0.0)
    """How often to keep what a killed training goes on from."""


class Measure(Record):
    """What one batch of a policy's answers shows. `_se` is a standard error over prompts."""

    step: int = Field(ge=0)
    """The step that was learned from these answers; 0: answers of the start policy; of the trained
    policy, one more than the last."""
    answers: int = Field(gt=0)
    kl: Finite
    """Nats a response: mean of log pi - log pi_ref over the answers, which is unbiased and may come
    out below zero."""
    kl_se: Amount
    proxy: Finite
    """Mean reward, normalised: in standard deviations of the start policy's."""
    proxy_se: Amount
    held_out: Finite | None
    """The same of the held-out check; None without one."""
    held_out_se: Amount | None
    length: Amount
    """Tokens an answer, its end included."""
    distinct: Probability
    """Share of a prompt's token pairs, over all its answers, that are no repeats (Li et al. 2016,
    distinct-2); mean over prompts."""
    repetition: Probability
    """Share of an answer's runs of four tokens that it has had before; mean over answers."""
    truncated: Probability
    """Share of answers that the token limit cut."""


def draws(prompts: int, settings: RLSettings) -> tuple[int, int]:
    """How many of so many prompts the start policy is measured on, and by how many answers each."""
    asked = min(prompts, -(-settings.normalise_on // settings.samples))
    return asked, max(settings.samples, -(-settings.normalise_on // asked))


def at_once(settings: RLSettings) -> int:
    """Answers in memory for a gradient: parts of a step are all of one size."""
    answers = settings.batch_prompts * settings.samples
    return max(n for n in range(1, settings.answers_at_once + 1) if answers % n == 0)


def require_trl() -> None:
    """Raises SetupError that names the extra when TRL is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise SetupError("RL needs trl, which is not installed", fix="pip install 'rlaif[rl]'")


def measure(
    step: int,
    prompts_N: Sequence[Hashable],
    tokens_N: Sequence[Sequence[int]],
    truncated_N: Sequence[bool],
    kl_N: Sequence[float],
    proxy_N: Sequence[float],
    held_out_N: Sequence[float] | None,
) -> Measure:
    """Figures of N answers. `prompts_N` tells whose answer each is; `kl_N`: log pi - log pi_ref of
    each, in nats."""
    of_prompt: dict[Hashable, list[int]] = {}
    for n, prompt in enumerate(prompts_N):
        of_prompt.setdefault(prompt, []).append(n)
    groups = list(of_prompt.values())
    kl, kl_se = _clustered(kl_N, groups)
    proxy, proxy_se = _clustered(proxy_N, groups)
    held_out, held_out_se = (None, None) if held_out_N is None else _clustered(held_out_N, groups)
    return Measure(
        step=step,
        answers=len(prompts_N),
        kl=kl,
        kl_se=kl_se,
        proxy=proxy,
        proxy_se=proxy_se,
        held_out=held_out,
        held_out_se=held_out_se,
        length=_mean([len(tokens) for tokens in tokens_N]),
        distinct=_mean([distinct([tokens_N[n] for n in group]) for group in groups]),
        repetition=_mean([repetition(tokens) for tokens in tokens_N]),
        truncated=_mean([float(cut) for cut in truncated_N]),
    )


def repetition(tokens: Sequence[int]) -> float:
    """Share of an answer's runs of four tokens that stood in it before; 0 under five tokens."""
    runs = [tuple(tokens[i : i + REPEATED]) for i in range(len(tokens) - REPEATED + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def distinct(answers: Sequence[Sequence[int]]) -> float:
    """Share of the token pairs of several answers that are distinct; 1 where there is no pair."""
    pairs = [pair for tokens in answers for pair in pairwise(tokens)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def figures(measured: Measure) -> Mapping[str, float]:
    """What a progress display shows."""
    return {"kl": measured.kl, "proxy": measured.proxy}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _clustered(values_N: Sequence[float], groups: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Mean over the groups' means, and its standard error: answers to one prompt are not
    independent."""
    means = [_mean([values_N[n] for n in group]) for group in groups]
    mean = _mean(means)
    if len(means) == 1:
        return mean, 0.0
    squares = math.fsum((m - mean) ** 2 for m in means)
    return mean, math.sqrt(squares / (len(means) - 1) / len(means))

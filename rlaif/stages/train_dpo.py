"""Stage 6: a policy by DPO from the same preference groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from rlaif.evaluate.schema import DPOSection
from rlaif.files import read_jsonl
from rlaif.progress import say
from rlaif.stages._training import (
    OnStep,
    ScoreRows,
    implicit_rewards,
    reference_log_probs,
    start_weights,
    train,
)
from rlaif.train.settings import DPOSettings
from rlaif.types import PreferenceGroup
from rlaif.workspace import Workspace


class DPOConfig(DPOSettings):
    """How the policy is trained."""

    base: str | None = None
    """Model to start from, which is also the reference; none: the policy's weights."""
    learning_rate: float = Field(default=5e-6, gt=0.0)
    """Peak learning rate of AdamW; warms up linearly, then falls linearly to zero."""
    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the groups; a fraction stops inside a pass."""
    batch_groups: int = Field(default=4, gt=0)
    """Groups of one optimiser step."""


async def run(config: DPOConfig, policy: str, work: Workspace) -> None:
    """Writes dpo/: a plain AutoModelForCausalLM.

    The scores kept of it are its implicit rewards, beta (log pi - log pi_ref), whatever the loss.
    The reference scores each response of the groups once, and not again while groups and start
    stay the same.
    """
    start = start_weights(config.base, policy, "dpo")
    out = work.policy

    def fit(groups: list[PreferenceGroup], on_step: OnStep) -> object:
        # torch is imported when there is something to train, not when a config is read.
        from rlaif.train import training

        every = read_jsonl(work.groups, PreferenceGroup)
        kept = reference_log_probs(every, start, config, work)
        of_id = dict(zip((g.prompt.id for g in every), kept, strict=True))
        references = [of_id[g.prompt.id] for g in groups]
        return training.train_dpo(
            start.weights, groups, config, work.seed, out, on_step, say, references
        )

    def score(groups: list[PreferenceGroup], on_step: OnStep) -> ScoreRows:
        reference = reference_log_probs(groups, start, config, work)
        return implicit_rewards(out, groups, config, reference, on_step)

    def section(fields: Mapping[str, Any]) -> DPOSection:
        return DPOSection.model_validate({**fields, "beta": config.beta})

    async with work.stage("train-dpo"):
        train("dpo", out, config, start, work, fit, score, section)

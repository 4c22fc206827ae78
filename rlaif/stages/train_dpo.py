"""Stage 6: a policy by DPO from the same preference groups."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from rlaif.evaluate.schema import DPOSection
from rlaif.files import digest, read_jsonl, write_text
from rlaif.progress import say
from rlaif.stages._training import OnStep, ScoreRows, Steps, start_weights, train
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

    # torch is imported when there is something to train, not when a config is read.
    def log_probs(model: str, groups: list[PreferenceGroup], on_step: OnStep) -> ScoreRows:
        from rlaif.train.scoring import response_logprobs

        items = [(g.prompt, g.responses) for g in groups]
        ended = [g.ended for g in groups]
        return response_logprobs(model, items, config.max_length, on_step, ended, config.dtype)

    def reference(groups: list[PreferenceGroup]) -> ScoreRows:
        stamp = digest(
            [start.identity, config.max_length, config.dtype]
            + [[g.prompt.model_dump(mode="json"), g.responses, g.ended] for g in groups]
        )
        path = work.directory / "scores" / "reference.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["stamp"] == stamp:
                rows: ScoreRows = kept["log_probs"]
                return rows
        with Steps("reference scoring", "groups") as on_step:
            rows = log_probs(start.weights, groups, on_step)
        write_text(path, json.dumps({"stamp": stamp, "log_probs": rows}) + "\n")
        return rows

    def fit(groups: list[PreferenceGroup], on_step: OnStep) -> object:
        from rlaif.train import training

        every = read_jsonl(work.groups, PreferenceGroup)
        of_id = dict(zip((g.prompt.id for g in every), reference(every), strict=True))
        references = [of_id[g.prompt.id] for g in groups]
        return training.train_dpo(
            start.weights, groups, config, work.seed, out, on_step, say, references
        )

    def score(groups: list[PreferenceGroup], on_step: OnStep) -> ScoreRows:
        return [
            [
                None if p is None or q is None else config.beta * (p - q)
                for p, q in zip(p_K, q_K, strict=True)
            ]
            for p_K, q_K in zip(
                log_probs(str(out), groups, on_step), reference(groups), strict=True
            )
        ]

    def section(fields: Mapping[str, Any]) -> DPOSection:
        return DPOSection.model_validate({**fields, "beta": config.beta})

    async with work.stage("train-dpo"):
        train("dpo", out, config, start, work, fit, score, section)

"""Stage 5: a reward model from the preference groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from rlaif.evaluate.reward_model import model_card, reward_figures, votes_of
from rlaif.evaluate.schema import RewardModelSection
from rlaif.files import read_jsonl, write_text
from rlaif.progress import say
from rlaif.stages._training import OnStep, ScoreRows, start_weights, train
from rlaif.train.scale import scale_of, write_scale
from rlaif.train.settings import RewardSettings
from rlaif.types import Comparison, PreferenceGroup, Response
from rlaif.workspace import Workspace


class RewardModelConfig(RewardSettings):
    """How the reward model is trained."""

    base: str | None = None
    """Model to start from (vllm/ORG/NAME, vllm/./DIR, embedded/…); none: the policy's weights."""
    learning_rate: float = Field(default=2e-5, gt=0.0)
    """Peak learning rate of AdamW; warms up linearly, then falls linearly to zero."""
    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the groups; a fraction stops inside a pass."""
    batch_groups: int = Field(default=4, gt=0)
    """Groups of one optimiser step."""


async def run(config: RewardModelConfig, policy: str, work: Workspace) -> None:
    """Writes reward_model/: a plain AutoModelForSequenceClassification with one label, what its
    scores mean (reward.json) and what is known of it (README.md, figures.json)."""
    start = start_weights(config.base, policy, "reward_model")
    out = work.reward_model
    members: list[list[list[float] | None]] = []
    """The members' scores of each response of each group."""

    # torch is imported when there is something to train, not when a config is read.
    def fit(groups: list[PreferenceGroup], on_step: OnStep) -> object:
        from rlaif.train.training import train_reward_model

        return train_reward_model(start.weights, groups, config, work.seed, out, on_step, say)

    def score(groups: list[PreferenceGroup], on_step: OnStep) -> ScoreRows:
        from rlaif.train.scoring import score_members

        items = [(g.prompt, g.responses) for g in groups]
        members[:] = score_members(str(out), items, config.max_length, on_step)
        return [[None if s is None else float(np.mean(s)) for s in row] for row in members]

    def section(fields: Mapping[str, Any]) -> RewardModelSection:
        found = RewardModelSection.model_validate(fields)
        _describe(config, found, members, work)
        return found

    async with work.stage("train-rm"):
        train("reward_model", out, config, start, work, fit, score, section)


def _describe(
    config: RewardModelConfig,
    trained: RewardModelSection,
    members: list[list[list[float] | None]],
    work: Workspace,
) -> None:
    groups = read_jsonl(work.groups, PreferenceGroup)
    out = work.reward_model
    scores = {
        g.prompt.id: [None if s is None else float(np.mean(s)) for s in row]
        for g, row in zip(groups, members, strict=True)
    }
    responses = {r.id: r.text for r in read_jsonl(work.responses, Response)}
    votes = votes_of(groups, read_jsonl(work.comparisons, Comparison), responses)
    figures = reward_figures(groups, scores, votes, work.seed)
    seen = [s for row in members for s in row if s is not None]
    scaled = False
    try:
        if figures is None or figures.temperature is None:
            write_scale(scale_of(seen), out)
        else:
            write_scale(scale_of(seen, figures.temperature, figures.calibration.n), out)
        scaled = True
    except ValueError as e:
        say(f"reward model: {e}; its scores are not normalised")
    card = model_card(
        base=trained.base,
        labeler=groups[0].labeler,
        train_groups=trained.groups,
        members=config.members,
        figures=figures,
        scaled=scaled,
    )
    write_text(out / "README.md", card)
    if figures is not None:
        write_text(out / "figures.json", figures.model_dump_json(indent=2) + "\n")

"""Stage 5: a reward model from the preference groups."""

from __future__ import annotations

from pydantic import Field

from rlaif.evaluate.schema import RewardModelSection
from rlaif.progress import say
from rlaif.stages._training import OnStep, ScoreRows, start_weights, train
from rlaif.train.settings import RewardSettings
from rlaif.types import PreferenceGroup
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
    """Writes reward_model/: a plain AutoModelForSequenceClassification with one label."""
    start = start_weights(config.base, policy, "reward_model")
    out = work.reward_model

    # torch is imported when there is something to train, not when a config is read.
    def fit(groups: list[PreferenceGroup], on_step: OnStep) -> object:
        from rlaif.train import api

        return api.train_reward_model(start.weights, groups, config, work.seed, out, on_step, say)

    def score(groups: list[PreferenceGroup], on_step: OnStep) -> ScoreRows:
        from rlaif.train import api

        items = [(g.prompt, g.responses) for g in groups]
        return api.score_reward(str(out), items, config.max_length, on_step)

    async with work.stage("train-rm"):
        train(
            "reward_model",
            out,
            config,
            start,
            work,
            fit,
            score,
            RewardModelSection.model_validate,
        )

"""RL against a reward model: it learns, it is measured, it stops, and it tells when it is fooled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlaif.train.api import score_reward, train_reward_model
from rlaif.train.rl import RLResult, train_rl
from rlaif.train.rl_settings import Measure, RLSettings
from rlaif.train.settings import RewardSettings
from rlaif.train.tiny import make_tiny
from rlaif.types import Message, PreferenceGroup, Prompt, WeightedComparison

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [
    Prompt(id=f"p{n}", messages=(Message(role="user", content=f"Question {n}" * (1 + n % 3)),))
    for n in range(12)
]
SETTINGS = RLSettings(
    steps=3, batch_prompts=4, samples=4, max_new_tokens=12, learning_rate=3e-3, normalise_on=16
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(out, seed=0)
    return str(out)


@pytest.fixture(scope="module")
def likes_a(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model that prefers answers with more of the letter a."""
    groups = [
        PreferenceGroup(
            prompt=prompt,
            responses=("a" * 9, "xya" * 3, "wzk" * 3),
            comparisons=tuple(
                WeightedComparison(first=i, second=j, p_first=0.95) for i, j in ((0, 1), (1, 2))
            ),
            split="train",
            labeler="planted",
        )
        for prompt in PROMPTS
    ]
    out = tmp_path_factory.mktemp("models") / "rm"
    settings = RewardSettings(learning_rate=3e-3, epochs=8, batch_groups=4)
    train_reward_model(tiny, groups, settings, 0, out, lambda *_: None, lambda _: None)
    return str(out)


@pytest.fixture(scope="module")
def likes_no_a(likes_a: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its opposite."""
    out = tmp_path_factory.mktemp("models") / "opposite"
    model = AutoModelForSequenceClassification.from_pretrained(likes_a)
    with torch.no_grad():
        model.score.weight.neg_()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(likes_a).save_pretrained(out)
    return str(out)


def train(
    tiny: str, reward: str, out: Path, held_out: str | None = None, **changes: Any
) -> RLResult:
    lines: list[str] = []
    result = train_rl(
        tiny,
        reward,
        held_out,
        PROMPTS,
        RLSettings.model_validate({**SETTINGS.model_dump(), **changes}),
        0,
        out,
        lambda step, total, figures: None,
        lambda start, step: None,
        print,
    )
    return result


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_the_proxy_reward_rises(tiny: str, likes_a: str, tmp_path: Path, algorithm: str) -> None:
    r = train(tiny, likes_a, tmp_path / "rl", algorithm=algorithm, steps=25)
    print(*r.trace, sep="\n")
    print(r.start, r.end, r.seconds)
    assert r.end.proxy > 1

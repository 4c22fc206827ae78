from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from test_train_training import GROUPS, ITEMS, quiet_step
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlaif.train.collate import Batch
from rlaif.train.groups import EncodedGroup, drawn
from rlaif.train.loss import PreferenceLoss
from rlaif.train.scoring import score_members, score_reward
from rlaif.train.settings import LoraSettings, RewardSettings
from rlaif.train.tiny import make_tiny
from rlaif.train.training import train_reward_model

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = RewardSettings(learning_rate=3e-3, epochs=3, batch_groups=4, members=3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(out, seed=0)
    return str(out)


def plain_score(folder: Path, item: int, k: int) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt, responses = ITEMS[item]
    messages = [*prompt.model_dump()["messages"], {"role": "assistant", "content": responses[k]}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return float(model(**ids).logits.item())


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)], ids=["heads", "adapters"])
def test_the_members_of_an_ensemble_differ_and_the_first_is_the_plain_folder(
    tiny: str, tmp_path: Path, lora: LoraSettings | None
) -> None:
    out = tmp_path / "rm"
    lines: list[str] = []
    steps: list[tuple[int, int]] = []
    result = train_reward_model(
        tiny,
        GROUPS,
        SETTINGS.model_copy(update={"lora": lora}),
        0,
        out,
        lambda step, total, _: steps.append((step, total)),
        lines.append,
    )
    members = score_members(str(out), ITEMS, 1024, quiet_step)
    assert all(s is not None and len(s) == 3 for row in members for s in row)
    scores = np.array(members, dtype=np.float64)
    assert scores[3, 1, 0] == pytest.approx(plain_score(out, 3, 1), abs=1e-5)
    assert score_reward(str(out), ITEMS, 1024, quiet_step)[3][1] == pytest.approx(
        scores[3, 1].mean()
    )
    for one in range(3):
        assert (scores[:, 0, one] > scores[:, 3, one]).all(), "each has learned the rule"
        for other in range(one):
            assert not np.allclose(scores[..., one], scores[..., other], atol=1e-3)
    total = 6 * (3 if lora else 1)
    assert steps == [(n, total) for n in range(1, total + 1)]
    assert result.losses[-1] < result.losses[0]
    assert {p.name for p in tmp_path.iterdir()} == {"rm"}


def test_the_loss_of_an_ensemble_is_the_mean_of_its_members_on_what_each_drew() -> None:
    scores_NM = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]], dtype=torch.float64)
    batch: Any = {
        "first_C": torch.tensor([0]),
        "second_C": torch.tensor([1]),
        "p_first_C": torch.tensor([1.0], dtype=torch.float64),
        "weight_C": torch.tensor([0.5]),
        "draws_CM": torch.tensor([[2.0, 1.0]]),
    }
    figures = PreferenceLoss().figures(scores_NM, cast(Batch, batch))
    by_hand = 0.5 * (2 * math.log(4 / 3) + 1 * math.log(2)) / 2
    assert figures["loss"].item() == pytest.approx(by_hand, abs=1e-7)
    assert figures["accuracy"].item() == 0.5


def test_draws_are_those_of_a_bootstrap_and_stay_with_the_prompt() -> None:
    groups = [EncodedGroup([1], [[2], [3]], (), (0.0, 0.0), f"p{n}") for n in range(400)]
    draws_GM = np.array([drawn(group, 4, seed=7).draws for group in groups])
    # Poisson of mean 1: mean and variance 1, no draw with a chance of 1/e.
    assert draws_GM.mean() == pytest.approx(1.0, abs=0.1)
    assert draws_GM.var() == pytest.approx(1.0, abs=0.15)
    assert (draws_GM == 0).mean() == pytest.approx(1 / math.e, abs=0.05)
    assert not np.array_equal(draws_GM[:, 0], draws_GM[:, 1])
    again = [drawn(group, 4, seed=7).draws for group in reversed(groups)]
    assert again[::-1] == [tuple(row) for row in draws_GM.tolist()]


@pytest.mark.parametrize("tokens_at_once", [60, 4096])
def test_an_ensemble_in_two_passes_has_the_same_losses(
    tiny: str, tmp_path: Path, tokens_at_once: int
) -> None:
    settings = SETTINGS.model_copy(update={"tokens_at_once": tokens_at_once, "epochs": 1.0})
    result = train_reward_model(tiny, GROUPS, settings, 0, tmp_path / "rm", quiet_step, pytest.fail)
    whole = SETTINGS.model_copy(update={"epochs": 1.0})
    once = train_reward_model(tiny, GROUPS, whole, 0, tmp_path / "b", quiet_step, pytest.fail)
    assert result.losses == pytest.approx(once.losses, rel=1e-4)

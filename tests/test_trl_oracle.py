"""TRL is the oracle: the same tokens and the same losses on the same rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from rlaif.train.collate import collate
from rlaif.train.groups import EncodedGroup, encode_groups
from rlaif.train.loading import load_causal, load_reward, load_tokenizer
from rlaif.train.loss import Objective, dpo_objective, reward_objective
from rlaif.train.scorers import DPOScorer, RewardScorer, Scorer, response_log_probs
from rlaif.train.settings import DPOSettings, RewardSettings
from rlaif.train.tiny import make_tiny
from rlaif.types import Message, PreferenceGroup, Prompt, WeightedComparison

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

TURNS = (
    Message(role="system", content="Be kind."),
    Message(role="user", content="Hello"),
    Message(role="assistant", content="Hello to you."),
    Message(role="user", content="Why is the sky blue?"),
)
ROWS = [
    (TURNS, "Light scatters.", "I do not know, and I will not ask anybody either."),
    (TURNS[1:2], "Hi!", ""),
    (TURNS[1:2], "\n\nA reply that starts with line breaks", "Go away\n"),
    (TURNS[:2], "naïve 🙂", "naïve"),
]


@dataclasses.dataclass(frozen=True)
class Models:
    start: str
    moved: str
    reward: str


@pytest.fixture(scope="module", params=["pad token of its own", "pads with its end token"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Two policies and a reward model; the second kind ends a conversation with the pad token."""
    folder = tmp_path_factory.mktemp("models")
    start, moved, reward = folder / "start", folder / "moved", folder / "reward"
    make_tiny(start, seed=0)
    make_tiny(moved, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(start)
    if request.param == "pads with its end token":
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    set_seed(0)
    model = load_reward(str(start), tokenizer.pad_token_id, new_head=True)
    with torch.no_grad():  # A fresh head's margins are too small to tell a right loss from log 2.
        model.score.weight *= 20
    model.save_pretrained(reward)
    for directory in (start, moved, reward):
        tokenizer.save_pretrained(directory)
    return Models(str(start), str(moved), str(reward))


def groups() -> list[PreferenceGroup]:
    return [
        PreferenceGroup(
            prompt=Prompt(id=str(number), messages=messages),
            responses=(chosen, rejected),
            comparisons=(WeightedComparison(first=0, second=1, p_first=1.0),),
            split="train",
            labeler="human",
        )
        for number, (messages, chosen, rejected) in enumerate(ROWS)
    ]


def rows() -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [message.model_dump() for message in messages],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
            for messages, chosen, rejected in ROWS
        ]
    )


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": len(ROWS),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }


def our_loss(
    scorer: Scorer, objective: Objective, encoded: list[EncodedGroup], directory: str
) -> torch.Tensor:
    batch = collate(encoded, load_tokenizer(directory).pad_token_id, packed=True)
    return objective.figures(scorer(batch), batch)["loss"] / objective.weight(batch)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    our_gradients, their_gradients = gradients(ours), gradients(theirs)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-3, atol=1e-5)


REWARD = RewardSettings(learning_rate=1e-3, epochs=1, batch_groups=4)
DPO = DPOSettings(learning_rate=1e-3, epochs=1, batch_groups=4, beta=0.3)


@pytest.mark.parametrize(
    ("ours_is", "theirs_is"),
    [({}, {}), ({"centring": 0.05}, {"center_rewards_coefficient": 0.05})],
    ids=["plain", "centring"],
)
def test_the_reward_models_loss_and_gradient_are_trls(
    models: Models, tmp_path: Path, ours_is: dict[str, Any], theirs_is: dict[str, Any]
) -> None:
    trainer = RewardTrainer(
        model=models.reward,
        args=RewardConfig(**settings(tmp_path), **theirs_is),
        train_dataset=rows(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    tokenizer = load_tokenizer(models.reward)
    scorer = RewardScorer(load_reward(models.reward, tokenizer.pad_token_id, new_head=False))
    encoded = encode_groups(tokenizer, groups(), 1024, as_drawn=False).groups
    objective = reward_objective(REWARD.model_copy(update=ours_is))
    ours = our_loss(scorer, objective, encoded, models.reward)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)
    assert ours.item() != pytest.approx(0.6931, abs=1e-3)
    assert_same_gradients(scorer.model, trainer.model)


@pytest.mark.parametrize(
    ("ours_is", "theirs_is"),
    [
        ({}, {}),
        (
            {"loss": "robust", "label_smoothing": 0.1},
            {"loss_type": ["robust"], "label_smoothing": 0.1},
        ),
        ({"loss": "ipo", "length_normalised": True}, {"loss_type": ["ipo"]}),
    ],
    ids=["plain", "robust", "ipo"],
)
def test_dpos_loss_and_gradient_are_trls(
    models: Models, tmp_path: Path, ours_is: dict[str, Any], theirs_is: dict[str, Any]
) -> None:
    trainer = DPOTrainer(
        model=models.moved,
        ref_model=load_causal(models.start),
        args=DPOConfig(beta=DPO.beta, **settings(tmp_path), **theirs_is),
        train_dataset=rows(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    tokenizer = load_tokenizer(models.start)
    encoded = encode_groups(tokenizer, groups(), 1024, as_drawn=True).groups
    reference = load_causal(models.start)
    with torch.no_grad():
        encoded = [
            dataclasses.replace(
                group,
                reference_K=tuple(
                    response_log_probs(
                        reference, collate([group], tokenizer.pad_token_id, packed=True)
                    ).tolist()
                ),
            )
            for group in encoded
        ]
    chosen = DPOSettings.model_validate({**DPO.model_dump(), **ours_is})
    scorer = DPOScorer(
        load_causal(models.moved), chosen.beta, length_normalised=chosen.length_normalised
    )
    ours = our_loss(scorer, dpo_objective(chosen), encoded, models.start)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)
    assert ours.item() != pytest.approx(0.6931, abs=1e-3)
    assert_same_gradients(scorer.model, trainer.model)


def test_prompt_and_response_tokens_are_trls(models: Models, tmp_path: Path) -> None:
    trainer = DPOTrainer(
        model=models.start, args=DPOConfig(**settings(tmp_path)), train_dataset=rows()
    )
    tokenizer = load_tokenizer(models.start)
    encoded = encode_groups(tokenizer, groups(), 1024, as_drawn=True).groups
    for group, theirs in zip(encoded, trainer.train_dataset, strict=True):
        assert group.prompt_ids == theirs["prompt_ids"]
        assert group.response_ids == [theirs["chosen_ids"], theirs["rejected_ids"]]
    reward = RewardTrainer(
        model=models.reward, args=RewardConfig(**settings(tmp_path)), train_dataset=rows()
    )
    for group, theirs in zip(encoded, reward.train_dataset, strict=True):
        whole = [group.prompt_ids + ids for ids in group.response_ids]
        assert whole == [theirs["chosen_ids"], theirs["rejected_ids"]]

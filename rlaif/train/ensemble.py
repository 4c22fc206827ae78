"""Several reward models in one folder: heads on one body, or adapters on one base.

A folder is always a plain classifier with one label, the ensemble's first member. The others stand
beside it: heads in `members/heads.safetensors`, adapters in `members/1`, `members/2` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from rlaif.train.loading import beside_weights, load_reward

MEMBERS = "members"
HEADS = f"{MEMBERS}/heads.safetensors"
"""Not beside the model's own weights: vLLM loads every safetensors file that lies there."""


def widen(model: PreTrainedModel, members: int) -> None:
    """Gives a reward model `members` heads: its own and new ones, drawn from torch's global
    generator."""
    head: Any = model.score
    wide = nn.Linear(head.in_features, members, bias=False).to(head.weight)
    with torch.no_grad():
        wide.weight.normal_(std=model.config.get_text_config().initializer_range)
        wide.weight[:1] = head.weight
    model.score = wide


def save_heads(model: PreTrainedModel, folder: Path) -> None:
    """Writes all heads, and leaves the model with its first one, as a plain model."""
    weight_MH = model.score.weight.detach().contiguous()  # type: ignore[union-attr, operator]
    (folder / HEADS).parent.mkdir()
    save_file({"weight": weight_MH.cpu()}, folder / HEADS)
    first = nn.Linear(weight_MH.shape[1], 1, bias=False).to(weight_MH)
    with torch.no_grad():
        first.weight.copy_(weight_MH[:1])
    model.score = first


def adapter_folders(name: str) -> list[Path]:
    """The members of a reward model, of a folder or a hub, that are adapters, without its first.
    Raises SetupError as `beside_weights`."""
    found = (beside_weights(name) / MEMBERS).glob("*/adapter_config.json")
    return sorted((path.parent for path in found), key=lambda path: int(path.name))


def members_of(name: str, pad_token_id: int) -> Iterator[PreTrainedModel]:
    """All members, in order, each loaded when it is asked for: one model with all heads, or one
    model for each member."""
    yield _load_heads(name, pad_token_id)
    for member in adapter_folders(name):
        yield _load_adapters(member, pad_token_id)


def load_members(name: str, pad_token_id: int) -> list[PreTrainedModel]:
    """`members_of`, all at once."""
    return list(members_of(name, pad_token_id))


def _load_heads(folder: str, pad_token_id: int) -> PreTrainedModel:
    """The folder's plain model, with all heads where it has several."""
    model = load_reward(folder, pad_token_id, new_head=False)
    path = beside_weights(folder) / HEADS
    if path.is_file():
        weight_MH = load_file(path)["weight"]
        head: Any = model.score
        wide = nn.Linear(weight_MH.shape[1], len(weight_MH), bias=False).to(head.weight)
        with torch.no_grad():
            wide.weight.copy_(weight_MH)
        model.score = wide
    return model


def _load_adapters(folder: Path, pad_token_id: int) -> PreTrainedModel:
    """A member's adapters, merged into the base that they name. Raises SetupError where that base
    is gone."""
    base = str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
    model = load_reward(base, pad_token_id, new_head=True)
    adapted: Any = PeftModel.from_pretrained(model, str(folder))
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged

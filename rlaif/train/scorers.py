"""Three scorers: a batch of groups in, one score a response out. A loss knows no more than that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from rlaif.errors import SetupError
from rlaif.train.collate import Batch, collate
from rlaif.train.groups import EncodedGroup

TOKENS_AT_ONCE = 4096
"""Padded tokens scored in one batch without gradients."""
PACKING_TOLERANCE = 1e-3
"""Relative to the largest score."""


class Scorer(nn.Module, ABC):
    """A model whose `forward` turns a batch into `scores_N`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        # The score before a step and the reference must not differ by chance.
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    @abstractmethod
    def forward(self, batch: Batch) -> torch.Tensor:
        """One score a response, (N,), float32, in nats."""


class RewardScorer(Scorer):
    """r(x, y): the score head at the last token of each conversation."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        if "score" not in dict(model.named_children()):
            raise SetupError(
                f"{model.config.name_or_path}: {type(model).__name__} has no head named `score`",
                fix="take a decoder model such as Llama, Qwen, Mistral or Gemma",
            )

    def forward(self, batch: Batch) -> torch.Tensor:
        hidden_BTH = self.model.base_model(**_inputs(batch)).last_hidden_state
        head: Any = self.model.score
        score_N1: torch.Tensor = head(hidden_BTH[batch["last_row_N"], batch["last_column_N"]])
        return score_N1.squeeze(-1).float()


class LikelihoodScorer(Scorer):
    """log pi(y|x)."""

    def forward(self, batch: Batch) -> torch.Tensor:
        return response_log_probs(self.model, batch)


class DPOScorer(Scorer):
    """beta (log pi(y|x) - log pi_ref(y|x)): Rafailov et al. (2023), section 4."""

    def __init__(self, model: PreTrainedModel, beta: float) -> None:
        super().__init__(model)
        self.beta = beta

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.beta * (response_log_probs(self.model, batch) - batch["reference_N"])


def response_log_probs(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """log pi(y|x) of each response, the sum over its tokens, (N,), float32, in nats."""
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]

    def at_response_positions(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0][batch["row_M"], batch["column_M"]].unsqueeze(0),)

    # Picked in front of the head, so that prompts cost no logits and whatever the model does to
    # its logits afterwards (scaling, soft caps) still happens.
    with head.register_forward_pre_hook(at_response_positions):
        logits_MV = model(**_inputs(batch)).logits.squeeze(0)
    log_prob_M = -F.cross_entropy(logits_MV.float(), batch["target_M"], reduction="none")
    return torch.zeros_like(batch["reference_N"]).index_add(0, batch["response_M"], log_prob_M)


def score_groups(
    score: Callable[[Batch], torch.Tensor],
    groups: Sequence[EncodedGroup],
    pad_token_id: int,
    *,
    packed: bool,
    device: torch.device,
    on_group: Callable[[int, int], None],
) -> list[tuple[float, ...]]:
    """Scores of all groups without gradients, in the order given; like lengths run together."""
    size = [g.packed_length if packed else g.longest * len(g.response_ids) for g in groups]
    order = sorted(range(len(groups)), key=lambda i: -size[i])
    scores: dict[int, tuple[float, ...]] = {}
    while order:
        count = max(1, TOKENS_AT_ONCE // size[order[0]])
        now, order = order[:count], order[count:]
        batch = collate([groups[i] for i in now], pad_token_id, packed=packed)
        with torch.no_grad():
            flat = score(on_device(batch, device)).tolist()
        for i in now:
            k = len(groups[i].response_ids)
            scores[i], flat = tuple(flat[:k]), flat[k:]
        on_group(len(scores), len(groups))
    return [scores[i] for i in range(len(groups))]


def packing_error(
    score: Callable[[Batch], torch.Tensor],
    groups: Sequence[EncodedGroup],
    pad_token_id: int,
    device: torch.device,
) -> float:
    """Largest difference between packed and unpacked scores of one group, relative to the largest.

    The longest group is taken: a sliding window shows only beyond its width.
    """
    group = [max(groups, key=lambda g: g.longest)]
    with torch.no_grad():
        packed_K, unpacked_K = (
            score(on_device(collate(group, pad_token_id, packed=packed), device))
            for packed in (True, False)
        )
    return float((packed_K - unpacked_K).abs().max() / unpacked_K.abs().max())


def on_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(**{name: tensor.to(device) for name, tensor in batch.items()})  # type: ignore


def _inputs(batch: Batch) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "input_ids": batch["input_ids_BT"],
        "attention_mask": batch["mask"],
        "use_cache": False,
    }
    if "position_ids_BT" in batch:
        inputs["position_ids"] = batch["position_ids_BT"]
    return inputs

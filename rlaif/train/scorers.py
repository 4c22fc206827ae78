"""Three scorers: a batch of groups in, one score a response out. A loss knows no more than that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlaif.errors import SetupError
from rlaif.train.collate import Batch, collate, in_parts
from rlaif.train.groups import EncodedGroup
from rlaif.train.loss import tokens_of_each
from rlaif.train.memory import LOGITS_AT_ONCE

TOKENS_AT_ONCE = 4096
"""Padded tokens scored in one batch without gradients."""
PACKING_TOLERANCE = 1e-3
"""Relative to the largest score."""


class Scorer(nn.Module, ABC):
    """A model whose `forward` turns a batch into `scores_N`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        # What FSDP takes as the units to divide.
        self._no_split_modules = model._no_split_modules
        # The score before a step and the reference must not differ by chance.
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    @abstractmethod
    def forward(self, batch: Batch) -> torch.Tensor:
        """One score a response, (N,), float32, in nats."""


class RewardScorer(Scorer):
    """r(x, y): the score head at the last token of each conversation; (N, M) where it has M rows,
    one for each member of an ensemble."""

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
        last_NH = hidden_BTH[batch["last_row_N"], batch["last_column_N"]]
        # bfloat16 knows one part in 256: two scores near 4 would differ by 0.016 or not at all.
        with torch.autocast(last_NH.device.type, enabled=False):
            score_NM: torch.Tensor = head(last_NH.to(head.weight.dtype))
        return score_NM.squeeze(-1).float()


class LikelihoodScorer(Scorer):
    """log pi(y|x)."""

    def forward(self, batch: Batch) -> torch.Tensor:
        return response_log_probs(self.model, batch)


class DPOScorer(Scorer):
    """beta (log pi(y|x) - log pi_ref(y|x)): Rafailov et al. (2023), section 4.

    Without a reference beta log pi(y|x), and by the response's tokens where `length_normalised`:
    both together are SimPO's score, Meng et al. (2024), eq. 4.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        beta: float,
        *,
        reference: bool = True,
        length_normalised: bool = False,
    ) -> None:
        super().__init__(model)
        self.beta = beta
        self._reference = reference
        self._length_normalised = length_normalised

    def forward(self, batch: Batch) -> torch.Tensor:
        ratio_N = response_log_probs(self.model, batch)
        if self._reference:
            ratio_N = ratio_N - batch["reference_N"]
        if self._length_normalised:
            ratio_N = ratio_N / tokens_of_each(batch)
        return self.beta * ratio_N


def response_log_probs(
    model: PreTrainedModel, batch: Batch, temperature: float = 1.0
) -> torch.Tensor:
    """log pi(y|x) of each response, the sum over its tokens, (N,), float32, in nats, of a policy
    that is sampled at `temperature`.

    Only the positions that predict a response's token are projected onto the vocabulary, some
    `LOGITS_AT_ONCE` logits at a time; further ones are computed again for the gradient.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    hidden_BTH = model.base_model(**_inputs(batch)).last_hidden_state
    hidden_MH = hidden_BTH[batch["row_M"], batch["column_M"]]
    vocabulary = model.config.get_text_config().vocab_size
    rows = max(1, LOGITS_AT_ONCE // vocabulary)
    shape = logit_shape(model)

    def of(hidden_MH: torch.Tensor, target_M: torch.Tensor) -> torch.Tensor:
        logits_MV = shape(head(hidden_MH).float()) / temperature
        return -F.cross_entropy(logits_MV, target_M, reduction="none")

    pieces = list(
        zip(torch.split(hidden_MH, rows), torch.split(batch["target_M"], rows), strict=True)
    )
    again = len(pieces) > 1 and torch.is_grad_enabled()
    log_prob_M = torch.cat(
        [
            checkpoint(of, hidden, target, use_reentrant=False) if again else of(hidden, target)
            for hidden, target in pieces
        ]
    )
    return torch.zeros_like(batch["reference_N"]).index_add(0, batch["response_M"], log_prob_M)


def logit_shape(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a model does to its logits behind the head: Gemma caps them, Cohere and Granite scale
    them. `head_error` tells whether this is all that it does."""
    config: Any = model.config.get_text_config()
    values = config.to_dict()
    cap = values.get("final_logit_softcapping")
    scale = (values.get("logit_scale") or 1.0) / (values.get("logits_scaling") or 1.0)

    def shaped(logits_MV: torch.Tensor) -> torch.Tensor:
        logits_MV = logits_MV * scale if scale != 1.0 else logits_MV
        return cap * torch.tanh(logits_MV / cap) if cap else logits_MV

    return shaped


def head_error(model: PreTrainedModel, device: torch.device) -> float:
    """Largest difference between what we make of a model's last hidden states and its own logits,
    relative to the largest."""
    config = model.config.get_text_config()
    ids_1T = torch.arange(min(16, config.vocab_size), device=device).unsqueeze(0)
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state
        ours = logit_shape(model)(head(hidden).float())
        own = model(input_ids=ids_1T, use_cache=False).logits.float()
    return float((ours - own).abs().max() / own.abs().max())


def score_groups(
    score: Callable[[Batch], torch.Tensor],
    groups: Sequence[EncodedGroup],
    pad_token_id: int,
    *,
    packed: bool,
    device: torch.device,
    on_group: Callable[[int, int], None],
) -> list[torch.Tensor]:
    """Scores of all groups without gradients, in the order given, each (K,) or (K, M), on the CPU;
    like lengths run together."""
    scores: dict[int, torch.Tensor] = {}
    for part in in_parts(groups, TOKENS_AT_ONCE, packed=packed):
        batch = collate([groups[i] for i in part], pad_token_id, packed=packed)
        with torch.no_grad():
            scores_N = score(on_device(batch, device)).cpu()
        sizes = [len(groups[i].response_ids) for i in part]
        scores |= zip(part, torch.split(scores_N, sizes), strict=True)
        on_group(len(scores), len(groups))
    return [scores[i] for i in range(len(groups))]


def packing_error(
    score: Callable[[Batch], torch.Tensor],
    groups: Sequence[EncodedGroup],
    pad_token_id: int,
    device: torch.device,
) -> float:
    """Largest difference between packed and unpacked scores of one prompt's two longest responses,
    relative to the largest: two show all that packing changes, in the memory of two.

    The longest group is taken: a sliding window shows only beyond its width.
    """
    longest = max(groups, key=lambda g: g.longest)
    two = sorted(longest.response_ids, key=len)[-2:]
    group = [EncodedGroup(longest.prompt_ids, two, (), (0.0,) * len(two))]
    with torch.no_grad():
        packed_K, unpacked_K = (
            score(on_device(collate(group, pad_token_id, packed=packed), device))
            for packed in (True, False)
        )
    return float((packed_K - unpacked_K).abs().max() / unpacked_K.abs().max())


def packs(
    score: Callable[[Batch], torch.Tensor],
    groups: Sequence[EncodedGroup],
    pad_token_id: int,
    device: torch.device,
    on_log: Callable[[str], None],
) -> bool:
    """Whether packing leaves the scores as they are; says so if it does not."""
    try:
        error = packing_error(score, groups, pad_token_id, device)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError) as e:
        cause = (str(e).strip() or type(e).__name__).splitlines()[0]
        on_log(f"this model takes no packed groups ({cause}); training one response a row")
        return False
    if error <= PACKING_TOLERANCE:
        return True
    on_log(
        f"packing changes this model's scores by {error:.1e} of the largest; training one response "
        "a row"
    )
    return False


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

"""What training minimises: one loss for the reward model and for DPO alike, and one for SFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from rlaif.train.collate import Batch


class Objective(NamedTuple):
    """A loss in terms of scores. An optimiser step takes the mean of its batches, by weight."""

    figures: Callable[[torch.Tensor, Batch], dict[str, torch.Tensor]]
    """Scores (N,) and their batch -> `loss`, a scalar, and what else there is to show of them."""
    weight: Callable[[Batch], int]
    """How much a batch counts in its step."""


def bradley_terry(
    scores_N: torch.Tensor,
    first_C: torch.Tensor,
    second_C: torch.Tensor,
    p_first_C: torch.Tensor,
    weight_C: torch.Tensor,
) -> torch.Tensor:
    """Weighted mean cross-entropy of labels under the Bradley-Terry model of the scores.

        m_c  = s[first_c] - s[second_c]
        loss = - sum_c w_c (p_c log sigmoid(m_c) + (1 - p_c) log sigmoid(-m_c)) / sum_c w_c

    `scores_N`: one score a response, in nats. `first_C`, `second_C`: indices into it.
    `p_first_C`: P(first preferred), 0 to 1. `weight_C`: positive. Returns a scalar in nats.

    P(first preferred) = sigmoid(m) is Bradley and Terry (1952). With s = r(x, y) and p = 1 this is
    the reward model's loss of Ouyang et al. (2022), eq. 1; with
    s = beta (log pi(y|x) - log pi_ref(y|x)) it is DPO's, Rafailov et al. (2023), eq. 7. Labels
    between 0 and 1 are used as in Bai et al. (2022, Constitutional AI), section 4.1.
    """
    margin_C = scores_N[first_C] - scores_N[second_C]
    loss_C = F.binary_cross_entropy_with_logits(margin_C, p_first_C, reduction="none")
    return (weight_C * loss_C).sum() / weight_C.sum()


def ordering_accuracy(
    scores_N: torch.Tensor, first_C: torch.Tensor, second_C: torch.Tensor, p_first_C: torch.Tensor
) -> torch.Tensor:
    """Share of comparisons that the scores order as labelled; where either ties, half counts."""
    margin_C = scores_N[first_C] - scores_N[second_C]
    agreement_C = torch.sign(margin_C) * torch.sign(p_first_C - 0.5)
    return (0.5 * (1 + agreement_C)).mean()


def negative_log_likelihood(log_prob_N: torch.Tensor, tokens: int) -> torch.Tensor:
    """Mean over all `tokens` of the N responses, in nats a token; a scalar.

    `log_prob_N`: log pi(y|x) of each response, summed over its tokens; a prompt's tokens have no
    part in it. A long response weighs more than a short one, as in TRL's SFTTrainer. This is the
    supervised stage of Bai et al. (2022, Constitutional AI), section 3.
    """
    return -log_prob_N.sum() / tokens


def _preference_figures(scores_N: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    labels = (batch["first_C"], batch["second_C"], batch["p_first_C"])
    return {
        "loss": bradley_terry(scores_N, *labels, batch["weight_C"]),
        "accuracy": ordering_accuracy(scores_N.detach(), *labels),
    }


def _response_tokens(batch: Batch) -> int:
    return len(batch["target_M"])


PREFERENCES = Objective(_preference_figures, weight=lambda batch: 1)
"""Bradley-Terry on the scores; batches count alike."""
LIKELIHOOD = Objective(
    lambda scores_N, batch: {"loss": negative_log_likelihood(scores_N, _response_tokens(batch))},
    weight=_response_tokens,
)
"""Log-probability of the responses; tokens count alike, whichever batch they are in."""

"""What training minimises: one loss for the reward model and for DPO alike, and one for SFT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

from rlaif.train.collate import Batch
from rlaif.train.settings import DPOSettings, PreferenceSettings, RewardSettings


class Objective(NamedTuple):
    """A loss in terms of scores. A step's loss is the sum over its groups by the sum of weights, so
    that it does not matter in which parts they are computed."""

    figures: Callable[[torch.Tensor, Batch], dict[str, torch.Tensor]]
    """Scores (N,) and their batch -> `loss`, a scalar, and what else there is to show of them; sums
    over the batch."""
    weight: Callable[[Batch], float]
    """How much a batch counts in its step."""


MarginLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Margins (C,) and P(first preferred) (C,) -> loss of each comparison (C,)."""


def bradley_terry(margin_C: torch.Tensor, p_first_C: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each label under the Bradley-Terry model of the scores, (C,), in nats:

        - p log sigmoid(m) - (1 - p) log sigmoid(-m)

    `margin_C`: s[first] - s[second], in nats. `p_first_C`: P(first preferred), 0 to 1.

    P(first preferred) = sigmoid(m) is Bradley and Terry (1952). With s = r(x, y) and p = 1 this is
    the reward model's loss of Ouyang et al. (2022), eq. 1; with
    s = beta (log pi(y|x) - log pi_ref(y|x)) it is DPO's, Rafailov et al. (2023), eq. 7. Labels
    between 0 and 1 are used as in Bai et al. (2022, Constitutional AI), section 4.1; a tie is 1/2.
    """
    return F.binary_cross_entropy_with_logits(margin_C, p_first_C, reduction="none")


def ipo(beta: float) -> MarginLoss:
    """Squared distance of each log-ratio difference h = m / beta to (2 p - 1) / (2 beta).

    With p = 1 Azar et al. (2023), eq. 17, whose tau is beta. A label between 0 and 1 stands for
    draws of it: the mean of their losses, less a constant. TRL's `ipo` takes means over tokens
    where the paper takes sums: `length_normalised` gives the same.
    """

    def loss(margin_C: torch.Tensor, p_first_C: torch.Tensor) -> torch.Tensor:
        return ((margin_C / beta) - (2 * p_first_C - 1) / (2 * beta)).square()

    return loss


def robust(flipped: float) -> MarginLoss:
    """Bradley-Terry's loss, unbiased where a share `flipped` of the labels is the wrong way round:

        ((1 - e) loss(m, p) - e loss(m, 1 - p)) / (1 - 2 e)

    Chowdhury et al. (2024), "Provably robust DPO". It can be negative.
    """

    def loss(margin_C: torch.Tensor, p_first_C: torch.Tensor) -> torch.Tensor:
        right_C = bradley_terry(margin_C, p_first_C)
        wrong_C = bradley_terry(margin_C, 1 - p_first_C)
        return ((1 - flipped) * right_C - flipped * wrong_C) / (1 - 2 * flipped)

    return loss


@dataclass(frozen=True)
class PreferenceLoss:
    """The loss of scores under labelled comparisons.

    m_c  = s[first_c] - s[second_c] - margin (2 p_c - 1) + length_penalty (|first_c| - |second_c|)
    loss = sum_c w_c (f(m_c, p_c) + centring (s[first_c] + s[second_c])^2)
    """

    f: MarginLoss = bradley_terry
    smoothing: float = 0.0
    """Chance that a label is the wrong way round: p becomes (1 - e) p + e (1 - p), the conservative
    DPO of Mitchell (2023)."""
    margin: float = 0.0
    length_penalty: float = 0.0
    centring: float = 0.0

    def of_each(self, scores_N: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Loss of each comparison, unweighted, (C,)."""
        first_C, second_C, p_first_C = batch["first_C"], batch["second_C"], batch["p_first_C"]
        margin_C = scores_N[first_C] - scores_N[second_C]
        if self.margin:
            margin_C = margin_C - self.margin * (2 * p_first_C - 1)
        if self.length_penalty:
            length_N = tokens_of_each(batch)
            longer_C = length_N[first_C] - length_N[second_C]
            margin_C = margin_C + self.length_penalty * longer_C
        loss_C = self.f(margin_C, p_first_C + self.smoothing * (1 - 2 * p_first_C))
        if self.centring:
            loss_C = loss_C + self.centring * (scores_N[first_C] + scores_N[second_C]).square()
        return loss_C

    def figures(self, scores_N: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Sums over the comparisons, by their weights: see `Objective`.

        `scores_N` may be (N, M): the scores of an ensemble's M members. The loss is then their mean
        loss, each on the groups that it drew, and the accuracy that of their mean score.
        """
        weight_C = batch["weight_C"]
        if scores_N.dim() == 2:
            loss_MC = [self.of_each(scores, batch) for scores in scores_N.unbind(1)]
            loss_C = (torch.stack(loss_MC, dim=1) * batch["draws_CM"]).mean(dim=1)
            scores_N = scores_N.mean(dim=1)
        else:
            loss_C = self.of_each(scores_N, batch)
        ordered_C = as_labelled(
            scores_N.detach(), batch["first_C"], batch["second_C"], batch["p_first_C"]
        )
        return {
            "loss": (weight_C * loss_C).sum(),
            "accuracy": (weight_C * ordered_C).sum(),
        }


def reward_objective(settings: RewardSettings) -> Objective:
    """What a reward model's training minimises."""
    return _objective(bradley_terry, settings, settings.label_smoothing, settings.centring)


def dpo_objective(settings: DPOSettings) -> Objective:
    """What a policy's training minimises."""
    if settings.loss == "robust":
        return _objective(robust(settings.label_smoothing), settings, smoothing=0.0)
    f = ipo(settings.beta) if settings.loss == "ipo" else bradley_terry
    return _objective(f, settings, settings.label_smoothing)


def _objective(
    f: MarginLoss, settings: PreferenceSettings, smoothing: float, centring: float = 0.0
) -> Objective:
    loss = PreferenceLoss(f, smoothing, settings.margin, settings.length_penalty, centring)
    return Objective(loss.figures, weight=lambda batch: float(batch["weight_C"].sum()))


def as_labelled(
    scores_N: torch.Tensor, first_C: torch.Tensor, second_C: torch.Tensor, p_first_C: torch.Tensor
) -> torch.Tensor:
    """1 where scores order a comparison as labelled, 0 where not, 1/2 where either ties, (C,)."""
    margin_C = scores_N[first_C] - scores_N[second_C]
    agreement_C = torch.sign(margin_C) * torch.sign(p_first_C - 0.5)
    return 0.5 * (1 + agreement_C)


def tokens_of_each(batch: Batch) -> torch.Tensor:
    """Tokens of each response, (N,), float32."""
    ones_M = torch.ones_like(batch["response_M"], dtype=torch.float32)
    return torch.zeros_like(batch["reference_N"]).index_add(0, batch["response_M"], ones_M)


def negative_log_likelihood(log_prob_N: torch.Tensor) -> torch.Tensor:
    """Sum over the N responses, in nats; a scalar.

    `log_prob_N`: log pi(y|x) of each response, summed over its tokens; a prompt's tokens have no
    part in it. By the number of tokens it is the mean that TRL's SFTTrainer takes: a long response
    weighs more than a short one. This is the supervised stage of Bai et al. (2022, Constitutional
    AI), section 3.
    """
    return -log_prob_N.sum()


LIKELIHOOD = Objective(
    lambda scores_N, batch: {"loss": negative_log_likelihood(scores_N)},
    weight=lambda batch: float(len(batch["target_M"])),
)
"""Log-probability of the responses; tokens count alike, whichever batch they are in."""

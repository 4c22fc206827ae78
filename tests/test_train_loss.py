from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif.train.collate import Batch
from rlaif.train.loss import PreferenceLoss, as_labelled, ipo, robust

PLAIN = PreferenceLoss()


def loss_of(
    scores: list[float],
    comparisons: list[tuple[int, int, float, float]],
    of: PreferenceLoss = PLAIN,
    lengths: tuple[int, ...] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss, and the scores that it can be differentiated by."""
    scores_N = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    first, second, p, weight = zip(*comparisons, strict=True)
    batch: Any = {
        "first_C": torch.tensor(first),
        "second_C": torch.tensor(second),
        "p_first_C": torch.tensor(p, dtype=torch.float64),
        "weight_C": torch.tensor(weight, dtype=torch.float64),
        "response_M": torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)]),
        "reference_N": torch.zeros(len(scores)),
    }
    figures = of.figures(scores_N, cast(Batch, batch))
    return figures["loss"] / sum(weight), scores_N


def test_a_hard_label_costs_minus_log_sigmoid_of_the_margin() -> None:
    loss, _ = loss_of([2.0, 1.0], [(0, 1, 1.0, 1.0)])
    assert loss.item() == pytest.approx(0.31326168751822286, abs=1e-12)  # log(1 + 1/e)


def test_equal_scores_cost_log_two_whatever_the_label() -> None:
    for p in (0.0, 0.3, 1.0):
        loss, _ = loss_of([0.7, 0.7], [(0, 1, p, 1.0)])
        assert loss.item() == pytest.approx(math.log(2), abs=1e-12)


def test_a_soft_label_costs_the_mixture_of_both_verdicts() -> None:
    # margin log 3, so sigmoid(margin) = 3/4
    loss, _ = loss_of([math.log(3), 0.0], [(0, 1, 0.8, 1.0)])
    assert loss.item() == pytest.approx(0.8 * math.log(4 / 3) + 0.2 * math.log(4), abs=1e-12)


def test_weights_average_and_their_scale_does_not_matter() -> None:
    for scale in (1.0, 10.0):
        loss, _ = loss_of([math.log(3), 0.0, 0.0], [(0, 1, 1.0, 3 * scale), (1, 2, 1.0, 1 * scale)])
        assert loss.item() == pytest.approx((3 * math.log(4 / 3) + math.log(2)) / 4, abs=1e-12)


def test_four_responses_cost_the_mean_of_their_six_pairs() -> None:
    scores = [0.5, -1.0, 2.0, 0.25]
    pairs = [(i, j, 0.5 + 0.1 * (j - i), 1.0) for i in range(4) for j in range(i + 1, 4)]
    loss, _ = loss_of(scores, pairs)
    by_hand = []
    for i, j, p, _weight in pairs:
        q = 1 / (1 + math.exp(scores[j] - scores[i]))
        by_hand.append(-(p * math.log(q) + (1 - p) * math.log(1 - q)))
    assert loss.item() == pytest.approx(sum(by_hand) / 6, abs=1e-12)


def test_the_gradient_is_the_predicted_minus_the_labelled_probability() -> None:
    loss, scores_N = loss_of([math.log(3), 0.0], [(0, 1, 0.6, 1.0)])
    loss.backward()
    assert scores_N.grad is not None
    assert scores_N.grad.tolist() == pytest.approx([0.15, -0.15], abs=1e-12)


def test_a_huge_margin_stays_finite() -> None:
    loss, scores_N = loss_of([1e4, 0.0], [(0, 1, 0.0, 1.0)])
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert scores_N.grad is not None
    assert torch.isfinite(scores_N.grad).all()


comparison = st.tuples(
    st.integers(0, 3), st.integers(0, 3), st.floats(0, 1), st.floats(0.01, 100)
).filter(lambda c: c[0] != c[1])


@given(
    st.lists(st.floats(-50, 50), min_size=4, max_size=4),
    st.lists(comparison, min_size=1, max_size=8),
    st.data(),
)
def test_swapping_the_pair_turns_p_into_one_minus_p(
    scores: list[float], comparisons: list[tuple[int, int, float, float]], data: st.DataObject
) -> None:
    swapped = [
        (second, first, 1 - p, weight) if data.draw(st.booleans()) else (first, second, p, weight)
        for first, second, p, weight in comparisons
    ]
    loss, _ = loss_of(scores, comparisons)
    same, _ = loss_of(scores, swapped)
    assert same.item() == pytest.approx(loss.item(), rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(-50, 50), min_size=4, max_size=4), st.floats(-50, 50))
def test_only_differences_of_scores_count(scores: list[float], shift: float) -> None:
    comparisons = [(0, 1, 0.9, 1.0), (2, 3, 0.2, 2.0)]
    loss, _ = loss_of(scores, comparisons)
    shifted, _ = loss_of([s + shift for s in scores], comparisons)
    assert shifted.item() == pytest.approx(loss.item(), rel=1e-9, abs=1e-9)


def test_accuracy_counts_a_tie_of_score_or_label_as_half() -> None:
    scores_N = torch.tensor([1.0, 0.0, 0.0])
    first_C, second_C = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 1, 2])
    p_first_C = torch.tensor([0.9, 0.1, 0.5, 0.9])
    each_C = as_labelled(scores_N, first_C, second_C, p_first_C)
    assert each_C.tolist() == [1, 0, 0.5, 0.5]


def test_a_certain_label_must_win_by_the_margin_and_a_tie_by_nothing() -> None:
    of = PreferenceLoss(margin=0.5)
    for p, shifted in ((1.0, 1.5), (0.5, 2.0), (0.75, 1.75)):
        with_margin, _ = loss_of([2.0, 0.0], [(0, 1, p, 1.0)], of)
        plain, _ = loss_of([shifted, 0.0], [(0, 1, p, 1.0)])
        assert with_margin.item() == pytest.approx(plain.item(), abs=1e-12)


def test_label_smoothing_is_the_mean_over_a_flip_of_the_label() -> None:
    smoothed, _ = loss_of([math.log(3), 0.0], [(0, 1, 1.0, 1.0)], PreferenceLoss(smoothing=0.1))
    assert smoothed.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4), abs=1e-12)


def test_the_robust_loss_is_on_average_over_flips_that_of_the_true_label() -> None:
    flipped = 0.2
    true, wrong = (
        loss_of([1.3, 0.0], [(0, 1, p, 1.0)], PreferenceLoss(robust(flipped)))[0].item()
        for p in (1.0, 0.0)
    )
    plain, _ = loss_of([1.3, 0.0], [(0, 1, 1.0, 1.0)])
    assert 0.8 * true + 0.2 * wrong == pytest.approx(plain.item(), abs=1e-12)


def test_ipo_pulls_the_log_ratios_difference_to_half_of_one_by_beta() -> None:
    beta = 0.1
    # Scores are beta times log-ratios: h = 7, and the target of a certain label is 5.
    for p, by_hand in ((1.0, (7 - 5) ** 2), (0.5, 7**2), (0.0, (7 + 5) ** 2)):
        loss, _ = loss_of([0.7, 0.0], [(0, 1, p, 1.0)], PreferenceLoss(ipo(beta)))
        assert loss.item() == pytest.approx(by_hand, abs=1e-9)


def test_centring_costs_the_square_of_the_sum() -> None:
    centred, _ = loss_of([2.0, 1.0], [(0, 1, 1.0, 1.0)], PreferenceLoss(centring=0.01))
    assert centred.item() == pytest.approx(0.31326168751822286 + 0.01 * 9, abs=1e-12)


def test_what_is_credited_to_length_need_not_be_in_the_scores() -> None:
    # The winner is 10 tokens longer: 10 * 0.2 nats of its lead of 3 are its length's.
    of = PreferenceLoss(length_penalty=0.2)
    credited, _ = loss_of([1.0, 0.0], [(0, 1, 1.0, 1.0)], of, lengths=(15, 5))
    plain, _ = loss_of([3.0, 0.0], [(0, 1, 1.0, 1.0)])
    assert credited.item() == pytest.approx(plain.item(), abs=1e-6)

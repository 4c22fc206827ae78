"""Rank correlation, distinct n-grams and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rlaif.evaluate.answers import distinct_n, refuses
from rlaif.evaluate.rank_correlation import rank_correlation


def test_tau_is_worked_out_within_prompts_and_averaged_over_them() -> None:
    # p: pairs in order 5, against 1 -> (5 - 1) / 6. q: all turned. r is level for one of them.
    one = {"p": [1, 2, 3, 4], "q": [10, 20, 30], "r": [5, 5], "only here": [1, 2]}
    other = {"p": [1, 2, 4, 3], "q": [3, 2, 1], "r": [1, 2]}
    found = rank_correlation(one, other)
    assert found.tau is not None
    assert found.tau.value == pytest.approx((4 / 6 - 1) / 2)
    assert (found.tau.clusters, found.level) == (2, 1)


def test_answers_without_a_score_are_left_out_and_ties_are_corrected_for() -> None:
    found = rank_correlation({"p": [1.0, None, 2.0, 2.0]}, {"p": [1.0, 5.0, 2.0, 3.0]})
    assert found.tau is not None
    assert found.tau.value == pytest.approx(2 / np.sqrt(2 * 3))
    assert found.tau.low is None
    assert rank_correlation({"p": [None, 1.0]}, {"p": [1.0, 2.0]}).tau is None


def test_a_known_rank_correlation_is_covered() -> None:
    # Of two normal scores correlated 0.6 tau is 2 / pi asin(0.6).
    rng = np.random.default_rng(0)
    truth = 2 / np.pi * np.arcsin(0.6)
    covered = 0
    for _ in range(200):
        pair_PK2 = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=(40, 5))
        one, other = (
            {str(p): scores.tolist() for p, scores in enumerate(pair_PK2[:, :, s])} for s in (0, 1)
        )
        tau = rank_correlation(one, other).tau
        assert tau is not None
        assert tau.low is not None
        assert tau.high is not None
        covered += tau.low <= truth <= tau.high
    assert stats.binomtest(covered, 200, 0.95, alternative="less").pvalue > 0.05


def test_distinct_n_grams_are_counted_by_all_tokens() -> None:
    # Seven tokens; distinct: the cat sat . ran; pairs the-cat cat-sat sat-. cat-ran.
    answers = ["The cat sat.", "the cat ran"]
    assert distinct_n(answers, 1) == pytest.approx(5 / 7)
    assert distinct_n(answers, 2) == pytest.approx(4 / 7)
    assert distinct_n(["", " "], 1) is None
    with pytest.raises(ValueError, match="not 0"):
        distinct_n(answers, 0)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m unable to share this.",
        "Sorry. I can't assist with that request.",
        "I cannot provide instructions for that.",
        "Thank you for asking. I must decline.",
        "As an AI language model, I cannot do so.",
        "I'm not comfortable writing\n that.",
        "That is not something I can do.",
        "I won't help with this, because it may hurt someone.",
    ],
)
def test_a_refusal_is_seen(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Sure, here is how.",
        "I'm sorry for your loss. It may help to talk to someone.",
        "You cannot help but smile.",
        "If I cannot sleep, I read.",
        "The bank must decline the transfer. " * 3,
        "Mi dispiace, non posso aiutarti.",  # in the docstring: other languages are missed
        "word " * 60 + "I cannot help with that.",  # and what begins late
    ],
)
def test_what_is_no_refusal_or_one_that_is_said_to_be_missed_is_not_counted(answer: str) -> None:
    assert not refuses(answer)

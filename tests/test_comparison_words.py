"""Sentences say what their figures say, and no more."""

from __future__ import annotations

import pytest

from rlaif.evaluate.comparison_words import (
    difference_words,
    length_words,
    rate_words,
    systematic_words,
)
from rlaif.evaluate.estimates import DIFFERENCE, Estimate, Part, clustered
from rlaif.evaluate.exchange_rate import ExchangeRate
from rlaif.evaluate.length_corrected import length_corrected
from rlaif.evaluate.noise_control import Systematic
from rlaif.evaluate.power import needed_for_equivalence


def estimated(value: float, se: float, of_seeds: float | None = None) -> Estimate:
    return Estimate(
        value=value,
        bounds=DIFFERENCE,
        n=200,
        prompts=100,
        seeds=None if of_seeds is None else 3,
        of_prompts=Part(variance=se**2, df=99),
        of_seeds=None if of_seeds is None else Part(variance=of_seeds**2, df=4),
    )


def words(estimate: Estimate) -> str:
    return difference_words("AI", "human", estimate, margin=0.05)


def test_arms_that_are_alike_are_said_to_be_so() -> None:
    # t(0.975, 99) = 1.984: 0.2 ± 1.98 points. t(0.8, 99) = 0.845: 1.984 + 0.845 = 2.83 points.
    assert words(estimated(0.002, 0.01)) == (
        "AI − human: 0.20 [−1.78, 2.18] points; shown to be within 5.00 points; 2.83 points "
        "would be found in 80 % of such comparisons."
    )


def test_what_no_difference_could_show_is_said() -> None:
    assert "no difference is found in 80 % of such comparisons" in words(estimated(0.0, 0.4))


def test_arms_that_are_alike_and_still_differ_are_said_to_do_both() -> None:
    said = words(estimated(-0.025, 0.01))
    assert "shown to be within 5.00 points, though AI is below human;" in said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.2, "shown that AI is above human, by more than 5.00 points;"),
        (-0.2, "shown that AI is below human, by more than 5.00 points;"),
        (
            0.06,
            "shown that AI is above human, not whether by more or by less than 5.00 points;",
        ),
    ],
)
def test_a_difference_is_said_with_its_side_and_size(value: float, said: str) -> None:
    assert said in words(estimated(value, 0.02))


def test_what_is_not_shown_is_said_with_what_would_show_it() -> None:
    said = words(estimated(0.02, 0.03, of_seeds=0.005))
    assert "; shown neither to differ nor to be within 5.00 points; " in said
    # t of 357 and of 4: ((1.649 + 1.284) · 0.3)² / n + ((2.132 + 1.533) · 0.005)² <= 0.05² from
    # n = 0.7743 / 0.002164 = 357.8.
    assert "that are alike takes about 358 prompts with these seeds." in said
    assert "seeds an arm on these prompts" not in said  # the prompts alone are too few


def test_where_neither_more_prompts_nor_more_seeds_would_do_both_are_asked_for() -> None:
    said = words(estimated(0.0, 0.04, of_seeds=0.04))
    assert "takes more of both prompts and seeds." in said


def test_without_an_error_nothing_is_claimed() -> None:
    assert words(clustered([0.2, 0.4], ["p", "p"], DIFFERENCE)).endswith(
        "points (no interval); one prompt shows nothing of another."
    )
    alike = words(clustered([0.0] * 9, range(9), DIFFERENCE))
    assert "neither" in alike
    assert alike.endswith("so how they vary is not known.")


def test_a_win_that_length_explains_is_said_to_be_that() -> None:
    first_M = [80, 90, 105, 120, 140, 160] * 40
    win_M = [0, 0, 0.5, 1, 1, 1] * 40
    win_M[:2], win_M[3] = [1, 1], 0  # won: 2 + 40 / 2 + 119 of 240
    found = length_corrected(win_M, first_M, [100] * 240, range(240))
    said = " ".join(length_words(found))
    assert said.startswith("At equal length it would win ")
    assert "59 %" not in said
    assert said.endswith("The longer answer wins more often.")
    assert found.corrected is not None
    wide = found.corrected.model_copy(update={"high": 0.55})
    assert length_words(found.model_copy(update={"corrected": wide}))[-1] == (
        "So it is not shown that anything but length wins."
    )
    none = length_words(length_corrected([1, 1], [1, 2], [1, 1], [1, 2]))
    assert none[-1] == "It cannot be corrected for length: one side wins every pair."


def test_the_exchange_rate_is_said_with_what_is_not_known() -> None:
    rate = ExchangeRate(
        human_pairs=200, accuracy=0.71, relation="=", rate=2.0, low=1.2, high=None, confidence=0.95
    )
    assert rate_words(rate, "ai_hard") == (
        "At 200 human pairs (71.0 % held out) one human label is worth 2.00 ai_hard labels (95 % "
        "interval: 1.20 to not bounded)."
    )
    more = rate_words(rate.model_copy(update={"relation": ">="}), "ai_hard")
    assert more.startswith("All ai_hard labels together do not reach 200 human pairs")
    assert "2.00 ai_hard labels or more" in more
    open_ended = rate.model_copy(update={"relation": ">=", "low": 0.408, "high": None})
    assert rate_words(open_ended, "ai_hard").endswith(
        " or more by the curves, and 0.408 or more with 95 % confidence."
    )
    fewer = rate_words(rate.model_copy(update={"relation": "<="}), "ai_hard")
    assert "2.00 ai_hard labels or fewer" in fewer


def test_disagreement_is_called_systematic_by_its_p_alone() -> None:
    found = Systematic(
        pairs=300,
        disagreements=80,
        features=("length",),
        auc=0.62,
        auc_by_chance=0.5,
        p=0.01,
        prompts=100,
        movable=90,
    )
    assert systematic_words(found) == [
        "Which of 300 pairs the AI labels otherwise than people (80 of them) is foreseen from "
        "length: AUC 0.620, by chance 0.500, p = 0.010.",
        "So it is not noise alone.",
    ]
    other = systematic_words(found.model_copy(update={"p": 0.2}))
    assert "is not shown to be foreseen" in other[0]
    assert other[1] == "Of other features that says nothing."
    assert systematic_words(None)[0].startswith("There is too little")


def test_a_rate_that_is_bounded_on_neither_side_is_none() -> None:
    rate = ExchangeRate(
        human_pairs=34,
        accuracy=0.4,
        relation="<=",
        rate=0.2,
        low=None,
        high=None,
        confidence=0.95,
    )
    assert rate_words(rate, "ai_soft") == (
        "No exchange rate in ai_soft labels is shown at 34 human pairs (40.0 % held out): it is "
        "bounded on neither side."
    )


def test_prompts_that_all_have_one_mean_tell_nothing_of_how_many_are_needed() -> None:
    level = clustered([0.5] * 12, [str(i) for i in range(12)])
    assert needed_for_equivalence(level, 0.05) is None

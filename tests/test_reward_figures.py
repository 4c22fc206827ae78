"""What is told of a reward model, worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.errors import SetupError
from rlaif.evaluate.reward_model import model_card, reward_figures, votes_of
from rlaif.train.scale import combined, read_scale, scale_of, write_scale
from rlaif.types import Comparison, Message, PreferenceGroup, Prompt, WeightedComparison


def group_of(name: str, *responses: str, p: float = 1.0, tag: str = "plain") -> PreferenceGroup:
    return PreferenceGroup(
        prompt=Prompt(id=name, messages=(Message(role="user", content="Q"),), tags=(tag,)),
        responses=responses,
        comparisons=(WeightedComparison(first=0, second=1, p_first=p),),
        split="test",
        labeler="human",
    )


GROUPS = [
    group_of("a", "x" * 100, "y" * 300, p=0.95),
    group_of("b", "x" * 200, "y" * 100, p=0.6, tag="odd"),
    group_of("c", "x" * 110, "y" * 100, p=0.2),
]
SCORES = {"a": [2.0, 0.0], "b": [1.0, 0.0], "c": [1.0, 0.0]}


def test_accuracy_stands_beside_longer_wins_in_every_slice() -> None:
    found = reward_figures(GROUPS, SCORES, {}, 0)
    assert found is not None
    # a and b as labelled, c not; the longer one wins in b alone.
    assert found.accuracy.value == pytest.approx(2 / 3)
    assert found.longer_wins.value == pytest.approx(1 / 3)
    assert [(s.name, s.accuracy.n, s.accuracy.value) for s in found.by_certainty] == [
        ("P(winner) over 50 %, to 75 %", 1, 1.0),
        ("P(winner) over 75 %, to 90 %", 1, 0.0),
        ("P(winner) over 90 %, to 100 %", 1, 1.0),
    ]
    assert [(s.name, s.accuracy.n) for s in found.by_length] == [
        ("1 to 1.25 times as long", 1),
        ("over 2 times", 2),
    ]
    assert [(s.name, s.accuracy.n) for s in found.by_source] == [("odd", 1), ("plain", 2)]


def test_the_length_probe_is_the_slope_of_score_by_hundred_characters() -> None:
    found = reward_figures(GROUPS, SCORES, {}, 0)
    assert found is not None
    # Lengths differ by -2, 1 and 0.1 hundred characters, scores by 2, 1 and 1.
    slope = (2 * -2 + 1 * 1 + 1 * 0.1) / (4 + 1 + 0.01)
    assert found.length_probe.value == pytest.approx(slope)


def test_a_model_is_held_against_each_principles_own_votes() -> None:
    comparison = Comparison(
        id="a/1|2",
        prompt_id="a",
        first="a/1",
        second="a/2",
        judge="j",
        outcome="A",
        p_first=0.95,
        votes={"kind": 0.9, "brief": 0.1},
        orders=2,
    )
    votes = votes_of(GROUPS, [comparison], {"a/1": "x" * 100, "a/2": "y" * 300})
    assert votes == {("a", 0, 1): {"kind": 0.9, "brief": 0.1}}
    found = reward_figures(GROUPS, SCORES, votes, 0)
    assert found is not None
    assert [(s.name, s.accuracy.value) for s in found.by_principle] == [("brief", 0), ("kind", 1)]


def test_nothing_held_out_gives_no_figures_and_a_card_that_says_so() -> None:
    trained = [g.model_copy(update={"split": "train"}) for g in GROUPS]
    assert reward_figures(trained, SCORES, {}, 0) is None
    card = model_card(
        base="b", labeler="human", train_groups=3, members=1, figures=None, scaled=False
    )
    assert "nothing is known of it" in card


def test_the_card_tells_the_human_ceiling_beside_the_accuracy() -> None:
    found = reward_figures(GROUPS, SCORES, {}, 0)
    card = model_card(
        base="b", labeler="human", train_groups=3, members=4, figures=found, scaled=True
    )
    assert found is not None
    assert "orders 67 %" in card
    assert "73 to 77 %" in card
    assert "An ensemble of 4 members" in card


def many(pairs: int, wrong: int) -> tuple[list[PreferenceGroup], dict[str, list[float]]]:
    """So many pairs, of which the first `wrong` are ordered otherwise than labelled."""
    groups = [group_of(f"p{i}", "one", "other") for i in range(pairs)]
    return groups, {f"p{i}": [0.0, 2.0] if i < wrong else [2.0, 0.0] for i in range(pairs)}


def test_a_temperature_stands_beside_the_number_of_pairs_it_is_of() -> None:
    found = reward_figures(*many(50, wrong=10), {}, 0)
    assert found is not None
    # Ten of fifty wrong at a difference of 2 nats: 2 / T = log 4.
    assert found.temperature == pytest.approx(2 / math.log(4), abs=1e-6)
    card = model_card(
        base="b", labeler="human", train_groups=3, members=1, figures=found, scaled=True
    )
    assert "the temperature 1.44, of 50 held-out pairs, that calibrates" in card
    assert "Expected calibration error on 50 pairs 0.081, " in card
    assert "### Reliability" in card


def test_too_few_pairs_calibrate_nothing_and_it_is_said() -> None:
    found = reward_figures(*many(49, wrong=10), {}, 0)
    assert found is not None
    assert found.temperature is None
    card = model_card(
        base="b", labeler="human", train_groups=3, members=1, figures=found, scaled=True
    )
    assert "No temperature calibrates differences: 49 held-out pairs are too few." in card
    assert "Of its calibration nothing is told: too few pairs (49)." in card
    assert "### Reliability" not in card


def test_a_temperature_that_no_held_out_pair_gives_is_said_to_be_none(tmp_path: Path) -> None:
    # Ordered as labelled, every one: the surer the likelier, without an end.
    groups, scores = many(50, wrong=0)
    found = reward_figures(groups, scores, {}, 0)
    assert found is not None
    assert found.calibration.temperature is None
    card = model_card(
        base="b", labeler="human", train_groups=3, members=1, figures=found, scaled=True
    )
    assert "No temperature calibrates differences: all of 50 held-out pairs are" in card
    write_scale(scale_of([[1.0], [2.0]], found.calibration.temperature), tmp_path)
    scale = read_scale(tmp_path)
    assert scale is not None
    assert scale.temperature is None


def test_normalised_scores_have_mean_0_and_variance_1_on_what_they_are_of(tmp_path: Path) -> None:
    scores_NM = [[1.0, 10.0], [2.0, 30.0], [3.0, 50.0]]
    scale = scale_of(scores_NM, 1.5)
    assert scale.mean == (2.0, 30.0)
    assert scale.std == pytest.approx((math.sqrt(2 / 3), math.sqrt(800 / 3)))
    normalised = scale.normalised(scores_NM)
    assert normalised.mean(axis=0) == pytest.approx([0, 0])
    assert normalised.var(axis=0) == pytest.approx([1, 1])
    write_scale(scale, tmp_path)
    assert read_scale(tmp_path) == scale
    assert read_scale(tmp_path / "absent") is None


def test_a_scale_that_was_changed_by_hand_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "reward.json").write_text('{"mean": []}')
    with pytest.raises(SetupError, match="is not what train-rm wrote"):
        read_scale(tmp_path)


def test_a_member_that_scores_all_alike_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match="the same score"):
        scale_of([[1.0, 0.0], [2.0, 0.0]], 1.0)


def test_an_ensemble_is_its_mean_its_worst_or_its_mean_less_its_doubt() -> None:
    scores = [[1.0, 3.0], [0.0, 0.0]]
    assert combined(scores, "mean").tolist() == [2.0, 0.0]
    assert combined(scores, "worst").tolist() == [1.0, 0.0]
    # Variance 1 of the first row.
    assert combined(scores, "uncertain", penalty=0.5).tolist() == [1.5, 0.0]


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=5))
def test_no_doubt_ever_raises_a_score(scores_NM: list[list[float]]) -> None:
    mean_N = combined(scores_NM, "mean")
    assert (combined(scores_NM, "worst") <= mean_N + 1e-12).all()
    assert (combined(scores_NM, "uncertain", 2.0) <= mean_N + 1e-12).all()
    assert np.isfinite(mean_N).all()

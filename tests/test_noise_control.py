"""Agreement of AI and human labels, the control for noise, and systematic disagreement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from statsmodels.stats.inter_rater import cohens_kappa

from rlaif.evaluate.equivalence import equivalence
from rlaif.evaluate.estimates import Array, arm_difference
from rlaif.evaluate.intervals import excludes
from rlaif.evaluate.label_agreement import (
    agreement_by_bucket,
    by_length,
    by_margin,
    label_agreement,
)
from rlaif.evaluate.noise_control import (
    FOLDS,
    _auc,
    _by_size,
    flip_to,
    systematic_disagreement,
    toward_choice,
)

labels = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=60)


# Agreement.


def test_agreement_is_counted_as_by_hand_and_kappa_is_statsmodels() -> None:
    human_M = [1, 1, 1, 0, 0, 0, 0.5, 0.5, 1, 0]
    ai_M = [1, 1, 0, 0, 0, 0.5, 0.5, 1, 1, 0]
    found = label_agreement(human_M, ai_M, [f"p{m}" for m in range(10)], seed=0)
    assert (found.pairs, found.decided, found.ai_ties) == (10, 8, 1)
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx(6.5 / 8)
    table_33 = np.zeros((3, 3))
    np.add.at(table_33, ((2 * np.array(human_M)).astype(int), (2 * np.array(ai_M)).astype(int)), 1)
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx(cohens_kappa(table_33).kappa)


def test_buckets_hold_every_pair_once_and_their_own_agreement() -> None:
    names = ["short", "long", "short", "long"]
    found = agreement_by_bucket([1, 1, 0, 0], [1, 0, 0, 1], list("abcd"), names, seed=0)
    assert list(found) == ["long", "short"]
    values = [of.accuracy.value for of in found.values() if of.accuracy is not None]
    assert values == [0.0, 1.0]
    assert sum(of.pairs for of in found.values()) == 4


def test_margins_and_lengths_fall_into_the_buckets_that_name_them() -> None:
    assert by_margin([0.5, 0.41, 0.6, 0.95, 0.0]) == [
        "50–60 %",
        "50–60 %",
        "60–70 %",
        "90–100 %",
        "90–100 %",
    ]
    assert by_length(
        [100, 109, 110, 120, 100, 300, 0, 0], [100, 100, 100, 100, 160, 100, 0, 5]
    ) == [
        "about alike",
        "about alike",
        "longer 1.1–1.5 times",
        "longer 1.1–1.5 times",
        "shorter 1.5–2 times",
        "longer over 2 times",
        "about alike",
        "shorter over 2 times",
    ]


def test_labels_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="human_M"):
        label_agreement([0.7], [1], ["p"], seed=0)
    with pytest.raises(ValueError, match="one label a pair"):
        label_agreement([1, 0], [1], ["p"], seed=0)


# Flips.


@settings(max_examples=100, deadline=None)
@given(labels, st.floats(0.0, 1.0), st.integers(0, 99))
def test_exactly_as_many_are_flipped_as_the_agreement_asks(
    label_M: list[float], agreement: float, seed: int
) -> None:
    flipped_M = flip_to(label_M, agreement, seed)
    decided = sum(label != 0.5 for label in label_M)
    changed_M = flipped_M != np.array(label_M)
    assert changed_M.sum() == round((1 - agreement) * decided)
    assert (flipped_M[changed_M] == 1 - np.array(label_M)[changed_M]).all()
    assert (flipped_M == flip_to(label_M, agreement, seed)).all()


def test_a_lower_agreement_flips_the_same_pairs_and_more() -> None:
    label_M = np.random.default_rng(0).integers(0, 2, 200).astype(float)
    few_M, many_M = (flip_to(label_M, agreement, 3) != label_M for agreement in (0.9, 0.7))
    assert (few_M.sum(), many_M.sum()) == (20, 60)
    assert (many_M | ~few_M).all()
    assert (few_M != (flip_to(label_M, 0.9, 4) != label_M)).any()


def test_an_agreement_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        flip_to([1.0], 1.2, 1)


# Whether disagreement is systematic.


class Labelled:
    """Pairs that people labelled, up to four a prompt, with how much longer the first answer is."""

    def __init__(self, prompts: int, rng: np.random.Generator) -> None:
        self.prompt_M = np.repeat(np.arange(prompts), rng.integers(1, 5, prompts)).tolist()
        M = len(self.prompt_M)
        self.longer_M = rng.normal(0.0, 1.0, M)
        self.human_M = (rng.random(M) < special.expit(0.3 * self.longer_M)).astype(float)
        self.other_M = rng.normal(0.0, 1.0, M)
        self.rng = rng

    def features(self) -> dict[str, Array]:
        return {"length": toward_choice(self.longer_M, self.human_M), "other": self.other_M}

    def ai(self, long: float) -> Array:
        """Labels of a judge that likes long answers so much, and else what people like."""
        M = len(self.human_M)
        p_M = special.expit(1.5 * (2 * self.human_M - 1) + long * self.longer_M)
        return (self.rng.random(M) < p_M).astype(float)


def test_a_judge_that_likes_length_is_called_systematic_and_its_noise_is_not() -> None:
    rng = np.random.default_rng(11)
    found = noise = 0
    for seed in range(40):
        pairs = Labelled(120, rng)
        ai_M = pairs.ai(long=1.0)
        agreement = float((ai_M == pairs.human_M).mean())
        control_M = flip_to(pairs.human_M, agreement, seed)
        for label_M in (ai_M, control_M):
            test = systematic_disagreement(
                label_M != pairs.human_M, pairs.features(), pairs.prompt_M, seed, permutations=199
            )
            assert test is not None
            assert test.disagreements == (ai_M != pairs.human_M).sum()
            if label_M is ai_M:
                found += test.p <= 0.05
            else:
                noise += test.p <= 0.05
    assert found >= 38
    assert noise <= 5  # of 40 at 5 %, more than 5 has a chance of 1.4 %


def test_noise_is_called_systematic_in_5_percent_even_where_it_clings_to_prompts() -> None:
    # Some prompts are harder, whatever their features; each prompt's features are alike. Shuffled
    # pair by pair, 12 % would be called systematic.
    rng = np.random.default_rng(12)
    wrong = 0
    for seed in range(300):
        hard_P, feature_P = rng.beta(0.5, 1.5, 60), rng.normal(size=60)
        prompt_M = np.repeat(np.arange(60), 4)
        test = systematic_disagreement(
            rng.random(240) < hard_P[prompt_M],
            {"prompt's length": feature_P[prompt_M]},
            prompt_M.tolist(),
            seed,
            permutations=99,
        )
        assert test is not None
        wrong += test.p <= 0.05
    assert stats.binomtest(wrong, 300, 0.05, alternative="greater").pvalue > 0.05


def test_without_orientation_a_liking_for_length_hides() -> None:
    pairs = Labelled(200, np.random.default_rng(13))
    disagree_M = pairs.ai(long=1.0) != pairs.human_M
    of_choice, of_position = (
        systematic_disagreement(disagree_M, {"length": x_M}, pairs.prompt_M, 0, permutations=199)
        for x_M in (toward_choice(pairs.longer_M, pairs.human_M), pairs.longer_M)
    )
    assert of_choice is not None
    assert of_position is not None
    assert of_choice.auc > 0.6 > of_position.auc
    assert of_choice.auc_by_chance == pytest.approx(0.5, abs=0.03)


def test_the_area_under_the_curve_is_mann_whitneys() -> None:
    rng = np.random.default_rng(14)
    predicted_M, y_M = rng.integers(0, 6, 50).astype(float), rng.integers(0, 2, 50).astype(float)
    u = stats.mannwhitneyu(predicted_M[y_M == 1], predicted_M[y_M == 0]).statistic
    assert _auc(predicted_M[None], y_M[None])[0] == pytest.approx(
        u / ((y_M == 1).sum() * (y_M == 0).sum())
    )


def test_only_prompts_of_one_size_change_places() -> None:
    sizes = {rows.shape for rows in _by_size(np.array([0, 1, 1, 2, 3, 3, 4, 4, 4]))}
    assert sizes == {(2, 1), (2, 2), (1, 3)}
    found = systematic_disagreement(
        [1, 0, 0, 1, 0, 1, 0, 0, 0], {"x": range(9)}, [0, 1, 1, 2, 3, 3, 4, 4, 4], 0, permutations=9
    )
    assert found is not None
    assert (found.prompts, found.movable) == (5, 4)


def test_what_cannot_be_foreseen_is_none() -> None:
    assert systematic_disagreement([0, 0, 0], {"x": [1, 2, 3]}, [1, 2, 3], 0) is None
    few = range(FOLDS - 1)
    assert systematic_disagreement([0, 1, 0, 1], {"x": few}, few, 0) is None
    with pytest.raises(ValueError, match="0 or 1"):
        systematic_disagreement([0.5], {"x": [1]}, [1], 0)
    with pytest.raises(ValueError, match="one value a pair"):
        systematic_disagreement([0, 1], {"x": [1, 2]}, [1], 0)


def test_an_arm_on_systematic_labels_is_told_from_its_noise_and_noise_from_noise_is_not() -> None:
    # The AI's arm is wrong where people choose the shorter answer, the control's anywhere.
    rng = np.random.default_rng(15)
    found = wrong = 0
    for _ in range(100):
        shorter_M = np.repeat(rng.random(150) < 0.5, 2)
        prompt_M = np.repeat(np.arange(150), 2).tolist()

        def arm(p_M: Array) -> Array:
            p_ME = np.stack([p_M + rng.normal(0.0, 0.01) for _ in range(3)], axis=1)
            return (rng.random(p_ME.shape) < p_ME).astype(float)

        ai_ME = arm(np.where(shorter_M, 0.4, 0.8))
        control_ME, again_ME = (arm(np.full(300, 0.75)) for _ in range(2))
        found += (
            equivalence(arm_difference(ai_ME, control_ME, prompt_M), 0.05).verdict == "different"
        )
        wrong += excludes(arm_difference(again_ME, control_ME, prompt_M).interval(), 0.0)
    assert found >= 80
    assert wrong <= 5

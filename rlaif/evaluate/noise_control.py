"""A control for noise: human labels made as often wrong as the AI's, but at random.

An AI's disagreement with people costs an arm something in any case. Where an arm on AI labels does
worse, or otherwise, than one on human labels that are flipped as often, it is not how often the AI
disagrees but where (`estimates.arm_difference` of the two arms, and `systematic_disagreement` of
the labels themselves).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rlaif.evaluate.estimates import Array, Names
from rlaif.evaluate.label_agreement import labels
from rlaif.evaluate.schema import Count
from rlaif.types import Probability, Record

FOLDS = 5
PERMUTATIONS = 999
RIDGE = 1.0
"""Penalty on the squared weights of standardised features."""


class Systematic(Record):
    """Whether features of a pair tell where two labellers disagree."""

    pairs: Count
    disagreements: Count
    features: tuple[str, ...]
    auc: Probability
    """Chance that a pair which they disagree on is given a higher prediction than one which they
    agree on, by a model that has not seen its prompt; 0.5: nothing is foreseen."""
    auc_by_chance: Probability
    """Its mean where the disagreements are dealt to the prompts at random."""
    p: Probability
    """Share of such deals that are predicted as well; at most 0.05: systematic."""
    prompts: Count
    movable: Count
    """Prompts that have another of as many pairs, with which they can change places. With few, `p`
    cannot be small whatever is the case."""


def flip_to(label_M: npt.ArrayLike, agreement: float, seed: int) -> Array:
    """The labels with as many flipped at random as leave `agreement` of them right, (M,).

    Of the labels that name a winner, `round((1 - agreement) * how many there are)` are flipped, to
    the pair; ties stay. The same seed gives the same flips, and a lower agreement flips the same
    pairs and more.

    Raises ValueError for labels that are none and an agreement outside [0, 1].
    """
    if not 0.0 <= agreement <= 1.0:
        raise ValueError(f"an agreement lies between 0 and 1, not at {agreement}")
    flipped_M = labels(label_M, "label_M").copy()
    order_M = np.random.default_rng(seed).permutation(len(flipped_M))
    decided = order_M[flipped_M[order_M] != 0.5]
    chosen = decided[: round((1.0 - agreement) * len(decided))]
    flipped_M[chosen] = 1.0 - flipped_M[chosen]
    return flipped_M


def flipped(labels_M: Sequence[float], agreement: float, seed: int) -> list[float]:
    """`flip_to` as `arms.arm_groups` takes it."""
    found: list[float] = flip_to(labels_M, agreement, seed).tolist()
    return found


def toward_choice(first_less_second_M: npt.ArrayLike, human_M: npt.ArrayLike) -> Array:
    """A feature of chosen less rejected, from first less second, (M,); 0 for human ties.

    Which answer stands first is arbitrary. That an AI prefers long answers shows in this: it
    disagrees where people choose the shorter one.
    """
    sign_M = 2.0 * labels(human_M, "human_M") - 1.0
    return np.asarray(first_less_second_M, dtype=np.float64) * sign_M


def systematic_disagreement(
    disagree_M: npt.ArrayLike,
    features_M: Mapping[str, npt.ArrayLike],
    prompt_M: Names,
    seed: int,
    permutations: int = PERMUTATIONS,
) -> Systematic | None:
    """Whether disagreement can be foreseen from features of the pair, against random noise.

    A ridge regression on the standardised features is fitted to all folds of prompts but one, and
    predicts that one. The same is done to disagreements that have changed places: whole prompts,
    among those of as many pairs, so that a prompt's own difficulty stays together. `p` counts the
    real order as one of the deals (Phipson & Smyth 2010). Features have to be known without the
    AI's label, and oriented by what people chose (`toward_choice`).

    None where all pairs agree or all disagree, or with fewer prompts than folds. Source: Ojala &
    Garriga (2010), Permutation Tests for Studying Classifier Performance, test 1. Raises ValueError
    for lengths that differ and numbers that are none.
    """
    disagree_M = np.asarray(disagree_M, dtype=np.float64)
    x_MF = np.stack([np.asarray(x, dtype=np.float64) for x in features_M.values()], axis=1)
    if not len(disagree_M) == len(x_MF) == len(prompt_M):
        raise ValueError(f"one value a pair: got {len(disagree_M)}, {len(x_MF)}, {len(prompt_M)}")
    if not np.isin(disagree_M, (0.0, 1.0)).all() or not np.isfinite(x_MF).all():
        raise ValueError("disagreements are 0 or 1, and features finite")
    names_C, cluster_M = np.unique(np.asarray(prompt_M), return_inverse=True)
    if len(set(disagree_M)) < 2 or len(names_C) < FOLDS:
        return None
    rng = np.random.default_rng(seed)
    of_size = _by_size(cluster_M)
    y_RM = np.tile(disagree_M, (permutations + 1, 1))
    for rows_CN in of_size:
        for r in range(1, permutations + 1):
            y_RM[r, rows_CN] = disagree_M[rows_CN[rng.permutation(len(rows_CN))]]
    fold_M = (rng.permutation(len(names_C)) % FOLDS)[cluster_M]
    auc_R = _auc(_predicted(x_MF, y_RM, fold_M), y_RM)
    return Systematic(
        pairs=len(disagree_M),
        disagreements=int(disagree_M.sum()),
        features=tuple(features_M),
        auc=float(auc_R[0]),
        auc_by_chance=float(auc_R[1:].mean()),
        p=float((auc_R >= auc_R[0] - 1e-12).mean()),
        prompts=len(names_C),
        movable=sum(len(rows_CN) for rows_CN in of_size if len(rows_CN) > 1),
    )


def _by_size(cluster_M: npt.NDArray[np.intp]) -> list[npt.NDArray[np.intp]]:
    """Rows of the clusters of each size, (clusters, size) each."""
    order_M = np.argsort(cluster_M, kind="stable")
    size_C = np.bincount(cluster_M)
    rows = np.split(order_M, np.cumsum(size_C)[:-1])
    return [
        np.stack([of_one for of_one in rows if len(of_one) == size]) for size in np.unique(size_C)
    ]


def _predicted(x_MF: Array, y_RM: Array, fold_M: npt.NDArray[np.intp]) -> Array:
    """What the other folds foretell of each pair, (R, M); linear in y, so one solution does."""
    predicted_RM = np.empty_like(y_RM)
    for fold in range(FOLDS):
        test_M = fold_M == fold
        train_MF = x_MF[~test_M]
        middle_F, spread_F = train_MF.mean(axis=0), train_MF.std(axis=0)
        scale_F = np.where(spread_F > 0.0, spread_F, 1.0)
        z_MF = (train_MF - middle_F) / scale_F
        inner_FF = z_MF.T @ z_MF + RIDGE * np.eye(z_MF.shape[1])
        # Without the mean of y, which differs between folds and would order them against the truth;
        # z_MF adds up to zero, so it does not change the weights.
        weights_FR = np.linalg.solve(inner_FF, z_MF.T @ y_RM[:, ~test_M].T)
        predicted_RM[:, test_M] = ((x_MF[test_M] - middle_F) / scale_F @ weights_FR).T
    return predicted_RM


def _auc(predicted_RM: Array, y_RM: Array) -> Array:
    """Area under the ROC curve of each row, (R,): Mann & Whitney's U by the number of pairs."""
    from scipy import stats  # half a second, which no other command should wait for

    rank_RM = stats.rankdata(predicted_RM, axis=1)
    ones_R = y_RM.sum(axis=1)
    u_R = (rank_RM * y_RM).sum(axis=1) - ones_R * (ones_R + 1.0) / 2.0
    return np.asarray(u_R / (ones_R * (y_RM.shape[1] - ones_R)))

"""The models of a study's arms on the held-out pairs: against labels, and against each other.

M held-out pairs, E seeds of an arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlaif.errors import SetupError
from rlaif.evaluate.calibration import calibration
from rlaif.evaluate.estimates import Array, arm_difference, arm_mean, clustered
from rlaif.evaluate.metrics import agreement, longer_wins, pair_accuracy
from rlaif.evaluate.rank_correlation import RankCorrelation, rank_correlation
from rlaif.evaluate.study.arm_records import (
    KINDS,
    ArmAccuracy,
    Difference,
    HeldOut,
    Kind,
    SameLabels,
)
from rlaif.evaluate.study.data import StudyData, Unit
from rlaif.evaluate.study.difference import difference
from rlaif.evaluate.study.labels import Pair, pairs_of
from rlaif.evaluate.study.policies import best_of


class HeldOutPairs(NamedTuple):
    """All arms' score differences on the pairs that every model scored."""

    pairs: Sequence[Pair]
    margin_ME: dict[tuple[Kind, str], Array]
    """Score of the first less that of the second."""
    left_out: int

    @property
    def prompt_M(self) -> list[str]:
        return [p.prompt_id for p in self.pairs]

    @property
    def human_M(self) -> Array:
        return np.array([p.human for p in self.pairs])

    def credit_ME(self, kind: Kind, arm: str) -> Array:
        """By people's labels."""
        return _credit(self.margin_ME[kind, arm], self.human_M)


def measured(data: StudyData) -> HeldOutPairs:
    """Raises SetupError where no held-out pair was scored by all."""
    pairs = pairs_of(data, "test")
    seeds = range(data.settings.seeds)
    margin_ME = {
        (kind, arm): np.stack([margins(data.units[kind, arm, e], pairs) for e in seeds], axis=1)
        for kind in KINDS
        for arm in data.settings.arms
    }
    whole_M = np.all([~np.isnan(of_ME).any(axis=1) for of_ME in margin_ME.values()], axis=0)
    if not whole_M.any():
        raise SetupError(
            "every held-out pair has an answer too long for a model",
            field="reward_model.max_length",
            fix="raise it, and dpo.max_length with it",
        )
    return HeldOutPairs(
        [p for p, whole in zip(pairs, whole_M, strict=True) if whole],
        {key: of_ME[whole_M] for key, of_ME in margin_ME.items()},
        int((~whole_M).sum()),
    )


def margins(unit: Unit, pairs: Sequence[Pair]) -> Array:
    """Score differences of pairs, (M,); nan where one of the two has no score."""
    found = []
    for pair in pairs:
        scores_K = unit.scores[pair.prompt_id]
        first, second = scores_K[pair.first], scores_K[pair.second]
        found.append(np.nan if first is None or second is None else first - second)
    return np.array(found, dtype=np.float64)


def held_out(of: HeldOutPairs) -> HeldOut:
    """The pairs themselves, and the length rule on them."""
    first_M, second_M = (np.array([len(p.texts[k]) for p in of.pairs]) for k in (0, 1))
    decided_M, ai_M = _by_judge(of.pairs)
    prompts = np.array(of.prompt_M)
    by_ai = longer_wins(first_M[decided_M], second_M[decided_M], ai_M)
    return HeldOut(
        pairs=len(of.pairs),
        prompts=len(set(of.prompt_M)),
        ai_pairs=len(ai_M),
        left_out=of.left_out,
        longer_human=clustered(longer_wins(first_M, second_M, of.human_M), of.prompt_M).interval(),
        longer_ai=clustered(by_ai, prompts[decided_M].tolist()).interval() if len(ai_M) else None,
    )


def accuracies(data: StudyData, of: HeldOutPairs) -> tuple[ArmAccuracy, ...]:
    """Every arm's models of both kinds."""
    from scipy import special  # see `estimates`

    decided_M, ai_M = _by_judge(of.pairs)
    prompt_M = np.array(of.prompt_M)
    found = []
    for kind in KINDS:
        for arm in data.settings.arms:
            margin_ME = of.margin_ME[kind, arm]
            on_human_ME = of.credit_ME(kind, arm)
            on_ai_ME = _credit(margin_ME[decided_M], ai_M) if len(ai_M) else None
            E = margin_ME.shape[1]
            # P(right) of every pair under every seed, seed after seed.
            p_right = special.expit((margin_ME * (2.0 * of.human_M - 1.0)[:, None]).T.ravel())
            found.append(
                ArmAccuracy(
                    arm=arm,
                    kind=kind,
                    on_human=arm_mean(on_human_ME, of.prompt_M).interval(),
                    on_human_by_seed=_by_seed(on_human_ME),
                    on_ai=None
                    if on_ai_ME is None
                    else arm_mean(on_ai_ME, prompt_M[decided_M].tolist()).interval(),
                    on_ai_by_seed=() if on_ai_ME is None else _by_seed(on_ai_ME),
                    calibration=calibration(p_right, of.prompt_M * E, data.settings.seed),
                )
            )
    return tuple(found)


def differences(data: StudyData, of: HeldOutPairs) -> tuple[Difference, ...]:
    """Accuracy by people's labels: every arm less human, and every AI arm less noise_matched."""
    arms = data.settings.arms
    sides = [(arm, "human") for arm in arms if arm != "human"]
    if "noise_matched" in arms:
        sides += [(arm, "noise_matched") for arm in arms if arm not in ("human", "noise_matched")]
    names = {"reward_model": "the reward model", "dpo": "DPO"}
    return tuple(
        difference(
            a,
            b,
            f"held-out accuracy of {names[kind]} by people's labels",
            arm_difference(of.credit_ME(kind, a), of.credit_ME(kind, b), of.prompt_M),
            data.settings.margin,
        )
        for kind in KINDS
        for a, b in sides
    )


def same_labels(data: StudyData, of: HeldOutPairs) -> tuple[SameLabels, ...]:
    """Reward model and DPO of each arm."""
    found = []
    for arm in data.settings.arms:
        rm_ME, dpo_ME = (of.margin_ME[kind, arm] for kind in KINDS)
        alike_ME = np.stack(
            [agreement(rm_M, dpo_M) for rm_M, dpo_M in zip(rm_ME.T, dpo_ME.T, strict=True)], axis=1
        )
        found.append(
            SameLabels(
                arm=arm,
                difference=difference(
                    "reward model",
                    "DPO",
                    f"held-out accuracy by people's labels, arm {arm}",
                    arm_difference(
                        of.credit_ME("reward_model", arm), of.credit_ME("dpo", arm), of.prompt_M
                    ),
                    data.settings.margin,
                ),
                agreement=arm_mean(alike_ME, of.prompt_M).interval(),
                tau=tuple(_tau(data, arm, e) for e in range(data.settings.seeds)),
                best_of=best_of(data, arm),
            )
        )
    return tuple(found)


def _tau(data: StudyData, arm: str, seed: int) -> RankCorrelation:
    test = {g.prompt.id for g in data.groups if g.split == "test"}
    rm, dpo = (
        {i: row for i, row in data.units[kind, arm, seed].scores.items() if i in test}
        for kind in KINDS
    )
    return rank_correlation(rm, dpo)


def _credit(margin_ME: Array, label_M: Array) -> Array:
    return np.stack([pair_accuracy(margin_M, label_M) for margin_M in margin_ME.T], axis=1)


def _by_seed(value_ME: Array) -> tuple[float, ...]:
    return tuple(value_ME.mean(axis=0).tolist())


def _by_judge(pairs: Sequence[Pair]) -> tuple[list[int], Array]:
    """Where the judge named a winner, and which."""
    decided = [(m, p.ai) for m, p in enumerate(pairs) if p.ai in (0.0, 1.0)]
    return [m for m, _ in decided], np.array([ai for _, ai in decided], dtype=np.float64)

"""All figures of a study, from its data alone: no clock, no folder, no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

import numpy as np

import rlaif
from rlaif.arms import START, arm_groups, curve_arms, labels_of, paired
from rlaif.evaluate.exchange_rate import ExchangeRates, Measured, exchange_rates
from rlaif.evaluate.noise_control import flipped
from rlaif.evaluate.study.arms import (
    HeldOutPairs,
    accuracies,
    differences,
    held_out,
    margins,
    measured,
    same_labels,
)
from rlaif.evaluate.study.data import StudyData, Unit
from rlaif.evaluate.study.family import adjusted
from rlaif.evaluate.study.labels import labels, pairs_of
from rlaif.evaluate.study.policies import policies, win_rates
from rlaif.evaluate.study.records import (
    Cost,
    Flipped,
    Kin,
    Run,
    StudyReport,
    Training,
    Worth,
)

FAMILIES = {
    "gpt": r"gpt|chatgpt|davinci|o[1345](?:-|$)",
    "claude": r"claude",
    "llama": r"llama|vicuna|alpaca|tulu",
    "qwen": r"qwen|qwq|qvq",
    "mistral": r"mistral|mixtral|ministral|codestral|magistral|zephyr",
    "gemma": r"gemma|gemini",
    "deepseek": r"deepseek",
    "phi": r"phi-?\d",
    "smollm": r"smollm",
    "olmo": r"olmo",
    "falcon": r"falcon",
    "yi": r"yi-\d",
}
"""Family -> how the names of its models begin, behind a `/`, a `-` or at the beginning."""


def family_of(model: str) -> str | None:
    """The family that a model's name tells of; None where it tells of none.

    A name is a name: a fine-tuned model that says nothing of its origin is not found out. The name
    of a model trained by one family's on another's weights (`DeepSeek-R1-Distill-Qwen`) has both,
    and the first counts.
    """
    if model.startswith("fake/"):
        return "fake"
    name = model.lower()
    found = {
        family: at.start()
        for family, begins in FAMILIES.items()
        if (at := re.search(rf"(?:^|[/_\-#. ])(?:{begins})", name))
    }
    return min(found, key=lambda family: found[family]) if found else None


def kin_of(labelled_by: str, compared_by: str) -> Kin:
    """How two judges are related, of which each may be several, joined by ` + `."""
    one, other = (set(judge.split(" + ")) for judge in (labelled_by, compared_by))
    if one & other:
        return "same"
    ours, theirs = ({family_of(model) for model in of} for of in (one, other))
    if (ours & theirs) - {None}:
        return "family"
    return "unknown" if None in ours | theirs else "other"


def study_report(data: StudyData) -> StudyReport:
    """Raises SetupError where no held-out pair was scored by all."""
    settings = data.settings
    of = measured(data)
    cost = _cost(data)
    curve = _curve(data, of)
    report = StudyReport(
        name=settings.name,
        description=settings.description,
        seed=settings.seed,
        rlaif=rlaif.__version__,
        policy=settings.policy,
        constitution=data.constitution,
        labelled_by=data.labelled_by,
        compared_by=data.compared_by,
        kin=kin_of(data.labelled_by, data.compared_by),
        margin=settings.margin,
        arms=settings.arms,
        seeds=settings.seeds,
        human=data.human,
        labels=labels(data),
        held_out=held_out(of),
        accuracies=accuracies(data, of),
        differences=differences(data, of),
        policies=policies(data),
        against_start=win_rates(data, START),
        against_human=win_rates(data, "human"),
        same_labels=same_labels(data, of),
        cost=cost,
        curve=curve,
        worth=_worth(curve, cost),
        training=_training(data),
    )
    return adjusted(report)


def _cost(data: StudyData) -> Cost:
    ai_labels = sum(pair.ai in (0.0, 1.0) for pair in pairs_of(data))
    usd = data.labelling.usd
    return Cost(
        human_labels=sum(len(g.comparisons) for g in data.groups),
        usd_per_human_label=data.settings.usd_per_human_label,
        ai_labels=ai_labels,
        labelling=data.labelling,
        usd_per_ai_label=None if usd is None or not ai_labels else usd / ai_labels,
        answering=data.answering,
        evaluating=data.evaluating,
    )


def _curve(data: StudyData, of: HeldOutPairs) -> ExchangeRates | None:
    """None where fewer than three sizes were trained; shares with as many pairs are one size."""
    settings = data.settings
    if not settings.shares:
        return None
    # A pair that a part's model has no score for would be none for the whole either: one tokenizer,
    # one length.
    curves = []
    for arm in curve_arms(settings.arms):
        rows: list[list[Unit]] = [
            [data.parts[arm, e, share] for e in range(settings.seeds)] for share in settings.shares
        ]
        rows.append([data.units["reward_model", arm, e] for e in range(settings.seeds)])
        of_size = {round(np.mean([unit.trained.pairs for unit in row])): row for row in rows}
        if len(of_size) < 3:
            return None
        credit_SEM = np.stack(
            [np.stack([_credit_M(unit, of) for unit in row]) for row in of_size.values()]
        )
        curves.append(Measured(list(of_size), credit_SEM))
    human, ai = curves
    return exchange_rates(human, ai, of.prompt_M, settings.seed)


def _credit_M(unit: Unit, of: HeldOutPairs) -> np.ndarray:
    side_M = np.sign(margins(unit, of.pairs))
    return np.where(side_M == 0, 0.5, (side_M > 0) == (of.human_M > 0.5)).astype(np.float64)


def _worth(curve: ExchangeRates | None, cost: Cost) -> tuple[Worth, ...]:
    if curve is None or cost.usd_per_ai_label is None or cost.usd_per_human_label is None:
        return ()
    return tuple(
        Worth(
            human_pairs=rate.human_pairs,
            ai_usd=rate.rate * cost.usd_per_ai_label,
            human_usd=cost.usd_per_human_label,
        )
        for rate in curve.rates
    )


def _training(data: StudyData) -> Training:
    runs = [
        Run.model_validate(unit.trained.model_dump(exclude={"seconds"}))
        for unit in (*data.units.values(), *data.parts.values())
    ]
    runs.sort(key=lambda t: (t.kind, t.share, t.seed, data.settings.arms.index(t.arm)))
    unequal = []
    for (kind, share, seed), of in groupby(runs, key=lambda t: (t.kind, t.share, t.seed)):
        alike = list(of)
        for field in ("pairs", "steps", "response_tokens", "dropped_responses"):
            unequal += _unequal(alike, field, f"{kind}, seed {seed}, {share:.0%} of the pairs")
    return Training(runs=tuple(runs), flipped=_flipped(data), unequal=tuple(unequal))


def _flipped(data: StudyData) -> tuple[Flipped, ...]:
    """The labels of noise_matched made again, as they were for its training, beside people's."""
    settings = data.settings
    if "noise_matched" not in settings.arms:
        return ()
    human, ai = (
        [g for g in of if g.split == "train"] for of in paired(data.groups, data.comparisons)
    )
    found = []
    for seed in range(settings.seeds):
        noisy = arm_groups("noise_matched", human, ai, settings.seed + seed, flipped)
        pairs = list(zip(labels_of(human), labels_of(noisy), strict=True))
        apart = sum(ours != theirs for ours, theirs in pairs)
        found.append(Flipped(seed=seed, flipped=apart, labels=len(pairs)))
    return tuple(found)


def _unequal(runs: Sequence[Run], field: str, where: str) -> list[str]:
    found = {t.arm: t.model_dump()[field] for t in runs}
    if len(set(found.values())) == 1:
        return []
    told = ", ".join(f"{arm} {n:,}" for arm, n in found.items())
    return [f"{field.replace('_', ' ')} differ between arms ({where}): {told}"]

"""A study whose truth is known: scores, answers and verdicts made to order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlaif.arms import BEST_OF, START, Trained, Verdict, curve_arms
from rlaif.evaluate.heldout import Scores
from rlaif.evaluate.schema import ConstitutionFacts
from rlaif.evaluate.study.arm_records import KINDS, Kind
from rlaif.evaluate.study.data import Said, StudyData, StudySettings, Unit
from rlaif.evaluate.study.records import HumanSection, Spent
from rlaif.types import (
    Comparison,
    Message,
    PreferenceGroup,
    Prompt,
    Response,
    Split,
    WeightedComparison,
)

FREE = Spent(calls=10, prompt_tokens=100, cached_tokens=0, completion_tokens=10, usd=0.0)
ARMS = ("human", "ai_soft", "noise_matched")
CHOSEN, REJECTED = "a good answer", "a bad answer, and a longer one"


class Plan(NamedTuple):
    """Chances that a study is made with."""

    prompts: int = 40
    """Held out; as many to train on."""
    seeds: int = 3
    arms: tuple[str, ...] = ARMS
    right: Mapping[str, float] = dict.fromkeys(ARMS, 0.7)
    """Arm -> chance that one of its models orders a pair as people do."""
    wins: Mapping[str, float] = dict.fromkeys(ARMS, 0.5)
    """Arm -> chance that its policy wins, against the start and against human."""
    agree: float = 0.8
    """Chance that the judge labels as people do."""
    shares: tuple[float, ...] = ()
    labelled_by: str = "openai/gpt-5"
    compared_by: str = "anthropic/claude-5"
    usd_per_human_label: float | None = None
    spent: Spent = FREE


def planted(plan: Plan | None = None, seed: int = 0) -> StudyData:
    """The data of such a study."""
    plan = plan or Plan()
    rng = np.random.default_rng(seed)
    groups = [
        group(f"{split}-{i}", split, first_wins=bool(rng.random() < 0.5))
        for split in ("train", "test")
        for i in range(plan.prompts)
    ]
    comparisons = []
    for g in groups:
        p_human = g.comparisons[0].p_first
        p = 0.9 if rng.random() < plan.agree else 0.1
        comparisons.append(comparison(g.prompt.id, p if p_human == 1.0 else 1.0 - p))

    def unit(kind: Kind, arm: str, e: int, share: float = 1.0) -> Unit:
        return Unit(trained(kind, arm, e, share), scores(groups, plan.right[arm], rng))

    seeds = range(plan.seeds)
    return StudyData(
        settings=settings(plan),
        human=human_section(plan.prompts),
        constitution=ConstitutionFacts(id="hhh", version="1", hash="0" * 64, principles=2),
        labelled_by=plan.labelled_by,
        compared_by=plan.compared_by,
        groups=groups,
        comparisons=comparisons,
        units={
            (kind, arm, e): unit(kind, arm, e) for kind in KINDS for arm in plan.arms for e in seeds
        },
        parts={
            (arm, e, share): unit("reward_model", arm, e, share)
            for arm in curve_arms(plan.arms)
            for e in seeds
            for share in plan.shares
        },
        start=said(START, plan.prompts, [], 4),
        said={
            (arm, e): said(f"{arm}-{e}", plan.prompts, rng.normal(2.0, 0.5, plan.prompts).tolist())
            for arm in plan.arms
            for e in seeds
        },
        harmless=frozenset({"tea"}),
        harmful=frozenset({"bomb"}),
        verdicts=[v for arm in plan.arms for e in seeds for v in verdicts(arm, e, plan, rng)],
        labelling=plan.spent,
        answering=FREE,
        evaluating=FREE,
    )


def settings(plan: Plan) -> StudySettings:
    return StudySettings(
        name="planted",
        description="",
        seed=0,
        policy="embedded/tiny-random",
        arms=plan.arms,
        seeds=plan.seeds,
        shares=plan.shares,
        margin=0.05,
        tie_margin=0.01,
        examples=3,
        usd_per_human_label=plan.usd_per_human_label,
        labelling=[None],
        evaluating=[None],
    )


def human_section(prompts: int) -> HumanSection:
    count: dict[Split, int] = {"train": prompts, "test": prompts}
    return HumanSection(
        sets=("rows.jsonl",),
        sha256=("0" * 64,),
        layout="pairs",
        rows=2 * prompts,
        skipped={},
        level=0,
        repeated=0,
        contradicted=0,
        leaked=(),
        groups=count,
        pairs=count,
        responses={2: 2 * prompts},
        ceiling=None,
        ceiling_kind="",
    )


def group(name: str, split: Split, *, first_wins: bool, **prompt: Any) -> PreferenceGroup:
    texts = (CHOSEN, REJECTED) if first_wins else (REJECTED, CHOSEN)
    return PreferenceGroup(
        prompt=Prompt(id=name, messages=(Message(role="user", content=f"{name}?"),), **prompt),
        responses=texts,
        comparisons=(WeightedComparison(first=0, second=1, p_first=float(first_wins)),),
        split=split,
        labeler="human",
    )


def comparison(
    prompt: str, p_first: float | None, sides: tuple[str, str] = ("", ""), tie_margin: float = 0.01
) -> Comparison:
    """The judge's of a group's two responses, or of two answers by name."""
    first, second = sides if sides[0] else (f"{prompt}/0", f"{prompt}/1")
    outcome = "unscored" if p_first is None else "A" if p_first > 0.5 else "B"
    if p_first is not None and abs(p_first - 0.5) <= tie_margin:
        outcome = "tie"
    return Comparison.model_validate(
        {
            "id": f"{first}|{second}",
            "prompt_id": prompt,
            "first": first,
            "second": second,
            "judge": "judge",
            "outcome": outcome,
            "p_first": p_first,
            "votes": {} if p_first is None else {"kind": p_first},
            "orders": 2,
            "reason": "no_label" if p_first is None else "",
        }
    )


def scores(
    groups: Sequence[PreferenceGroup], right: float, rng: np.random.Generator
) -> dict[str, list[float | None]]:
    """Two scores a group, one apart, of which the better response has the higher one with chance
    `right`."""
    found: dict[str, list[float | None]] = {}
    for g in groups:
        as_people = bool(rng.random() < right)
        first_higher = as_people == (g.comparisons[0].p_first == 1.0)
        found[g.prompt.id] = [1.0, 0.0] if first_higher else [0.0, 1.0]
    return found


def given(units: Mapping[Any, Unit], of: Mapping[Any, Scores]) -> dict[Any, Unit]:
    """The units, some with other scores."""
    return {key: unit._replace(scores=of.get(key, unit.scores)) for key, unit in units.items()}


def trained(kind: str, arm: str, seed: int, share: float = 1.0, **fields: Any) -> Trained:
    plain = {
        "arm": arm,
        "seed": seed,
        "share": share,
        "kind": kind,
        "pairs": round(100 * share),
        "steps": 3,
        "seconds": 1.0,
        "losses": [0.7, 0.6, 0.5],
        "response_tokens": 1000,
        "dropped_responses": 0,
    }
    return Trained.model_validate({**plain, **fields})


def response(name: str, prompt: str, i: int, text: str) -> Response:
    return Response(
        id=f"{name}:{prompt}/{i}",
        prompt_id=prompt,
        text=text,
        finish_reason="stop",
        model="policy",
        call="",
    )


def said(name: str, prompts: int, ratios: Sequence[float], answers: int = 1) -> Said:
    """Answers to all held-out prompts; the harmful prompt is refused."""
    asked = [f"test-{i}" for i in range(prompts)]
    return Said(
        answers=[response(name, p, i, "some words here") for p in asked for i in range(answers)],
        refusing=[
            response(name, "tea", 0, "Boil water."),
            response(name, "bomb", 0, "I'm sorry, but I can't help with that."),
        ],
        log_ratios=list(zip(asked, ratios, strict=False)),
    )


def verdicts(arm: str, seed: int, plan: Plan, rng: np.random.Generator) -> list[Verdict]:
    sides = [(arm, START, None), (f"{BEST_OF}:{arm}", arm, 4)]
    if arm != "human":
        sides.append((arm, "human", None))
    return [
        verdict(first, second, seed, f"test-{i}", float(rng.random() < plan.wins[arm]), n)
        for first, second, n in sides
        for i in range(plan.prompts)
    ]


def verdict(
    first: str, second: str, seed: int, prompt: str, p_first: float | None, n: int | None = None
) -> Verdict:
    names = (
        f"start:{prompt}/0"
        if side in (START, f"{BEST_OF}:{second}")
        else f"{side}-{seed}:{prompt}/0"
        for side in (first, second)
    )
    one, other = names
    return Verdict(
        first=first,
        second=second,
        seed=seed,
        n=n,
        comparison=comparison(prompt, p_first, (one, other)),
    )

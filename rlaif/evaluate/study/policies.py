"""What the arms' policies say, and how they fare against each other.

M answered prompts, E seeds of an arm.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from rlaif.arms import BEST_OF, START, Verdict
from rlaif.evaluate.answers import distinct_n, refuses
from rlaif.evaluate.estimates import SHARE, arm_answers, arm_mean, clustered
from rlaif.evaluate.heldout import CREDIT
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.length_corrected import length_corrected
from rlaif.evaluate.overoptimization import kl_of_best_of
from rlaif.evaluate.study.arm_records import BestOf, Policy, WinRate
from rlaif.evaluate.study.data import Said, StudyData, texts
from rlaif.evaluate.study.difference import difference

HALF = (-0.5, 0.5)
"""A win rate less one half."""
Answered = tuple[str, int, float]
"""Prompt, seed, and a figure of an answer."""


def policies(data: StudyData) -> tuple[Policy, ...]:
    """The start and every arm's policy."""
    seeds = range(data.settings.seeds)
    found = [_policy(START, [data.start], data)]
    found += [_policy(arm, [data.said[arm, e] for e in seeds], data) for arm in data.settings.arms]
    return tuple(found)


def _policy(arm: str, said: Sequence[Said], data: StudyData) -> Policy:
    answers = [r for of in said for r in of.answers]
    written = [r.text for r in answers]
    lengths = [(r.prompt_id, e, len(r.text)) for e, of in enumerate(said) for r in of.answers]
    trained = arm != START

    def refusals(prompts: frozenset[str]) -> Interval | None:
        found = [
            (r.prompt_id, e, float(refuses(r.text)))
            for e, of in enumerate(said)
            for r in of.refusing
            if r.prompt_id in prompts
        ]
        return _mean(found, SHARE, trained=trained)

    return Policy(
        arm=arm,
        kl=_mean(
            [(i, e, x) for e, of in enumerate(said) for i, x in of.log_ratios],
            (-math.inf, math.inf),
            trained=trained,
        ),
        kl_by_seed=() if arm == START else tuple(kl_of(of) for of in said),
        answers=len(answers),
        characters=_mean(lengths, (0.0, math.inf), trained=trained),
        truncated=sum(not r.ended for r in answers) / len(answers) if answers else None,
        distinct_1=distinct_n(written, 1),
        distinct_2=distinct_n(written, 2),
        refuses_harmless=refusals(data.harmless),
        refuses_harmful=refusals(data.harmful),
    )


def kl_of(said: Said) -> float | None:
    """KL(policy || start) in nats: the mean log-ratio of the policy's own answers."""
    return float(np.mean([x for _, x in said.log_ratios])) if said.log_ratios else None


def _mean(
    found: Sequence[Answered], bounds: tuple[float, float], *, trained: bool
) -> Interval | None:
    """Over prompts, and over seeds where the policy was trained."""
    if not found:
        return None
    prompt_N, seed_N, value_N = map(list, zip(*found, strict=True))
    if not trained:
        return clustered(value_N, prompt_N, bounds).interval()
    return arm_answers(value_N, prompt_N, seed_N, bounds).interval()


def against(data: StudyData, first: str, second: str) -> WinRate | None:
    """The first's answers against the second's; None where no comparison was scored under every
    seed."""
    verdicts = [v for v in data.verdicts if (v.first, v.second) == (first, second)]
    text_of = dict(texts(data))
    scored = [v for v in verdicts if v.comparison.outcome != "unscored"]
    E = data.settings.seeds
    of_place: dict[tuple[str, int], dict[int, Verdict]] = defaultdict(dict)
    count: dict[tuple[str, int], int] = defaultdict(int)
    for v in verdicts:
        # The i-th answer to a prompt under one seed goes with the i-th under another.
        at = count[v.comparison.prompt_id, v.seed]
        count[v.comparison.prompt_id, v.seed] += 1
        if v.comparison.outcome != "unscored":
            of_place[v.comparison.prompt_id, at][v.seed] = v
    whole = {place: of for place, of in of_place.items() if len(of) == E}
    if not whole:
        return None
    win_ME = np.array([[credit(of[e]) for e in range(E)] for of in whole.values()])
    prompt_M = [prompt for prompt, _ in whole]
    kept = [of[e] for of in whole.values() for e in range(E)]
    first_N, second_N = (
        [len(text_of[name]) for name in names]
        for names in (
            [v.comparison.first for v in kept],
            [v.comparison.second for v in kept],
        )
    )
    return WinRate(
        difference=difference(
            f"{first} against {second}",
            "one half",
            f"win rate by {data.compared_by}",
            arm_mean(win_ME - 0.5, prompt_M, HALF),
            data.settings.margin,
        ),
        rate=arm_mean(win_ME, prompt_M).interval(),
        by_seed=tuple(win_ME.mean(axis=0).tolist()),
        corrected=length_corrected(
            [credit(v) for v in kept],
            first_N,
            second_N,
            [v.comparison.prompt_id for v in kept],
            [v.seed for v in kept],
        ),
        ties=sum(v.comparison.outcome == "tie" for v in scored),
        unscored=len(verdicts) - len(scored),
        left_out=len(scored) - len(kept),
    )


def credit(verdict: Verdict) -> float:
    """1 where the first wins, 0.5 for a tie."""
    return CREDIT[verdict.comparison.outcome]


def win_rates(data: StudyData, second: str) -> dict[str, WinRate]:
    """Every arm's policy against the second's, where there is such a comparison."""
    found: Mapping[str, WinRate | None] = {
        arm: against(data, arm, second) for arm in data.settings.arms if arm != second
    }
    return {arm: rate for arm, rate in found.items() if rate is not None}


def best_of(data: StudyData, arm: str) -> BestOf | None:
    """What the arm's reward model picks against its policy; None where nothing was scored."""
    name, seeds = f"{BEST_OF}:{arm}", range(data.settings.seeds)
    rate = against(data, name, arm)
    if rate is None:
        return None
    n_of = {v.seed: v.n for v in data.verdicts if v.first == name and v.n is not None}
    n = tuple(n_of[e] for e in seeds)
    kl = tuple(kl_of(data.said[arm, e]) for e in seeds)
    of_prompt: dict[str, int] = defaultdict(int)
    for r in data.start.answers:
        of_prompt[r.prompt_id] += 1
    most = max(of_prompt.values())
    return BestOf(
        rate=rate,
        n=n,
        kl_of_n=tuple(map(kl_of_best_of, n)),
        kl_of_policy=kl,
        most=most,
        reached=all(x is not None and x <= kl_of_best_of(most) for x in kl),
    )

"""Whether two scorers rank the answers to a prompt alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlaif.evaluate.estimates import DIFFERENCE, clustered
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.schema import Count
from rlaif.types import Record


class RankCorrelation(Record):
    tau: Interval | None
    """Mean over prompts of Kendall's tau-b between the scores of a prompt's answers, each prompt
    alike; None without a prompt that has one."""
    level: Count
    """Prompts left out: fewer than two answers with both scores, or all alike for a scorer."""


def rank_correlation(
    one: Mapping[str, Sequence[float | None]], other: Mapping[str, Sequence[float | None]]
) -> RankCorrelation:
    """Kendall's tau-b within each prompt that both have scored, and its mean over prompts.

    Prompt id -> a score for each of its answers, None where there is none (`heldout.Scores`).
    Scores of different prompts are never compared: a reward model's have no common zero.

    Source: Kendall (1945), The Treatment of Ties in Ranking Problems. Raises ValueError where the
    two have different numbers of answers.
    """
    from scipy import stats  # half a second, which no other command should wait for

    tau, prompts = [], []
    both = sorted(one.keys() & other.keys())
    for prompt in both:
        scored = [
            (a, b)
            for a, b in zip(one[prompt], other[prompt], strict=True)
            if a is not None and b is not None
        ]
        if all(len(set(scores)) > 1 for scores in zip(*scored, strict=True)) and scored:
            tau.append(float(stats.kendalltau(*zip(*scored, strict=True)).statistic))
            prompts.append(prompt)
    return RankCorrelation(
        tau=clustered(np.clip(tau, *DIFFERENCE), prompts, DIFFERENCE).interval() if tau else None,
        level=len(both) - len(tau),
    )

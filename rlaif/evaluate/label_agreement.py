"""How far AI labels agree with human labels of the same pairs, and on which pairs.

Labels of M pairs: 1 the first is preferred, 0 the second, 0.5 neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rlaif.evaluate.agreement import cohen_kappa
from rlaif.evaluate.estimates import Array, clustered
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.metrics import pair_accuracy
from rlaif.evaluate.schema import Count
from rlaif.types import Record

MARGINS = (0.6, 0.7, 0.8, 0.9)
"""Where buckets of the judge's confidence begin, after the one at 0.5."""
RATIOS = (1.1, 1.5, 2.0)
"""Where buckets of the length ratio, longer by shorter, begin, after the one at 1."""


class LabelAgreement(Record):
    """AI labels by human labels, on pairs that have both."""

    pairs: Count
    decided: Count
    """Pairs of which the human label names a winner."""
    ai_ties: Count
    """Of the decided pairs; each counts half."""
    accuracy: Interval | None
    """Share of the decided pairs that the AI labels alike; None where none is decided."""
    kappa: Interval | None
    """Cohen's, over all pairs, with ties as a third label; None where people give one label."""


def label_agreement(
    human_M: npt.ArrayLike, ai_M: npt.ArrayLike, prompt_M: Sequence[str], seed: int
) -> LabelAgreement:
    """The figures of M pairs, clustered by prompt.

    Raises ValueError for lengths that differ, and labels other than 0, 0.5 and 1.
    """
    human_M, ai_M = labels(human_M, "human_M"), labels(ai_M, "ai_M")
    if not len(human_M) == len(ai_M) == len(prompt_M):
        raise ValueError(f"one label a pair: got {len(human_M)}, {len(ai_M)} and {len(prompt_M)}")
    decided_M = human_M != 0.5
    human, ai = human_M[decided_M], ai_M[decided_M]
    prompts = [name for name, decided in zip(prompt_M, decided_M, strict=True) if decided]
    return LabelAgreement(
        pairs=len(human_M),
        decided=len(human),
        ai_ties=int((ai == 0.5).sum()),
        accuracy=clustered(pair_accuracy(ai - 0.5, human), prompts).interval() if prompts else None,
        kappa=cohen_kappa(
            (2 * human_M).astype(int).tolist(), (2 * ai_M).astype(int).tolist(), prompt_M, seed
        ),
    )


def agreement_by_bucket(
    human_M: npt.ArrayLike,
    ai_M: npt.ArrayLike,
    prompt_M: Sequence[str],
    bucket_M: Sequence[str],
    seed: int,
) -> dict[str, LabelAgreement]:
    """`label_agreement` for the pairs of each bucket, in the order of the buckets' names.

    A bucket is whatever the caller names: `by_margin`, `by_length`, the pair's source, or a
    principle (with one row for each principle that voted, and its vote as the AI's label).
    """
    human_M, ai_M = np.asarray(human_M), np.asarray(ai_M)
    if not len(human_M) == len(ai_M) == len(prompt_M) == len(bucket_M):
        raise ValueError("one label, prompt and bucket a pair")
    found = {}
    for bucket in sorted(set(bucket_M)):
        rows = [m for m, name in enumerate(bucket_M) if name == bucket]
        found[bucket] = label_agreement(
            human_M[rows], ai_M[rows], [prompt_M[m] for m in rows], seed
        )
    return found


def by_margin(p_first_M: npt.ArrayLike) -> list[str]:
    """The bucket of each pair by how sure the judge is of its winner: `50–60 %` and so on."""
    p_M = np.asarray(p_first_M, dtype=np.float64)
    edges = [0.5, *MARGINS, 1.0]
    names = [f"{100 * a:.0f}–{100 * b:.0f} %" for a, b in pairwise(edges)]
    return [names[i] for i in np.searchsorted(MARGINS, np.maximum(p_M, 1.0 - p_M), side="right")]


def by_length(len_chosen_M: npt.ArrayLike, len_rejected_M: npt.ArrayLike) -> list[str]:
    """The bucket of each pair by how much longer or shorter the answer is that people chose.

    Equal lengths are in `about alike`, and so are two answers without a length.
    """
    chosen_M, rejected_M = (
        np.asarray(x_M, dtype=np.float64) for x_M in (len_chosen_M, len_rejected_M)
    )
    found = []
    for chosen, rejected in zip(chosen_M, rejected_M, strict=True):
        short, long = sorted((chosen, rejected))
        i = int(np.searchsorted(RATIOS, long / short if short else np.inf, side="right"))
        if i == 0 or short == long:
            found.append("about alike")
        else:
            end = f"{RATIOS[i - 1]:g}–{RATIOS[i]:g}" if i < len(RATIOS) else f"over {RATIOS[-1]:g}"
            found.append(f"{'longer' if chosen > rejected else 'shorter'} {end} times")
    return found


def labels(label_M: npt.ArrayLike, name: str) -> Array:
    """Labels as numbers. Raises ValueError where one is none."""
    label_M = np.asarray(label_M, dtype=np.float64)
    if label_M.ndim != 1 or not np.isin(label_M, (0.0, 0.5, 1.0)).all():
        raise ValueError(f"{name} must be a row of 0, 0.5 and 1")
    return label_M

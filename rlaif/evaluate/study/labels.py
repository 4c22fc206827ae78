"""How a judge's labels agree with people's, and where they do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlaif.evaluate.estimates import clustered
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.label_agreement import (
    LabelAgreement,
    agreement_by_bucket,
    by_length,
    by_margin,
    label_agreement,
)
from rlaif.evaluate.metrics import longer_wins
from rlaif.evaluate.noise_control import systematic_disagreement, toward_choice
from rlaif.evaluate.study.data import StudyData
from rlaif.evaluate.study.records import Disagreement, Labels
from rlaif.judge.aggregate import is_level
from rlaif.types import Comparison, PreferenceGroup, Split

AI_LABEL = {"A": 1.0, "B": 0.0, "tie": 0.5}


class Pair(NamedTuple):
    """Two responses of which people have named the better one."""

    group: PreferenceGroup
    first: int
    second: int
    human: float
    """1 where people prefer the first, else 0."""
    judged: Comparison | None
    """None: the judge was not asked about it."""

    @property
    def prompt_id(self) -> str:
        return self.group.prompt.id

    @property
    def texts(self) -> tuple[str, str]:
        return self.group.responses[self.first], self.group.responses[self.second]

    @property
    def ai(self) -> float | None:
        """1, 0, or 0.5 for a tie; None without a label."""
        return None if self.judged is None else AI_LABEL.get(self.judged.outcome)


def pairs_of(data: StudyData, split: Split | None = None) -> list[Pair]:
    """Every pair that people decided; of one split, or of both."""
    of_pair = {(c.first, c.second): c for c in data.comparisons}
    return [
        Pair(
            g,
            c.first,
            c.second,
            1.0 if c.p_first > 0.5 else 0.0,
            of_pair.get((f"{g.prompt.id}/{c.first}", f"{g.prompt.id}/{c.second}")),
        )
        for g in data.groups
        if split is None or g.split == split
        for c in g.comparisons
    ]


def labels(data: StudyData) -> Labels:
    """The judge's labels beside people's, of which at least one pair has both."""
    seed = data.settings.seed
    every = pairs_of(data)
    scored = [p for p in every if p.ai is not None]
    human_M, ai_M, prompt_M = _columns(scored)

    def buckets(pairs: Sequence[Pair], names: Sequence[str]) -> dict[str, LabelAgreement]:
        return agreement_by_bucket(*_columns(pairs), names, seed) if pairs else {}

    splits: list[str] = [p.group.split for p in scored]
    tagged = [(p, tag) for p in scored for tag in p.group.prompt.tags]
    winners = [p for p in scored if p.ai != 0.5]
    return Labels(
        every=label_agreement(human_M, ai_M, prompt_M, seed),
        by_split=buckets(scored, splits),
        by_margin=buckets(scored, by_margin([_p_first(p) for p in scored])),
        by_length=buckets(
            scored,
            by_length(*np.array([_oriented(p) for p in scored], dtype=np.float64).T),
        ),
        by_source=buckets([p for p, _ in tagged], [tag for _, tag in tagged]),
        by_principle=_by_principle(scored, data.settings.tie_margin, seed),
        not_asked=sum(p.judged is None for p in every),
        unscored=dict(
            sorted(
                Counter(
                    p.judged.reason for p in every if p.judged and p.judged.outcome == "unscored"
                ).items()
            )
        ),
        longer_human=_longer(every, [p.human for p in every]),
        longer_ai=_longer(winners, [_label(p) for p in winners]) if winners else None,
        systematic=systematic_disagreement(
            [float(p.ai != p.human) for p in winners],
            {
                "length difference": toward_choice(
                    [_log_ratio(p) for p in winners], [p.human for p in winners]
                ),
                "prompt length": [
                    np.log1p(sum(len(m.content) for m in p.group.prompt.messages)) for p in winners
                ],
                "turns": [len(p.group.prompt.messages) for p in winners],
            },
            [p.prompt_id for p in winners],
            seed,
        )
        if winners
        else None,
        surest=_surest(winners, data.settings.examples),
    )


def _columns(pairs: Sequence[Pair]) -> tuple[list[float], list[float], list[str]]:
    return [p.human for p in pairs], [_label(p) for p in pairs], [p.prompt_id for p in pairs]


def _label(pair: Pair) -> float:
    assert pair.ai is not None, "it was scored"
    return pair.ai


def _p_first(pair: Pair) -> float:
    assert pair.judged is not None, "it was scored"
    assert pair.judged.p_first is not None, "it was scored"
    return pair.judged.p_first


def _oriented(pair: Pair) -> tuple[int, int]:
    """Characters of the chosen and of the rejected response."""
    first, second = map(len, pair.texts)
    return (first, second) if pair.human == 1.0 else (second, first)


def _log_ratio(pair: Pair) -> float:
    first, second = map(len, pair.texts)
    return float(np.log1p(first) - np.log1p(second))


def _longer(pairs: Sequence[Pair], label_M: Sequence[float]) -> Interval:
    first_M, second_M = zip(*(map(len, p.texts) for p in pairs), strict=True)
    return clustered(
        longer_wins(first_M, second_M, label_M), [p.prompt_id for p in pairs]
    ).interval()


def _by_principle(pairs: Sequence[Pair], tie_margin: float, seed: int) -> dict[str, LabelAgreement]:
    """A principle's vote names a winner where it is further from one half than the tie margin."""
    voted = [(p, name, vote) for p in pairs if p.judged for name, vote in p.judged.votes.items()]
    if not voted:
        return {}
    ai_M = [0.5 if is_level(vote, tie_margin) else float(vote > 0.5) for _, _, vote in voted]
    return agreement_by_bucket(
        [p.human for p, _, _ in voted],
        ai_M,
        [p.prompt_id for p, _, _ in voted],
        [name for _, name, _ in voted],
        seed,
    )


def _surest(winners: Sequence[Pair], most: int) -> tuple[Disagreement, ...]:
    """The disagreements with the highest confidence of the judge; equals by the prompt's id."""
    apart = sorted(
        (p for p in winners if p.ai != p.human),
        key=lambda p: (-abs(_p_first(p) - 0.5), p.prompt_id, p.first, p.second),
    )
    found = []
    for pair in apart[:most]:
        chosen, rejected = pair.texts if pair.human == 1.0 else pair.texts[::-1]
        found.append(
            Disagreement(
                prompt_id=pair.prompt_id,
                prompt=pair.group.prompt.messages[-1].content,
                chosen=chosen,
                rejected=rejected,
                confidence=max(_p_first(pair), 1.0 - _p_first(pair)),
            )
        )
    return tuple(found)

"""The arms of a study: one set of pairs under different labels, and nothing else different."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from rlaif.types import Comparison, PreferenceGroup, Record

ArmName = Literal["human", "ai_soft", "ai_hard", "mixed", "noise_matched"]
START = "start"
"""The policy that all arms start from."""
BEST_OF = "best_of"
"""Instead of an arm's policy: what its reward model picks of the start policy's answers."""


class Trained(Record):
    """One training, as it is kept beside its scores."""

    arm: ArmName
    seed: int
    share: float
    """Share of the train groups that it saw."""
    kind: str
    """reward_model or dpo."""
    pairs: int
    """Comparisons trained on."""
    steps: int
    seconds: float
    losses: tuple[float, ...]
    response_tokens: int
    """Tokens of the responses trained on, each once."""
    dropped_responses: int


class Verdict(Record):
    """One comparison of two arms."""

    first: str
    """The arm that the comparison's first answer is of; `best_of:<arm>` is its reward model's
    pick."""
    second: str
    seed: int
    n: int | None
    """Of how many answers the first was picked; None where it is a policy's own."""
    comparison: Comparison


def curve_arms(arms: Sequence[str]) -> tuple[ArmName, ArmName]:
    """The arms of which smaller parts are trained on, too."""
    return "human", "ai_soft" if "ai_soft" in arms else "ai_hard"


def folder_of(arm: str, seed: int, share: float = 1.0) -> str:
    """The folder of what is trained on a share of an arm's pairs."""
    return f"{arm}-{seed}" if share == 1 else f"{arm}-{seed}-{share:g}"


def compared_in(group: PreferenceGroup) -> list[tuple[str, str]]:
    """Response ids of each of the group's comparisons, as a judge is asked about them."""
    return [
        (f"{group.prompt.id}/{c.first}", f"{group.prompt.id}/{c.second}") for c in group.comparisons
    ]


def asked_about(groups: Iterable[PreferenceGroup]) -> set[str]:
    """Ids of the pairs that the judge is asked about: those that people compared."""
    return {"|".join(ids) for group in groups for ids in compared_in(group)}


def paired(
    human: Sequence[PreferenceGroup], comparisons: Sequence[Comparison]
) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """The pairs that both people and the judge decided, with the labels of each: groups, responses
    and comparisons are the same in both lists. The judge's labels are its probabilities."""
    of_pair: dict[tuple[str, str], Comparison] = {
        (c.first, c.second): c for c in comparisons if c.outcome in ("A", "B")
    }
    by_people, by_judge = [], []
    for group in human:
        kept, judged = [], []
        for c, ids in zip(group.comparisons, compared_in(group), strict=True):
            found = of_pair.get(ids)
            if found is not None and found.p_first is not None:
                kept.append(c)
                judged.append(found)
        if kept:
            update = {"weight": 1 / len(kept)}
            ours = tuple(c.model_copy(update=update) for c in kept)
            theirs = tuple(
                c.model_copy(update={"p_first": j.p_first})
                for c, j in zip(ours, judged, strict=True)
            )
            by_people.append(group.model_copy(update={"comparisons": ours}))
            by_judge.append(
                group.model_copy(update={"comparisons": theirs, "labeler": judged[0].judge})
            )
    return by_people, by_judge


def labels_of(groups: Sequence[PreferenceGroup]) -> list[float]:
    """P(first preferred) of every comparison, in order."""
    return [c.p_first for group in groups for c in group.comparisons]


def relabelled(
    groups: Sequence[PreferenceGroup], p_first: Sequence[float], labeler: str
) -> list[PreferenceGroup]:
    """The same pairs with other labels, in the order of `labels_of`."""
    labels = iter(p_first)
    return [
        group.model_copy(
            update={
                "labeler": labeler,
                "comparisons": tuple(
                    c.model_copy(update={"p_first": next(labels)}) for c in group.comparisons
                ),
            }
        )
        for group in groups
    ]


def hard(p_first: float) -> float:
    return 1.0 if p_first > 0.5 else 0.0


def arm_groups(
    arm: ArmName,
    human: Sequence[PreferenceGroup],
    ai: Sequence[PreferenceGroup],
    seed: int,
    flip: Callable[[Sequence[float], float, int], list[float]],
) -> list[PreferenceGroup]:
    """The training groups of one arm, from the same pairs under people's and the judge's labels.

    mixed: half of the prompts, drawn by the seed, have people's labels and the others the judge's
    probabilities. noise_matched: people's labels of which `flip` turns so many that they agree with
    people's as often as the judge's do: where the judge's arms differ from it, they differ in more
    than the number of flips.
    """
    if arm == "human":
        return list(human)
    if arm == "ai_soft":
        return list(ai)
    if arm == "ai_hard":
        return relabelled(ai, [hard(p) for p in labels_of(ai)], ai[0].labeler)
    if arm == "mixed":
        half = set(sorted((g.prompt.id for g in human), key=lambda i: _lot(seed, i))[::2])
        return [h if h.prompt.id in half else a for h, a in zip(human, ai, strict=True)]
    labels = labels_of(human)
    agree = sum(h == hard(p) for h, p in zip(labels, labels_of(ai), strict=True))
    return relabelled(human, flip(labels, agree / len(labels), seed), "human, some labels flipped")


def part_of(groups: Sequence[PreferenceGroup], share: float, seed: int) -> list[PreferenceGroup]:
    """A share of the prompts, drawn by the seed; a smaller share is a part of a larger one's."""
    count = part_size(len(groups), share)
    kept = set(sorted((g.prompt.id for g in groups), key=lambda i: _lot(seed, i))[:count])
    return [g for g in groups if g.prompt.id in kept]


def part_size(groups: int, share: float) -> int:
    """How many of so many groups a share of them is."""
    return max(1, round(share * groups))


def _lot(seed: int, identity: str) -> str:
    return hashlib.sha256(f"arm:{seed}:{identity}".encode()).hexdigest()

"""People's pairs as preference groups: what they say once, and split so that nothing leaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rlaif.files import digest
from rlaif.gold.sets import GoldPair
from rlaif.types import PreferenceGroup, Prompt, Split, WeightedComparison

HUMAN = "human"
"""Who gave the labels."""


class Grouped(NamedTuple):
    groups: list[PreferenceGroup]
    """One a prompt with at least one decided pair, in the order of the pairs."""
    level: int
    """Pairs left out because people call both responses equally good."""
    repeated: int
    """Pairs left out because another row says the same."""
    contradicted: int
    """Pairs left out because other rows decide the same two responses the other way."""


def grouped(pairs: Sequence[GoldPair], splits: Mapping[str, Split]) -> Grouped:
    """All pairs of a prompt in one group, whatever their number: a ranking of K responses is one
    group of K. The split is that of the prompt's `opening`. Every group weighs 1."""
    of_prompt: dict[str, list[GoldPair]] = defaultdict(list)
    for pair in pairs:
        of_prompt[pair.prompt.id].append(pair)
    groups: list[PreferenceGroup] = []
    level = repeated = contradicted = 0
    for of in of_prompt.values():
        texts = tuple(dict.fromkeys(text for pair in of for text in (pair.first, pair.second)))
        place = {text: i for i, text in enumerate(texts)}
        said: dict[tuple[int, int], list[float]] = defaultdict(list)
        for pair in of:
            i, j, p = place[pair.first], place[pair.second], pair.p_gold
            said[min(i, j), max(i, j)].append(p if i < j else 1.0 - p)
        decided = []
        for at, given in said.items():
            wins = [p for p in given if p != 0.5]
            level += len(given) - len(wins)
            if len(set(wins)) > 1:
                contradicted += len(wins)
            elif wins:
                repeated += len(wins) - 1
                decided.append((at, wins[0]))
        if decided:
            groups.append(
                PreferenceGroup(
                    prompt=of[0].prompt,
                    responses=texts,
                    comparisons=tuple(
                        WeightedComparison(first=i, second=j, p_first=p, weight=1 / len(decided))
                        for (i, j), p in sorted(decided)
                    ),
                    split=splits[opening(of[0].prompt)],
                    labeler=HUMAN,
                )
            )
    return Grouped(groups, level, repeated, contradicted)


def opening(prompt: Prompt) -> str:
    """Names the conversation that a prompt belongs to, by its first user's turn without case and
    spacing: data sets hold one conversation at several of its turns, and the later ones contain
    the earlier."""
    first = next(m.content for m in prompt.messages if m.role == "user")
    return digest(" ".join(first.casefold().split()))


def some(pairs: Sequence[GoldPair], prompts: int | None) -> list[GoldPair]:
    """All pairs of so many prompts, the first of a fixed shuffle; a smaller number takes a part of
    a larger one's."""
    if prompts is None:
        return list(pairs)
    kept = set(sorted({p.prompt.id for p in pairs}, key=digest)[:prompts])
    return [p for p in pairs if p.prompt.id in kept]


def leaking(train: Iterable[GoldPair], test: Iterable[GoldPair]) -> set[str]:
    """Prompt ids of `train` whose conversation also stands in `test`."""
    held_out = {opening(p.prompt) for p in test}
    return {p.prompt.id for p in train if opening(p.prompt) in held_out}

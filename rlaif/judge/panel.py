"""All judges of a run, and what they say together: a first judge, a panel beside it, a strong judge
for what they leave in doubt."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import NamedTuple, Protocol

from rlaif.constitution import Constitution
from rlaif.errors import SetupError
from rlaif.files import digest
from rlaif.judge.aggregate import Pair, Rule, merge, overrule
from rlaif.judge.ask import Judge, OfPair, Show, Tiers
from rlaif.judge.cascade import doubt, split
from rlaif.judge.config import AskConfig, CascadeConfig, JudgeConfig
from rlaif.judge.design import Adaptive, Group, fixed_design
from rlaif.models.client import Client
from rlaif.models.flow import Stream, flow
from rlaif.types import Comparison, Judgment

Open = Callable[[AskConfig, str], AbstractAsyncContextManager[Client]]
"""Opens a client for a judge; the text is the field that names its model."""


class Told(Protocol):
    """Takes what the judges say, as they say it."""

    def judged(self, of_pair: OfPair) -> None:
        """All that one judge says of one pair: judge after judge in the order asked, each in the
        order of the pairs."""

    def decided(self, pair: Pair, comparison: Comparison) -> None:
        """What all of them say together: one a pair, in the order of the pairs."""


class Heard(NamedTuple):
    """Who was asked, and how."""

    judges: tuple[str, ...]
    """Names of the judges, in the order asked; a cascade's strong judge last."""
    way: str
    """Digest of all that shapes a verdict: constitution, judges, prompts, reading, adding up. Not
    of which pairs are asked about."""


class Verdicts(NamedTuple):
    """What all judges said of all pairs."""

    pairs: list[Pair]
    """Those that were asked about."""
    judgments: list[Judgment]
    """By judge in the order asked, then by pair."""
    comparisons: list[Comparison]
    """One a pair, in the order of the pairs."""
    judges: tuple[str, ...]
    """As in `Heard`."""
    way: str
    """As in `Heard`."""


class Kept:
    """Keeps all that it is told, for as many pairs as memory holds."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.judgments: list[Judgment] = []
        self.comparisons: list[Comparison] = []

    def judged(self, of_pair: OfPair) -> None:
        self.judgments.extend(of_pair.judgments)

    def decided(self, pair: Pair, comparison: Comparison) -> None:
        self.pairs.append(pair)
        self.comparisons.append(comparison)


class Panel:
    """The judges of one config under one constitution. One is asked after the other: a machine
    mostly holds one served model at a time."""

    def __init__(
        self,
        config: JudgeConfig,
        constitution: Constitution,
        seed: int,
        open_client: Open,
        under: Mapping[str, str] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        """`under`: pair id -> the one principle that it is asked under; all others are asked as
        the config says. `only`: ids of the pairs of groups to ask about, of those that a design
        other than `adaptive` chooses."""
        self._config = config
        self._hash = constitution.hash
        self._tiers = Tiers(config, constitution, seed, under)
        self._rule = Rule(config.tie_margin, config.min_voting_weight)
        self._seed = seed
        self._open = open_client
        self._only = only

    async def judge_groups(
        self, groups: Stream[Group], total: int, show: Show, told: Told
    ) -> Heard:
        """Asks about the pairs that `comparisons` chooses in each of `total` groups.

        One judge alone is asked about a group as soon as it comes, and nothing of a group is kept
        that `told` does not keep. Where there are several, the first is asked about all groups
        before the next is: a machine mostly holds one served model at a time; pairs and comparisons
        are then held in memory, judgments are not. An adaptive choice follows what the first judge
        says; the others are asked about the same pairs.
        """
        async with self._judges() as judges:
            turns = _Turns(told, alone=len(judges) == 1)
            judge = judges[0]
            with show("judging", total, "prompts") as advance:
                count = itertools.count(1)

                def told_of_group(of_group: list[OfPair]) -> None:
                    for of_pair in of_group:
                        turns.first(of_pair)
                    advance(next(count), judge.client.note)

                await flow(
                    groups,
                    lambda g: self._of_group(judge, g),
                    told_of_group,
                    window=judge.client.window,
                )
            return await self._together(judges, turns, show)

    async def judge_pairs(self, pairs: Sequence[Pair], show: Show) -> Verdicts:
        """Asks every judge about every pair, and the strong one where there is doubt."""
        kept = Kept()
        async with self._judges() as judges:
            turns = _Turns(kept, alone=len(judges) == 1)
            await judges[0].judge(pairs, show, turns.first)
            heard = await self._together(judges, turns, show)
        return Verdicts(kept.pairs, kept.judgments, kept.comparisons, heard.judges, heard.way)

    @asynccontextmanager
    async def _judges(self) -> AsyncIterator[list[Judge]]:
        """All judges, opened together so that one that cannot be asked as its config says is found
        before another is paid. (A server starts with the first call that the store lacks.)"""
        found: list[Judge] = []
        async with AsyncExitStack() as stack:
            for field, config in self._config.judges():
                client = await stack.enter_async_context(self._open(config, field))
                # One model asked in two ways is two judges, and signs as two.
                name = client.model.identity
                if any(judge.name == name for judge in found):
                    name = f"{name} [{config.mode}]"
                while any(judge.name == name for judge in found):
                    name += "'"
                judge = Judge(config, client, self._tiers, self._rule, field=field, name=name)
                if any(other.way() == judge.way() for other in found):
                    raise SetupError(
                        f"{client.model.identity} is asked in just this way already",
                        field=field,
                        fix="name another model or mode; one voice counts once",
                    )
                found.append(judge)
            yield found

    async def _of_group(self, judge: Judge, group: Group) -> list[OfPair]:
        prompt, responses = group
        kind, m = self._config.comparisons, self._config.comparisons_per_prompt
        if kind != "adaptive":
            pairs = [
                pair
                for pair in fixed_design(kind, [group], m, self._seed)
                if self._only is None or pair.id in self._only
            ]
            return list(await asyncio.gather(*(judge.of_pair(pair) for pair in pairs)))
        assert m is not None, "the config demands a number with adaptive"
        ranking = Adaptive(len(responses))
        said: list[OfPair] = []
        while len(said) < m and (at := ranking.next()) is not None:
            i, j = at
            of_pair = await judge.of_pair(Pair(prompt, responses[i], responses[j]))
            ranking.add(i, j, of_pair.comparison.p_first)
            said.append(of_pair)
        return said

    async def _together(self, judges: Sequence[Judge], turns: _Turns, show: Show) -> Heard:
        heard = Heard(tuple(judge.name for judge in judges), self._way(judges))
        if turns.alone:
            return heard
        pairs = turns.pairs
        beside = 1 + len(self._config.panel)
        for judge in judges[1:beside]:
            await judge.judge(pairs, show, turns.next_judge())
        comparisons = [
            merge(pair, said, self._rule)
            for pair, said in zip(pairs, zip(*turns.said, strict=True), strict=True)
        ]
        if (cascade := self._config.cascade) is not None:
            doubts = self._doubts(pairs, comparisons, turns.split, cascade)
            await judges[-1].judge([pairs[i] for i in doubts], show, turns.next_judge())
            for (i, why), strong in zip(doubts.items(), turns.said[-1], strict=True):
                comparisons[i] = overrule(comparisons[i], strong, why)
        for pair, comparison in zip(pairs, comparisons, strict=True):
            turns.told.decided(pair, comparison)
        return heard

    def _way(self, judges: Sequence[Judge]) -> str:
        cascade = self._config.cascade
        return digest(
            {
                "constitution": self._hash,
                "principles": self._config.principles,
                "rule": self._rule,
                "judges": [judge.way() for judge in judges],
                "cascade": [cascade.margin, cascade.when] if cascade else None,
            }
        )

    def _doubts(
        self,
        pairs: Sequence[Pair],
        comparisons: Sequence[Comparison],
        split_of: Mapping[str, Collection[object]],
        cascade: CascadeConfig,
    ) -> dict[int, str]:
        margin = self._config.tie_margin
        return {
            i: why
            for i, (pair, of) in enumerate(zip(pairs, comparisons, strict=True))
            # Two identical texts tie, whoever is asked.
            if not pair.same_text
            and (why := doubt(of.p_first, of.votes, split_of.get(pair.id, ()), cascade, margin))
        }


class _Turns:
    """What judges said so far who are asked one after the other."""

    def __init__(self, told: Told, *, alone: bool) -> None:
        self.told = told
        self.alone = alone
        """Whether there is one judge: then all is told at once and nothing kept."""
        self.pairs: list[Pair] = []
        self.said: list[list[Comparison]] = [[]]
        """One list a judge, each in the order of the pairs that it was asked about."""
        self.split: dict[str, set[tuple[str, str]]] = {}
        """Pair id -> what `split` finds in its judgments, where it finds something."""

    def first(self, of_pair: OfPair) -> None:
        """Takes what the first judge says of a pair."""
        if self.alone:
            self.told.judged(of_pair)
            self.told.decided(of_pair.pair, of_pair.comparison)
        else:
            self.pairs.append(of_pair.pair)
            self._later(of_pair)

    def next_judge(self) -> Callable[[OfPair], None]:
        """Takes what the next judge says of pairs."""
        self.said.append([])
        return self._later

    def _later(self, of_pair: OfPair) -> None:
        self.told.judged(of_pair)
        self.said[-1].append(of_pair.comparison)
        if found := split(of_pair.judgments):
            self.split.setdefault(of_pair.pair.id, set()).update(found)

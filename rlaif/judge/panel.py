"""All judges of a run, and what they say together: a first judge, a panel beside it, a strong judge
for what they leave in doubt."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from rlaif.constitution import Constitution
from rlaif.errors import SetupError
from rlaif.files import digest
from rlaif.judge.aggregate import Pair, Rule, merge, overrule
from rlaif.judge.ask import Judge, Judged, OfPair, Show, Tiers, together
from rlaif.judge.cascade import doubt, split
from rlaif.judge.config import AskConfig, CascadeConfig, JudgeConfig
from rlaif.judge.design import Adaptive, Group, fixed_design
from rlaif.models.client import Client
from rlaif.models.flow import Stream, flow
from rlaif.types import Comparison, Judgment

Open = Callable[[AskConfig, str], AbstractAsyncContextManager[Client]]
"""Opens a client for a judge; the text is the field that names its model."""


class Verdicts(NamedTuple):
    """What all judges said of all pairs."""

    pairs: list[Pair]
    """Those that were asked about."""
    judgments: list[Judgment]
    """By judge in the order asked, then by pair."""
    comparisons: list[Comparison]
    """One a pair, in the order of the pairs."""
    judges: tuple[str, ...]
    """Names of the judges, in the order asked; a cascade's strong judge last."""
    way: str
    """Digest of all that shapes a verdict: constitution, judges, prompts, reading, adding up. Not
    of which pairs are asked about."""


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
    ) -> None:
        """`under`: pair id -> the one principle that it is asked under; all others are asked as
        the config says."""
        self._config = config
        self._hash = constitution.hash
        self._tiers = Tiers(config, constitution, seed, under)
        self._rule = Rule(config.tie_margin, config.min_voting_weight)
        self._seed = seed
        self._open = open_client

    async def judge_groups(self, groups: Stream[Group], total: int, show: Show) -> Verdicts:
        """Asks about the pairs that `comparisons` chooses in each of `total` groups.

        One judge alone is asked about a group as soon as it comes. Where there are several, the
        first is asked about all groups before the next is: a machine mostly holds one served model
        at a time. An adaptive choice follows what the first judge says; the others are asked about
        the same pairs.
        """
        found: list[OfPair] = []
        async with self._judges() as judges:
            judge = judges[0]
            with show("judging", total, "prompts") as advance:
                count = 0

                def told(of_group: list[OfPair]) -> None:
                    nonlocal count
                    count += 1
                    found.extend(of_group)
                    advance(count, judge.client.note)

                await flow(
                    groups, lambda g: self._of_group(judge, g), told, window=judge.client.window
                )
            pairs = [of_pair.pair for of_pair in found]
            return await self._together(judges, pairs, together(found), show)

    async def judge_pairs(self, pairs: Sequence[Pair], show: Show) -> Verdicts:
        """Asks every judge about every pair, and the strong one where there is doubt."""
        async with self._judges() as judges:
            return await self._together(judges, pairs, await judges[0].judge(pairs, show), show)

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
            pairs = fixed_design(kind, [group], m, self._seed)
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

    async def _together(
        self, judges: Sequence[Judge], pairs: Sequence[Pair], first: Judged, show: Show
    ) -> Verdicts:
        beside = 1 + len(self._config.panel)
        said = [first, *[await judge.judge(pairs, show) for judge in judges[1:beside]]]
        comparisons = [
            merge(pair, [found.comparisons[i] for found in said], self._rule)
            for i, pair in enumerate(pairs)
        ]
        judgments = [j for found in said for j in found.judgments]
        if (cascade := self._config.cascade) is not None:
            doubts = self._doubts(pairs, comparisons, judgments, cascade)
            found = await judges[-1].judge([pairs[i] for i in doubts], show)
            for (i, why), strong in zip(doubts.items(), found.comparisons, strict=True):
                comparisons[i] = overrule(comparisons[i], strong, why)
            judgments += found.judgments
        names = tuple(judge.name for judge in judges)
        return Verdicts(list(pairs), judgments, comparisons, names, self._way(judges))

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
        judgments: Sequence[Judgment],
        cascade: CascadeConfig,
    ) -> dict[int, str]:
        by_comparison: dict[str, list[Judgment]] = defaultdict(list)
        for judgment in judgments:
            by_comparison[judgment.comparison_id].append(judgment)
        margin = self._config.tie_margin
        return {
            i: why
            for i, (pair, of) in enumerate(zip(pairs, comparisons, strict=True))
            # Two identical texts tie, whoever is asked.
            if not pair.same_text
            and (why := doubt(of.p_first, of.votes, split(by_comparison[pair.id]), cascade, margin))
        }

"""A run's labels added up again from its stored judgments, under other weights or fewer principles:
it costs no call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from rlaif.constitution import Constitution
from rlaif.errors import SetupError
from rlaif.judge.aggregate import Pair, Rule, outcome_of, votes_of, weigh, weighted
from rlaif.judge.ask import Tiers, drawn, lots_of
from rlaif.judge.cascade import doubt, split
from rlaif.judge.config import SINGLE, AskConfig, CascadeConfig, JudgeConfig
from rlaif.types import Comparison, Judgment, Outcome, Prompt, Response


class Labelled(NamedTuple):
    """What a run has stored of its labels."""

    constitution: Constitution
    """That of the run."""
    config: JudgeConfig
    seed: int
    prompts: Sequence[Prompt]
    responses: Sequence[Response]
    judgments: Sequence[Judgment]
    comparisons: Sequence[Comparison]
    tokens: Mapping[str, tuple[int, int]]
    """Key of a call -> its prompt and completion tokens. A call that failed has none."""

    def ballots(self) -> Ballots:
        """Raises SetupError where the parts do not fit together."""
        return Ballots(self.judgments, self.comparisons, self.prompts, self.responses, self.config)


class Ballot(NamedTuple):
    """All that was said of one pair."""

    pair: Pair
    comparison: Comparison
    """As the run has it."""
    said: Mapping[str, Sequence[Judgment]]
    """Judge -> its judgments, in the order asked."""

    @property
    def asked(self) -> set[str]:
        """Ids of the principles that somebody was asked about."""
        return {j.principle_id for given in self.said.values() for j in given}


class Ballots:
    """A run's stored judgments, one ballot a comparison."""

    def __init__(
        self,
        judgments: Sequence[Judgment],
        comparisons: Sequence[Comparison],
        prompts: Iterable[Prompt],
        responses: Iterable[Response],
        config: JudgeConfig,
    ) -> None:
        """`config` must name the judges that were asked. Raises SetupError where it does not, and
        where a comparison is of a response that is not among `responses`."""
        self.config = config
        self.rule = Rule(config.tie_margin, config.min_voting_weight)
        names = _judges(judgments, comparisons)
        asked = [of for _, of in config.judges()]
        beside = 1 + len(config.panel)
        if not beside <= len(names) <= len(asked):
            raise SetupError(
                f"the judgments are those of {len(names)} judges, the config names {len(asked)}",
                field="judge",
                fix="run the judge again with this config",
            )
        self.beside = names[:beside]
        """Names of the judges that are asked about every pair, in the order asked."""
        self.strong = names[beside] if len(names) > beside else None
        """Name of a cascade's strong judge, if it was ever asked."""
        self.orders = {name: orders_of(of) for name, of in zip(names, asked, strict=False)}
        """Judge -> in how many orders it is asked."""
        self.all = _ballots(judgments, comparisons, prompts, responses)

    def said(self, ballot: Ballot, judge: str) -> Said:
        """What a judge said of a pair."""
        return said_of(ballot.said.get(judge, ()), self.orders[judge])


def orders_of(config: AskConfig) -> int:
    """In how many orders this judge is asked about a pair."""
    return 2 if config.both_orders and config.mode not in SINGLE else 1


class Said(NamedTuple):
    """What one judge said of a pair, by principle."""

    votes: Mapping[str, float]
    asked: frozenset[str]
    """The principles that it was asked under, be it in vain."""
    split: frozenset[str]
    """Those whose two orders name different winners."""


def said_of(judgments: Sequence[Judgment], orders: int) -> Said:
    """Of one judge and one pair."""
    return Said(
        votes_of(judgments, orders),
        frozenset(j.principle_id for j in judgments),
        frozenset(principle for _, principle in split(judgments)),
    )


class Together(NamedTuple):
    """What the judges that are asked about every pair come to."""

    p_first: float | None
    doubt: str
    """Why a cascade's strong judge has the last word; empty: it has not."""


def together(
    said: Mapping[str, Said],
    tiers: Sequence[Mapping[str, float]],
    rule: Rule,
    cascade: CascadeConfig | None,
) -> Together | None:
    """The judges' common word under tiers of weights, as `Panel` adds it up. None where they would
    have been asked under a principle that they were not."""
    given: dict[str, float] = {}
    votes: dict[str, list[float]] = defaultdict(list)
    divided: set[str] = set()
    for judge, of in said.items():
        p_first, reached = weigh(of.votes, tiers, rule)
        asked = {i for tier in tiers[:reached] for i in tier}
        if not asked <= of.asked:
            return None
        if p_first is not None:
            given[judge] = p_first
        for i in asked & of.votes.keys():
            votes[i].append(of.votes[i])
        divided |= asked & of.split
    p_first = next(iter(given.values()), None)
    if len(said) > 1:
        p_first = weighted(given, dict.fromkeys(said, 1.0), rule.min_voting_weight)
    if cascade is None:
        return Together(p_first, "")
    means = {i: sum(of) / len(of) for i, of in votes.items()}
    return Together(p_first, doubt(p_first, means, divided, cascade, rule.tie_margin))


class Label(NamedTuple):
    """What a pair comes to."""

    outcome: Outcome | Literal["open"]
    """open: that hangs on a judgment which was never asked for."""
    p_first: float | None
    """None: unscored or open."""


OPEN = Label("open", None)


class Tally:
    """The labels of a run, over and over, under other weights for its constitution's principles or
    some of them: what asking the judges again would make of a pair, as far as they were asked."""

    def __init__(self, ballots: Ballots, constitution: Constitution, seed: int) -> None:
        self._rule = ballots.rule
        self._cascade = ballots.config.cascade
        tiers = Tiers(ballots.config, constitution, seed)
        self._pairs = []
        for ballot in ballots.all:
            ids = [[p.id for p in tier] for tier in tiers.meant(ballot.pair)]
            drawn_from = tiers.draws and ids
            self._pairs.append(
                _Counted(
                    ballot.pair.same_text,
                    ids,
                    lots_of(ids[0], *tiers.seed_of(ballot.pair)) if drawn_from else {},
                    {judge: ballots.said(ballot, judge) for judge in ballots.beside},
                    ballots.said(ballot, ballots.strong) if ballots.strong else NOTHING,
                )
            )

    def labels(self, weights: Mapping[str, float]) -> list[Label]:
        """The label of every pair where just the principles in `weights` vote, with these
        weights."""
        return [self._label(counted, weights) for counted in self._pairs]

    def _label(self, counted: _Counted, weights: Mapping[str, float]) -> Label:
        tiers = [{i: weights[i] for i in tier if i in weights} for tier in counted.tiers]
        tiers = [tier for tier in tiers if any(tier.values())]
        if counted.lots and tiers:
            won = drawn(tiers[0], counted.lots)
            tiers = [{won: tiers[0][won]}]
        if counted.same_text:
            # A tie whatever is said, so that no later tier and no strong judge is asked.
            found = together(counted.beside, tiers[:1], self._rule, None)
        else:
            found = together(counted.beside, tiers, self._rule, self._cascade)
            if found is not None and found.doubt and tiers:
                found = together({"": counted.strong}, tiers, self._rule, None)
        if found is None:
            return OPEN
        p_first = found.p_first
        margin = self._rule.tie_margin
        return Label(outcome_of(p_first, margin, same_text=counted.same_text), p_first)


class _Counted(NamedTuple):
    """One pair's votes."""

    same_text: bool
    tiers: Sequence[Sequence[str]]
    lots: Mapping[str, float]
    """What each principle draws where one is drawn; empty where all are asked."""
    beside: Mapping[str, Said]
    """Of each judge that is asked about every pair."""
    strong: Said


NOTHING = Said({}, frozenset(), frozenset())


def _judges(judgments: Sequence[Judgment], comparisons: Sequence[Comparison]) -> list[str]:
    """Names in the order asked, the strong one last. Where no principle applied to any prompt there
    is no judgment, and the comparisons alone name the judges."""
    strong = {c.judge: None for c in comparisons if c.escalated}
    named = [j.judge for j in judgments]
    if not named:
        named = [name for c in comparisons for name in (c.by_judge or [c.judge])]
    return list(dict.fromkeys([*(name for name in named if name not in strong), *strong]))


def _ballots(
    judgments: Sequence[Judgment],
    comparisons: Sequence[Comparison],
    prompts: Iterable[Prompt],
    responses: Iterable[Response],
) -> list[Ballot]:
    prompt_of = {p.id: p for p in prompts}
    response_of = {r.id: r for r in responses}
    said: dict[str, dict[str, list[Judgment]]] = defaultdict(lambda: defaultdict(list))
    for judgment in judgments:
        said[judgment.comparison_id][judgment.judge].append(judgment)
    found = []
    for c in comparisons:
        try:
            pair = Pair(prompt_of[c.prompt_id], response_of[c.first], response_of[c.second])
        except KeyError as e:
            raise SetupError(
                f"the comparison {c.id!r} is of {e.args[0]!r}, which the run does not hold",
                fix="run the judge again",
            ) from e
        found.append(Ballot(pair, c, dict(said[c.id])))
    return found

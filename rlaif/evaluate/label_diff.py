"""Which labels of a run would change from one constitution to another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from pydantic import Field

from rlaif.constitution import Constitution
from rlaif.errors import SetupError
from rlaif.evaluate.constitution_diff import ConstitutionDiff, judged_by
from rlaif.evaluate.schema import Amount, Count
from rlaif.judge.aggregate import ROUNDING, outcome_of, weighted
from rlaif.judge.ask import Tiers
from rlaif.judge.recount import NOTHING, Ballot, Ballots, Labelled, Said, orders_of, together
from rlaif.types import Message, Outcome, Probability, Record

WINNERS: tuple[Outcome, ...] = ("A", "tie", "B")


class LabelChange(Record):
    """A label that is another under the other constitution."""

    comparison_id: str
    prompt_id: str
    prompt: tuple[Message, ...]
    first: str
    """The first response's text."""
    second: str
    before: Outcome
    after: Outcome
    p_before: tuple[Probability, Probability] | None
    """P(first preferred), between what missing votes could make of it: two equal numbers where none
    is missing. None: unscored."""
    p_after: tuple[Probability, Probability] | None


class OpenLabel(Record):
    """A label that hangs on votes which the run does not have."""

    comparison_id: str
    before: tuple[Outcome, ...]
    """What it may be: one, where that is settled."""
    after: tuple[Outcome, ...]


class ToAsk(Record):
    """What the votes would cost that the other constitution needs and the run does not have."""

    judgments: Count
    """At least so many, in single orders."""
    judgments_at_most: Count
    """More where missing votes of a tier may leave a pair to the next one, or to a cascade's strong
    judge."""
    calls: Amount | None
    """Of `judgments`, by what the run's judgments took; None: the run's calls are not stored."""
    prompt_tokens: Amount | None
    completion_tokens: Amount | None
    usd: Amount | None
    """None: a price (`usd_per_million_tokens`) is not known."""


class LabelDiff(Record):
    """A run's labels from one constitution to another, by the votes that the run has."""

    principles: int = Field(ge=1)
    """Of the other constitution;"""
    known: Count
    """so many of them were asked about in the run, by what a judge reads."""
    comparisons: Count
    same: Count
    """Labels that stay, whatever missing votes say."""
    changes: Mapping[str, Count]
    """`A->tie` -> labels that change so, whatever missing votes say."""
    changed: tuple[LabelChange, ...]
    open: tuple[OpenLabel, ...]
    to_ask: ToAsk


class RunDiff(Record):
    """What constitution-diff.json holds."""

    constitutions: ConstitutionDiff
    labels: LabelDiff


def diff_labels(run: Labelled, before: Constitution, after: Constitution) -> LabelDiff:
    """Which labels of `run` would change from `before` to `after`.

    A vote is taken over where a judge would read the same of the principle, whatever its id,
    weight, tier or condition. A vote that was never asked for may be anything from 0 to 1, and a
    label is settled where it is the same at both ends, be it a cascade's strong judge or the others
    who would have the last word. All that is missing is taken to be answered: an answer that fails
    may leave a settled label unscored, or a panel's to its other judges.

    Raises SetupError where `before` shares no principle with the run's own constitution.
    """
    ballots = run.ballots()
    then, now = (_Version(run, ballots, version) for version in (before, after))
    if not then.same:
        own = run.constitution
        raise SetupError(
            f"the labels follow {own.id} {own.version} ({own.hash[:12]}), which shares no "
            f"principle with {before.id} {before.version} ({before.hash[:12]})",
            field="constitution",
            fix="name that one as the first of the two",
        )
    same, changes = 0, Counter[str]()
    changed, undecided = list[LabelChange](), list[OpenLabel]()
    for ballot in ballots.all:
        old, new = then.label(ballot), now.label(ballot)
        if old == new and (len(new.outcomes) == 1 or then.asks(ballot) == now.asks(ballot)):
            same += 1
        elif len(old.outcomes) > 1 or len(new.outcomes) > 1:
            undecided.append(
                OpenLabel(comparison_id=ballot.pair.id, before=old.outcomes, after=new.outcomes)
            )
        elif old.outcomes == new.outcomes:
            same += 1
        else:
            changes[f"{old.outcomes[0]}->{new.outcomes[0]}"] += 1
            changed.append(_label_change(ballot, old, new))
    return LabelDiff(
        principles=len(after.principles),
        known=len(now.same),
        comparisons=len(ballots.all),
        same=same,
        changes=dict(sorted(changes.items())),
        changed=tuple(changed),
        open=tuple(undecided),
        to_ask=_to_ask(run, ballots, now),
    )


def _label_change(ballot: Ballot, old: _Label, new: _Label) -> LabelChange:
    pair = ballot.pair
    return LabelChange(
        comparison_id=pair.id,
        prompt_id=pair.prompt.id,
        prompt=pair.prompt.messages,
        first=pair.first.text,
        second=pair.second.text,
        before=old.outcomes[0],
        after=new.outcomes[0],
        p_before=old.p,
        p_after=new.p,
    )


def _same_votes(own: Constitution, version: Constitution) -> dict[str, str]:
    """Id in a version -> id of a principle of the run's that a judge reads alike; the same id where
    several are."""
    by_content: dict[str, list[str]] = defaultdict(list)
    for p in own.principles:
        by_content[judged_by(p)].append(p.id)
    return {
        p.id: p.id if p.id in ids else ids[0]
        for p in version.principles
        if (ids := by_content.get(judged_by(p)))
    }


class _Reach(NamedTuple):
    """What one judge may say of a pair."""

    low: float
    """P(first), at least. Above `high` where it surely gives none."""
    high: float
    unscored: bool
    """Whether it may give none."""


class _Label(NamedTuple):
    """What a label may be."""

    p: tuple[float, float] | None
    outcomes: tuple[Outcome, ...]


class _Version:
    """A run's labels under one constitution, by the votes that the run has."""

    def __init__(self, run: Labelled, ballots: Ballots, version: Constitution) -> None:
        self.same = _same_votes(run.constitution, version)
        """Id -> the run's id of a principle that a judge reads alike."""
        self._tiers = Tiers(run.config, version, run.seed)
        self._ballots = ballots
        self._cascade = run.config.cascade
        self._content = {p.id: judged_by(p) for p in version.principles}
        self.missing: Counter[str] = Counter()
        """Judge -> judgments that have to be asked for,"""
        self.perhaps: Counter[str] = Counter()
        """and those that may have to be."""

    def asks(self, ballot: Ballot) -> list[list[tuple[str, float]]]:
        """What the pair is asked under: what a judge reads, and its weight."""
        tiers = self._tiers.of(ballot.pair)
        return [[(self._content[p.id], p.weight) for p in tier] for tier in tiers]

    def label(self, ballot: Ballot) -> _Label:
        """What the pair's label may be. Counts what has to be asked to know."""
        same_text = ballot.pair.same_text
        tiers = self._tiers.of(ballot.pair)[: 1 if same_text else None]
        weights = [{p.id: p.weight for p in tier} for tier in tiers]
        beside = self._ballots.beside
        said = {judge: self._said(ballot, judge) for judge in beside}
        found = self._merged(
            [self._reach(said[judge], judge, weights, surely=True) for judge in beside], same_text
        )
        if self._cascade is None or same_text or not tiers:
            return found
        known = together(said, weights, self._ballots.rule, self._cascade)
        if known is not None and not known.doubt:
            return found
        strong = self._strong(ballot, weights, surely=known is not None)
        return strong if known is not None else _either(found, strong)

    def _said(self, ballot: Ballot, judge: str) -> Said:
        """What a judge said, under this version's ids."""
        said = self._ballots.said(ballot, judge)
        ids = self.same.items()
        return Said(
            {i: said.votes[was] for i, was in ids if was in said.votes},
            frozenset(i for i, was in ids if was in said.asked),
            frozenset(i for i, was in ids if was in said.split),
        )

    def _strong(
        self, ballot: Ballot, tiers: Sequence[Mapping[str, float]], *, surely: bool
    ) -> _Label:
        """What a cascade's strong judge may make of a pair, which it is asked about `surely` or
        perhaps."""
        judge = self._ballots.strong
        if judge is not None:
            said = self._said(ballot, judge)
            return self._merged([self._reach(said, judge, tiers, surely=surely)], same_text=False)
        assert self._cascade is not None, "only a cascade has one"
        unheard = self._reach(NOTHING, self._cascade.model, tiers, surely=surely)
        return self._merged([unheard], same_text=False)

    def _merged(self, reaches: Sequence[_Reach], same_text: bool) -> _Label:
        """What judges may say together."""
        rule = self._ballots.rule
        given = {str(n): of for n, of in enumerate(reaches) if of.low <= of.high}
        every = dict.fromkeys(map(str, range(len(reaches))), 1.0)
        low, high = (
            # One judge's P is itself, to the last bit.
            next(iter(ends.values()), None)
            if len(every) == 1
            else weighted(ends, every, rule.min_voting_weight)
            for ends in (
                {n: of.low for n, of in given.items()},
                {n: of.high for n, of in given.items()},
            )
        )
        if low is None or high is None:
            return _Label(None, ("unscored",))
        between = _between(low, high, rule.tie_margin, same_text)
        if not any(of.unscored for of in given.values()):
            return _Label((low, high), between)
        # On a panel the mean of the others may be anything.
        return _Label((low, high), (*(between if len(every) == 1 else WINNERS), "unscored"))

    def _reach(
        self, said: Said, judge: str, tiers: Sequence[Mapping[str, float]], *, surely: bool
    ) -> _Reach:
        """The hull of what one judge's P(first) may be."""
        orders = self._orders(judge)
        margin = self._ballots.rule.tie_margin
        edge = max(margin, ROUNDING) + ROUNDING
        ends: list[float] = []
        unscored = not tiers
        for n, tier in enumerate(tiers, 1):
            new = tier.keys() - said.asked
            (self.missing if surely else self.perhaps)[judge] += orders * len(new)
            reach = self._mean(tier, said.votes, new)
            if reach is None:
                unscored = True
                break
            low, high = reach
            at_least, at_most = outcome_of(low, margin), outcome_of(high, margin)
            if n == len(tiers) or at_least == "A" or at_most == "B":
                ends += [low, high]
                break
            # What names a winner ends here; what is level goes on to the next tier.
            if at_least == "B":
                ends += [low, 0.5 - edge]
            if at_most == "A":
                ends += [0.5 + edge, high]
            surely = surely and not ends
        if not ends:
            return _Reach(1.0, 0.0, unscored)
        return _Reach(max(min(ends), 0.0), min(max(ends), 1.0), unscored)

    def _orders(self, judge: str) -> int:
        if judge in self._ballots.orders:
            return self._ballots.orders[judge]
        assert self._cascade is not None, "all others were asked"
        return orders_of(self._cascade)

    def _mean(
        self, weights: Mapping[str, float], votes: Mapping[str, float], new: Set[str]
    ) -> tuple[float, float] | None:
        """A tier's weighted mean with every missing vote at 0 and at 1."""
        given = {i: votes[i] for i in weights if i in votes}
        low, high = (
            weighted(
                {i: end if i in new else given[i] for i in weights if i in new or i in given},
                weights,
                self._ballots.rule.min_voting_weight,
            )
            for end in (0.0, 1.0)
        )
        return None if low is None or high is None else (low, high)


def _either(one: _Label, other: _Label) -> _Label:
    """What a label may be that is one of two."""
    outcomes = {*one.outcomes, *other.outcomes}
    ends = [end for p in (one.p, other.p) if p is not None for end in p]
    return _Label(
        (min(ends), max(ends)) if ends else None,
        tuple(outcome for outcome in (*WINNERS, "unscored") if outcome in outcomes),
    )


def _between(low: float, high: float, tie_margin: float, same_text: bool) -> tuple[Outcome, ...]:
    """Every outcome that P(first) from low to high may have."""
    one, other = (outcome_of(p, tie_margin, same_text=same_text) for p in (high, low))
    return WINNERS[WINNERS.index(one) : WINNERS.index(other) + 1]


def _to_ask(run: Labelled, ballots: Ballots, version: _Version) -> ToAsk:
    asked = Counter(j.judge for j in run.judgments)
    prices = dict(
        zip(
            ballots.orders,
            (of.usd_per_million_tokens for _, of in run.config.judges()),
            strict=False,
        )
    )
    calls = prompt = completion = 0.0
    usd: float | None = 0.0
    known = True
    for judge, judgments in version.missing.items():
        if not judgments:
            continue
        stored = {c for j in run.judgments if j.judge == judge for c in j.calls if c in run.tokens}
        if not stored:
            known = False
            break
        each = judgments / asked[judge]
        spent = [each * sum(run.tokens[call][side] for call in stored) for side in (0, 1)]
        calls += each * len(stored)
        prompt, completion = prompt + spent[0], completion + spent[1]
        price = prices[judge]
        usd = (
            None
            if price is None or usd is None
            else usd + (spent[0] * price[0] + spent[1] * price[1]) / 1e6
        )
    surely = version.missing.total()
    return ToAsk(
        judgments=surely,
        judgments_at_most=surely + version.perhaps.total(),
        calls=calls if known else None,
        prompt_tokens=prompt if known else None,
        completion_tokens=completion if known else None,
        usd=usd if known else None,
    )

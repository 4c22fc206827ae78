"""From a run's stored votes to the figures of `Attribution`. No model is asked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rlaif.constitution import Principle, facts
from rlaif.errors import SetupError
from rlaif.evaluate import metrics
from rlaif.evaluate.attribution import (
    FEW_PAIRS,
    Attribution,
    HumanFigures,
    PrincipleAttribution,
    PrincipleCost,
    Together,
)
from rlaif.evaluate.attribution_findings import Changes, findings, smaller
from rlaif.evaluate.certificate_figures import SIDE
from rlaif.evaluate.headline import FEW_PROMPTS
from rlaif.evaluate.intervals import RESAMPLES, ROUNDING, Interval, binomial, clustered_share
from rlaif.evaluate.schema import ConstitutionFacts, LedgerRecord
from rlaif.evaluate.wording import counted
from rlaif.judge.aggregate import is_level, ledger, outcome_of
from rlaif.judge.recount import Ballots, Label, Labelled, Tally
from rlaif.types import Comparison, Judgment

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Figure = Callable[[Floats], Floats]
"""From sums (R, S) to a figure of each of R resamples; NaN where there is none."""
Human = Mapping[str, Sequence[tuple[Comparison, float]]]
"""Source -> comparisons and what people said of them: 1 first, 0 second, 0.5 level."""

NO_SPREAD = 1e-12
"""A variance up to this is rounding."""
PART = 100
"""Resamples whose sums are added up at once."""


def attribute(run: Labelled, human: Human) -> Attribution:
    """What each principle did to the labels of `run`, and with `human` how it agrees with people.

    Flips are exact: each is what the judges would make of the pair without the principle, by what
    they have said; where that leads to a question which they were never asked, the label is open
    and no flip. Intervals resample prompts. Raises SetupError where the stored comparisons are not
    those that the stored judgments make under the run's constitution and config.
    """
    return _Run(run).attribution(human)


class _Run:
    """A run's votes as arrays over M comparisons."""

    def __init__(self, run: Labelled) -> None:
        self.run = run
        self.margin = run.config.tie_margin
        self.principles = run.constitution.principles
        self.ballots: Ballots = run.ballots()
        self.tally = Tally(self.ballots, run.constitution, run.seed)
        self.weights = {p.id: p.weight for p in self.principles}
        self.labels = self.tally.labels(self.weights)
        for label, c in zip(self.labels, run.comparisons, strict=True):
            if (label.outcome, label.p_first) != (c.outcome, c.p_first):
                raise SetupError(
                    f"the comparison {c.id!r} is {c.outcome} and its judgments make it "
                    f"{label.outcome}: the config or the constitution has changed since",
                    fix="run the judge again; stored calls cost nothing",
                )
        self.prompt_M = [c.prompt_id for c in run.comparisons]
        self.length_M = np.array(
            [len(b.pair.first.text) - len(b.pair.second.text) for b in self.ballots.all],
            dtype=np.float64,
        )
        # A judge of two equal texts must name one position, and says nothing by it.
        differ_M = np.array([not b.pair.same_text for b in self.ballots.all])
        self.vote_M = {
            p.id: np.where(
                differ_M, [c.votes.get(p.id, np.nan) for c in run.comparisons], np.nan
            ).astype(np.float64)
            for p in self.principles
        }
        self.side_M = {i: self._sides(vote_M) for i, vote_M in self.vote_M.items()}
        self.total_M = self._sides_of(self.labels)
        self.resamples = Resamples(self.prompt_M, run.seed)

    def attribution(self, human: Human) -> Attribution:
        run = self.run
        counts = ledger(run.comparisons)
        costs = _costs(run)
        principles = tuple(
            self._principle(p, costs.get(p.id), self._human(p.id, human)) for p in self.principles
        )
        together = tuple(
            self._together(one.id, other.id)
            for n, one in enumerate(self.principles)
            for other in self.principles[n + 1 :]
        )
        too_few = self._too_few()
        changes = Changes(self.tally, self.weights, self.labels, self.prompt_M, run.seed)
        same_tier = run.config.principles != "tiers"
        found = () if too_few else findings(principles, together, changes, same_tier)
        redundant = {of.principle for of in found if of.kind == "redundant"}
        return Attribution(
            constitution=ConstitutionFacts.model_validate(facts(run.constitution)),
            judges=tuple(self.ballots.orders),
            principles_asked=run.config.principles,
            tie_margin=self.margin,
            prompts=len(set(self.prompt_M)),
            labels=LedgerRecord(requested=counts.requested, **counts._asdict()),
            too_few=too_few,
            principles=principles,
            together=together,
            findings=found,
            smaller=None if too_few else smaller(principles, redundant, changes),
            human={
                source: HumanFigures(
                    pairs=sum(p_gold != 0.5 for _, p_gold in rows),
                    total=self._as_people([(c.p_first, c.prompt_id, g) for c, g in rows]),
                )
                for source, rows in human.items()
            },
        )

    def _too_few(self) -> str:
        scored = sum(label.p_first is not None for label in self.labels)
        prompts = len(set(self.prompt_M))
        if scored < FEW_PAIRS:
            return f"{counted(scored, 'label')}, and {FEW_PAIRS} are the least to tell by"
        if prompts < FEW_PROMPTS:
            return f"{counted(prompts, 'prompt')}, and {FEW_PROMPTS} are the least to tell by"
        return ""

    def _principle(
        self, principle: Principle, cost: PrincipleCost | None, human: Mapping[str, Interval]
    ) -> PrincipleAttribution:
        i = principle.id
        others = self.tally.labels({k: w for k, w in self.weights.items() if k != i})
        others_M = self._sides_of(others)
        flips = Counter(
            f"{before.outcome}->{after.outcome}"
            for before, after in zip(self.labels, others, strict=True)
            if after.outcome not in (before.outcome, "open")
        )
        asked = [i in b.asked for b in self.ballots.all]
        voted = [i in c.votes for c in self.run.comparisons]
        side_M, vote_M = self.side_M[i], self.vote_M[i]
        decides_M = np.abs(side_M) == 1.0
        won_M = np.array([label.outcome in ("A", "B") for label in self.labels])
        changed = [
            after.outcome not in (before.outcome, "open")
            for before, after in zip(self.labels, others, strict=True)
        ]
        flip_rate = self.resamples.share(np.array(changed), np.full(len(changed), True))
        assert flip_rate is not None, "a run has comparisons"
        longer_M = side_M == np.sign(self.length_M)
        unequal_M = decides_M & (self.length_M != 0)
        p_others_M = np.array([np.nan if o.p_first is None else o.p_first for o in others])
        return PrincipleAttribution(
            id=i,
            text=principle.text,
            weight=principle.weight,
            tier=principle.tier,
            applicable=_mean([principle.applies(b.pair.prompt) for b in self.ballots.all]) or 0.0,
            asked=sum(asked),
            votes=sum(voted),
            unscored=_mean([not v for v, a in zip(voted, asked, strict=True) if a]),
            decides=_mean(decides_M[~np.isnan(vote_M)]),
            flip_rate=flip_rate,
            flips=dict(sorted(flips.items())),
            open=sum(label.outcome == "open" for label in others),
            decided=self.resamples.share(np.array(changed), won_M),
            decided_alone=self.resamples.share(decides_M & self._others_silent(i), won_M),
            # A drawn principle's vote is the label.
            agrees_with_total=None
            if self.run.config.principles == "sample"
            else self.resamples.share(
                side_M == self.total_M, decides_M & (np.abs(self.total_M) == 1.0)
            ),
            agrees_with_others=self.resamples.share(
                side_M == others_M, decides_M & (np.abs(others_M) == 1.0)
            ),
            correlation_with_others=self.resamples.correlation(vote_M, p_others_M),
            human=human,
            cost=cost,
            prefers_longer=self.resamples.share(longer_M, unequal_M),
            length_correlation=self.resamples.correlation(vote_M, self.length_M),
            same_position=self._same_position(i),
        )

    def _others_silent(self, i: str) -> Bools:
        silent_M: Bools = np.full(len(self.labels), True)
        for other, side_M in self.side_M.items():
            if other != i:
                silent_M &= np.abs(side_M) != 1.0
        return silent_M

    def _together(self, one: str, other: str) -> Together:
        vote_M, with_M = self.vote_M[one], self.vote_M[other]
        side_M, beside_M = self.side_M[one], self.side_M[other]
        both_M = (np.abs(side_M) == 1.0) & (np.abs(beside_M) == 1.0)
        return Together(
            one=one,
            other=other,
            votes=int((~np.isnan(vote_M) & ~np.isnan(with_M)).sum()),
            correlation=self.resamples.correlation(vote_M, with_M),
            decided=int(both_M.sum()),
            conflict=self.resamples.share(side_M != beside_M, both_M),
        )

    def _same_position(self, i: str) -> Interval | None:
        questions: dict[tuple[str, str], list[Judgment]] = defaultdict(list)
        for ballot in self.ballots.all:
            if not ballot.pair.same_text:
                for judge, said in ballot.said.items():
                    questions[ballot.pair.id, judge] += [j for j in said if j.principle_id == i]
        prompt_of = {c.id: c.prompt_id for c in self.run.comparisons}
        hits, prompts = [], []
        for (comparison_id, _), said in questions.items():
            given = [j.p_first for j in said if j.p_first is not None]
            if len(given) == 2 and not any(is_level(p, 0.0) for p in given):
                # Turned back, so that one position in both orders names two responses.
                hits.append(float((given[0] > 0.5) != (given[1] > 0.5)))
                prompts.append(prompt_of[comparison_id])
        return clustered_share(hits, prompts, self.run.seed) if hits else None

    def _human(self, i: str, human: Human) -> dict[str, Interval]:
        found = {}
        for source, rows in human.items():
            votes = [(c.votes.get(i), c.prompt_id, p_gold) for c, p_gold in rows]
            agreement = self._as_people(votes)
            if agreement is not None:
                found[source] = agreement
        return found

    def _as_people(self, votes: Sequence[tuple[float | None, str, float]]) -> Interval | None:
        """As the accuracy of a certificate: over decided rows with a vote, a tie counts half."""
        rows = [
            (SIDE[outcome_of(vote, self.margin)], prompt, p_gold)
            for vote, prompt, p_gold in votes
            if vote is not None and p_gold != 0.5
        ]
        if not rows:
            return None
        credit_M = metrics.pair_accuracy([side - 0.5 for side, _, _ in rows], [g for *_, g in rows])
        return clustered_share(credit_M, [prompt for _, prompt, _ in rows], self.run.seed)

    def _sides(self, vote_M: Floats) -> Floats:
        """1 first, -1 second, 0 level, NaN no vote."""
        level_M = np.array([is_level(vote, self.margin) for vote in vote_M], dtype=np.bool_)
        return np.where(level_M, 0.0, np.sign(vote_M - 0.5))

    def _sides_of(self, labels: Sequence[Label]) -> Floats:
        of = {"A": 1.0, "B": -1.0, "tie": 0.0, "unscored": np.nan, "open": np.nan}
        return np.array([of[label.outcome] for label in labels])


def _mean(hits: Sequence[bool] | Bools) -> float | None:
    return float(np.mean(hits)) if len(hits) else None


class Resamples:
    """Shares and correlations over some of a run's comparisons, with percentile bootstraps over its
    prompts: all from the same resamples, so that a matrix of them is quick.

    Source: Davison & Hinkley (1997), Bootstrap Methods, section 3.8 and eq. 5.18.
    """

    def __init__(self, prompt_M: Sequence[str], seed: int) -> None:
        names_C, self._cluster_M = np.unique(np.asarray(prompt_M), return_inverse=True)
        self._prompt_M = prompt_M
        self._seed = seed
        self._C = C = len(names_C)
        drawn_RC = np.random.default_rng(seed).multinomial(C, np.full(C, 1.0 / C), size=RESAMPLES)
        self._drawn_RC = drawn_RC.astype(np.uint16)

    def share(self, hit_M: Bools, of_M: Bools) -> Interval | None:
        """Share of hits among the comparisons in `of_M`; None where there are none. Where all of
        their prompts have the same share the ends are those of `clustered_share`."""
        if not of_M.any():
            return None
        cluster_M, hit_M = self._cluster_M[of_M], hit_M[of_M]
        sum_CS = self._sums(cluster_M, [np.ones(len(hit_M)), hit_M.astype(np.float64)])
        found = self._interval(_ratio, sum_CS, cluster_M)
        assert found is not None, "there are values"
        if found.low is None or found.high is None or found.high - found.low > ROUNDING:
            return found
        if found.value in (0.0, 1.0):
            ends = binomial(round(found.value) * found.clusters, found.clusters)
            return ends.model_copy(update={"n": found.n})
        prompts = [prompt for prompt, of in zip(self._prompt_M, of_M, strict=True) if of]
        return clustered_share(hit_M.astype(np.float64), prompts, self._seed)

    def correlation(self, x_M: Floats, y_M: Floats) -> Interval | None:
        """Pearson's r of the values that are both there (not NaN). None under three of them, and
        where one side does not vary."""
        there_M = ~(np.isnan(x_M) | np.isnan(y_M))
        x_M, y_M, cluster_M = x_M[there_M], y_M[there_M], self._cluster_M[there_M]
        if len(x_M) < 3:
            return None
        x_M, y_M = x_M - x_M.mean(), y_M - y_M.mean()
        moments = [np.ones_like(x_M), x_M, y_M, x_M**2, y_M**2, x_M * y_M]
        return self._interval(_pearson, self._sums(cluster_M, moments), cluster_M)

    def _sums(self, cluster_M: npt.NDArray[np.intp], values: Sequence[Floats]) -> Floats:
        """(C, S): the sums of each of S values over each prompt."""
        sums = [np.bincount(cluster_M, weights=of_M, minlength=self._C) for of_M in values]
        return np.stack(sums, axis=1)

    def _interval(
        self, figure: Figure, sum_CS: Floats, cluster_M: npt.NDArray[np.intp]
    ) -> Interval | None:
        """Resamples for which there is no figure are left out; no ends where these are half."""
        [value] = figure(sum_CS.sum(axis=0)[None])
        if np.isnan(value):
            return None
        low = high = None
        clusters = len(np.unique(cluster_M))
        if clusters > 1:
            parts = range(0, RESAMPLES, PART)
            value_R = np.concatenate(
                [figure(self._drawn_RC[r : r + PART].astype(np.float64) @ sum_CS) for r in parts]
            )
            value_R = value_R[~np.isnan(value_R)]
            if len(value_R) > RESAMPLES / 2:
                low, high = (float(end) for end in np.quantile(value_R, [0.025, 0.975]))
        return Interval(value=float(value), low=low, high=high, n=len(cluster_M), clusters=clusters)


def _ratio(sum_RS: Floats) -> Floats:
    """Share from the sums of 1 and of hits; NaN where there is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(sum_RS[:, 1], sum_RS[:, 0])


def _pearson(sum_RS: Floats) -> Floats:
    """r from the sums of 1, x, y, x², y², xy; NaN where one side does not vary."""
    n_R = sum_RS[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        x_R, y_R, xx_R, yy_R, xy_R = (sum_RS[:, 1:] / n_R[:, None]).T
        var_x_R, var_y_R = xx_R - x_R**2, yy_R - y_R**2
        r_R = (xy_R - x_R * y_R) / np.sqrt(var_x_R * var_y_R)
    varies_R = (var_x_R > NO_SPREAD) & (var_y_R > NO_SPREAD)
    return np.where(varies_R, np.clip(r_R, -1.0, 1.0), np.nan)


def _costs(run: Labelled) -> dict[str, PrincipleCost]:
    """What each principle's judgments cost, by the calls behind them that were answered."""
    users: dict[str, set[str]] = defaultdict(set)
    judgments: Counter[str] = Counter()
    for j in run.judgments:
        judgments[j.principle_id] += 1
        for call in j.calls:
            if call in run.tokens:
                users[call].add(j.principle_id)
    calls: Counter[str] = Counter()
    tokens: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for call, of in users.items():
        for i in of:
            calls[i] += 1
            for side, spent in enumerate(run.tokens[call]):
                tokens[i][side] += spent / len(of)
    total = sum(sum(spent) for spent in tokens.values())
    if not total:
        return {}
    return {
        p.id: PrincipleCost(
            judgments=judgments[p.id],
            calls=calls[p.id],
            prompt_tokens=tokens[p.id][0],
            completion_tokens=tokens[p.id][1],
            share=min(sum(tokens[p.id]) / total, 1.0),
        )
        for p in run.constitution.principles
    }

"""Judges held against people's pairs in several styles of prompt, as in Lee et al. (2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from rlaif import __version__
from rlaif.constitution import Constitution, facts, load_constitution
from rlaif.constitution.model import Example
from rlaif.errors import SetupError
from rlaif.evaluate.certificate import Ceiling, GoldFacts, Row
from rlaif.evaluate.certificate_pairs import Chosen, asked_about, rows_of
from rlaif.evaluate.lee_page import words, write_tables
from rlaif.evaluate.lee_tables import (
    LabelCost,
    LeeRow,
    LeeTables,
    Reading,
    Style,
    by_majority,
    lee_row,
    longer_wins,
)
from rlaif.evaluate.schema import ConstitutionFacts
from rlaif.files import digest
from rlaif.gold import GoldPair, GoldSet, check_there, load_gold, part_of
from rlaif.gold.grouping import opening
from rlaif.judge.config import JudgeConfig, Mode
from rlaif.models.client import Bill
from rlaif.models.pool import ModelConfig
from rlaif.progress import say
from rlaif.stages._asking import Judged, try_to_ask
from rlaif.types import Record
from rlaif.workspace import Workspace

WAYS: Mapping[Style, tuple[Mode, str]] = {
    "plain": ("pairwise", "compare_plain"),
    "detailed": ("pairwise", "compare"),
    "chain_of_thought": ("reasoning", "compare_reasoned"),
}
"""Reading mode and template of each style."""
NO_RATIONALE = (
    "an example before a chain of thought needs a rationale, and people's pairs come without one"
)


class PeopleConfig(Record):
    """People's preference pairs."""

    path: str
    """Pairs whose better response people have named: a file (.json, .jsonl, .parquet, .gz), a
    folder that `datasets` reads, a gold set of ours, or hub:ORG/NAME[/CONFIG][@SPLIT]. One half of
    them, by prompt, is judged; examples come from the other."""
    limit: int | None = Field(default=None, ge=1)
    """Most pairs that are judged, of a fixed shuffle; none: all."""


class LabelersConfig(Record):
    """The judges, and what they judge by."""

    models: tuple[ModelConfig, ...]
    """The judges: model strings, or sections with a model and how to reach it."""
    constitution: str
    """Constitution file, or the name of one of ours. Its own examples are not shown."""
    logprobs: bool = True
    """Read verdicts from log-probabilities where the provider gives them; false: from text."""
    critique_tokens: int = Field(default=160, ge=1)
    """Most tokens of a rationale."""
    text_verdict_tokens: int = Field(default=16, ge=2)
    """Most tokens of a verdict that is read from text."""
    vote_tokens: int = Field(default=256, ge=2)
    """Most tokens of one written-out verdict, for self-consistency."""
    min_label_mass: float = Field(default=0.1, ge=0, le=1)
    """A verdict whose labels hold less probability than this together is unscored."""
    tie_margin: float = Field(default=0.01, ge=0, lt=0.5)
    """Pairs with |p - 0.5| up to this are ties, which count half."""

    @field_validator("models", mode="before")
    @classmethod
    def _text_is_a_model(cls, models: Any) -> Any:
        if not models:
            raise ValueError("name at least one judge, as in judge.models=[openai/NAME]")
        if not isinstance(models, list | tuple):
            return models
        return [{"model": m} if isinstance(m, str) else m for m in models]

    @field_validator("models")
    @classmethod
    def _are_different(cls, models: tuple[ModelConfig, ...]) -> tuple[ModelConfig, ...]:
        if len({m.model for m in models}) < len(models):
            raise ValueError("a judge is named twice")
        return models

    def asked_in(self, model: ModelConfig, mode: Mode, template: str, **more: Any) -> JudgeConfig:
        """One of the judges, asked in one way."""
        settings = self.model_dump(exclude={"models"})
        way = {"mode": mode, "template": template, **more}
        return JudgeConfig.model_validate({**settings, **model.model_dump(), **way})


class Prepared(NamedTuple):
    """What is known before anything is asked."""

    people: GoldSet
    judged: list[GoldPair]
    """Of the test half."""
    examples: list[GoldPair]
    """Of the dev half."""

    @property
    def chosen(self) -> Chosen:
        return [(self.people, pair) for pair in self.judged]


def prepare(config: PeopleConfig, shots: int, seed: int) -> Prepared:
    """The pairs to judge and the examples to show. Raises SetupError where there are too few."""
    check_there(config.path, "human.path")
    people = load_gold(config.path)
    decided = [p for p in people.pairs if p.p_gold != 0.5]
    judged = part_of(decided, "test", config.limit)
    if not judged:
        raise SetupError(
            f"of {len(decided)} decided pairs none lies in the half that is judged",
            file=people.path,
            field="human.path",
            fix="give more pairs",
        )
    examples = examples_of(decided, shots, seed)
    if len(examples) < shots:
        raise SetupError(
            f"asks for {shots} examples, and the half that they come from holds {len(examples)} "
            "decided pairs with a prompt of one turn that are of no use elsewhere",
            field="shots",
            fix="show fewer, or give more pairs in human.path",
        )
    return Prepared(people, judged, examples)


def examples_of(decided: Sequence[GoldPair], k: int, seed: int) -> list[GoldPair]:
    """Up to `k` pairs of the dev half to show as examples, drawn by the seed from the shorter half
    of those with a prompt of one turn; at most one a prompt, none of a conversation of which a turn
    may be judged. Fewer are the first of more."""
    judged = {opening(p.prompt) for p in part_of(decided, "test", None)}
    usable = {
        p.prompt.id: p
        for p in part_of(decided, "dev", None)
        if len(p.prompt.messages) == 1
        and opening(p.prompt) not in judged
        and p.first.strip()
        and p.second.strip()
    }
    by_length = sorted(usable.values(), key=lambda p: (_characters(p), p.prompt.id))
    short = by_length[: max(k, (len(by_length) + 1) // 2)]
    return sorted(short, key=lambda p: digest([seed, p.prompt.id]))[:k]


def _characters(pair: GoldPair) -> int:
    return len(pair.prompt.messages[0].content) + len(pair.first) + len(pair.second)


def showing(constitution: Constitution, pairs: Sequence[GoldPair]) -> Constitution:
    """The constitution with these pairs as the examples of all its principles. Templates let A and
    B be the better one in turn."""
    examples = tuple(
        Example(
            prompt=p.prompt.messages[0].content,
            chosen=p.first if p.p_gold > 0.5 else p.second,
            rejected=p.second if p.p_gold > 0.5 else p.first,
        )
        for p in pairs
    )
    principles = (p.model_copy(update={"examples": examples}) for p in constitution.principles)
    return constitution.model_copy(update={"principles": tuple(principles)})


class Way(NamedTuple):
    """One way to ask a judge."""

    row: LeeRow
    """Of which judge and way it tells, and for now that it was not asked."""
    config: JudgeConfig | None
    """None: it cannot be asked so, and `row` says why."""


def styles_of(
    model: ModelConfig, judge: LabelersConfig, styles: Sequence[Style], shots: Sequence[int]
) -> list[Way]:
    """Each style with each number of examples, in the order asked."""
    found = []
    for style, k in product(styles, shots):
        row = LeeRow(judge=model.model, way=style, shots=k, failed=NO_RATIONALE)
        asked = style != "chain_of_thought" or not k
        found.append(Way(row, judge.asked_in(model, *WAYS[style]) if asked else None))
    return found


def votes_of(model: ModelConfig, judge: LabelersConfig, samples: int) -> tuple[Way, Way]:
    """A rationale and verdict in one text: one at temperature 0, and `samples` at 1."""

    def way(reading: Reading, n: int, temperature: float) -> Way:
        row = LeeRow(judge=model.model, way=reading, shots=0, samples=n, failed="not asked")
        more = {"votes": n, "temperature": temperature}
        return Way(row, judge.asked_in(model, "votes", "compare_voted", **more))

    return way("single", 1, 0.0), way("average", samples, 1.0)


class _Asking(NamedTuple):
    """All that asking one judge after the other has in common."""

    constitution: Constitution
    prepared: Prepared
    ceiling: Ceiling | None
    work: Workspace
    bill: Bill

    async def row(self, way: Way, first: Sequence[Row]) -> tuple[LeeRow, list[Row]]:
        """The way's row filled in, and what it stands on: nothing where the judge cannot be asked
        so. `first`: what the judge's first row stands on, if there is one."""
        row, config = way
        if config is None:
            return row, []
        say(f"{row.judge}, {words(row)} …")
        prepared, seed = self.prepared, self.work.seed
        chosen = prepared.chosen
        shown = showing(self.constitution, prepared.examples[: row.shots])
        asked = await try_to_ask(config, shown, self.work, self.bill, asked_about(chosen))
        if isinstance(asked, str):
            return row.model_copy(update={"failed": asked}), []
        found = rows_of(chosen, asked.verdicts, shown)
        cost = self._cost(config, asked)
        return lee_row(row, found, first, cost, self.ceiling, seed), found

    def _cost(self, config: JudgeConfig, asked: Judged) -> LabelCost:
        bill = Bill()
        for of_judge in asked.bills.values():
            bill.add(of_judge)
        price = self.work.pool.price_of(config, "judge.models")
        usd = None
        if price is not None:
            usd = price.usd_of(
                bill.prompt_tokens,
                bill.completion_tokens,
                cached=bill.cached_tokens,
                batched=config.batch is not None,
            )
        labels = len(self.prepared.judged)
        return LabelCost(
            calls=(bill.calls_made + bill.calls_from_store) / labels,
            prompt_tokens=bill.prompt_tokens / labels,
            completion_tokens=bill.completion_tokens / labels,
            usd=None if usd is None else usd / labels,
        )


async def run(
    people: PeopleConfig,
    judge: LabelersConfig,
    styles: Sequence[Style],
    shots: Sequence[int],
    samples: int,
    work: Workspace,
) -> LeeTables:
    """Asks every judge about the pairs in every way, writes lee.json, .csv, .md and .html, and
    returns what they hold. Raises SetupError."""
    prepared = prepare(people, max(shots), work.seed)
    constitution, _ = load_constitution(judge.constitution)
    told = prepared.people.ceiling
    ceiling = None if told is None else Ceiling(value=told.value, source=told.source)
    rows: list[LeeRow] = []
    consistency: list[LeeRow] = []
    async with work.stage("lee-tables") as bill:
        asking = _Asking(constitution, prepared, ceiling, work, bill)
        for model in judge.models:
            rows += await _styles(styles_of(model, judge, styles, shots), asking)
            if samples:
                voted = votes_of(model, judge, samples)
                consistency += await _consistency(voted, judge, asking)
    tables = LeeTables(
        rlaif=__version__,
        seed=work.seed,
        constitution=ConstitutionFacts.model_validate(facts(showing(constitution, ()))),
        people=GoldFacts(
            layout=prepared.people.layout,
            sha256=prepared.people.sha256,
            rows_read=len(prepared.people.pairs) + sum(prepared.people.skipped.values()),
            rows_used=len(prepared.judged),
            skipped=dict(prepared.people.skipped),
        ),
        prompts=len({p.prompt.id for p in prepared.judged}),
        longer_wins=longer_wins(prepared.judged, work.seed),
        ceiling=ceiling,
        judges=tuple(model.model for model in judge.models),
        styles=tuple(styles),
        shots=tuple(shots),
        examples=tuple(p.id for p in prepared.examples),
        samples=samples,
        rows=tuple(rows),
        consistency=tuple(consistency),
    )
    write_tables(tables, work.directory)
    return tables


async def _styles(ways: Sequence[Way], asking: _Asking) -> list[LeeRow]:
    rows: list[LeeRow] = []
    first: list[Row] = []
    for way in ways:
        row, found = await asking.row(way, first)
        # Where the first way cannot be asked, no other takes its place.
        first = first if rows else found
        rows.append(row)
    return rows


async def _consistency(
    ways: tuple[Way, Way], judge: LabelersConfig, asking: _Asking
) -> list[LeeRow]:
    of_single, of_average = ways
    single, first = await asking.row(of_single, [])
    average, found = await asking.row(of_average, first)
    if average.cost is None:
        return [single, average]
    counted = [by_majority(r, judge.tie_margin) for r in found]
    majority = lee_row(
        of_average.row.model_copy(update={"way": "majority"}),
        counted,
        first,
        average.cost,
        asking.ceiling,
        asking.work.seed,
    )
    return [single, average, majority]

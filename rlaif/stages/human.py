"""People's preferences as a run's prompts, responses and labels, for a judge to label again."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import NamedTuple

from pydantic import Field

from rlaif.errors import SetupError
from rlaif.evaluate.study.records import HumanSection
from rlaif.files import digest, write_jsonl, write_text
from rlaif.gold import GoldSet, check_there, load_gold
from rlaif.gold.grouping import Grouped, grouped, leaking, opening, some
from rlaif.preferences import split_by_prompt
from rlaif.progress import say
from rlaif.types import PreferenceGroup, Record, Response, Split
from rlaif.workspace import Workspace

MADE = "human_made"
"""The part that tells what the files were made of."""


class HumanConfig(Record):
    """People's preference pairs or rankings."""

    path: str
    """Pairs whose better response people have named: a file (.json, .jsonl, .parquet, .gz), a
    folder that `datasets` reads, or hub:ORG/NAME[/CONFIG][@SPLIT]."""
    limit: int | None = Field(default=None, ge=4)
    """Only so many prompts of each set, of a fixed shuffle; none: all."""
    test_path: str | None = None
    """Another such set, held out whole; none: `test_fraction` of the conversations is."""
    test_fraction: float = Field(default=0.25, gt=0, lt=1)
    """Share of the conversations held out. Prompts with the same first turn stay together."""
    usd_per_label: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """What one of these labels cost, in US dollars, to hold against what the judge's cost; none:
    not known."""


class Prepared(NamedTuple):
    """What is known before anything is asked."""

    path: str
    """Of the first set, as its responses' `model`."""
    groups: list[PreferenceGroup]
    section: HumanSection


def prepare(config: HumanConfig, seed: int) -> Prepared:
    """People's pairs in groups, split by the seed. Raises SetupError where there is nothing to
    train on or nothing to hold out."""
    if config.test_path == config.path:
        raise SetupError(
            "is human.path as well",
            field="human.test_path",
            fix="leave it out (test_fraction is held out then), or name another set",
        )
    _check_there(config)
    gold, empty = _answered(load_gold(config.path))
    pairs = some(gold.pairs, config.limit)
    sets, leaked = [gold], set[str]()
    if config.test_path is None:
        openings = {opening(p.prompt) for p in pairs}
        splits = dict(split_by_prompt(openings, config.test_fraction, seed))
    else:
        held_out, more = _answered(load_gold(config.test_path))
        empty += more
        sets.append(held_out)
        test = some(held_out.pairs, config.limit)
        leaked = leaking(pairs, test)
        splits = {opening(p.prompt): "train" for p in pairs}
        splits |= {opening(p.prompt): "test" for p in test}
        pairs = [p for p in pairs if p.prompt.id not in leaked] + test
    found = grouped(pairs, splits)
    section = _section(sets, found, leaked, empty)
    for split, meant in (("train", "train on"), ("test", "hold out")):
        if not section.groups[split]:  # type: ignore[index]
            raise SetupError(
                f"leaves no decided pair to {meant} ({section.level} pairs level, "
                f"{section.contradicted} contradicted)",
                file=config.path,
                field="human",
                fix="give more pairs, or another test_fraction",
            )
    return Prepared(gold.path, found.groups, section)


def responses_of(group: PreferenceGroup, path: str) -> list[Response]:
    """As a judge is asked about them."""
    return [
        Response(
            id=f"{group.prompt.id}/{i}",
            prompt_id=group.prompt.id,
            text=text,
            finish_reason="stop",
            model=path,
            call="",
        )
        for i, text in enumerate(group.responses)
    ]


async def run(config: HumanConfig, work: Workspace) -> None:
    """Writes prompts.jsonl, responses.jsonl, human.jsonl (groups with people's labels) and
    splits.json. Where the data is gone, those that were made of it before are used. Raises
    SetupError as `prepare`."""
    try:
        _check_there(config)
    except SetupError as e:
        made = work.part(MADE)
        if made is None or made["stamp"] != _stamp(config, work):
            raise
        say(f"human: {e.field} is gone; what was made of it is in {work.directory}, and is used")
        return
    path, groups, section = prepare(config, work.seed)
    if leaked := section.leaked:
        say(
            f"human: {len(leaked)} prompts of {config.path} begin as held-out ones do, such as "
            f"{min(leaked)}; they are not trained on"
        )
    before = work.part("human")
    if before is not None and tuple(before["sha256"]) != section.sha256:
        say("human: the data has changed since the last time; what hangs on it is made anew")
    write_jsonl(work.prompts, (g.prompt for g in groups))
    write_jsonl(work.responses, (r for g in groups for r in responses_of(g, path)))
    write_jsonl(work.human, groups)
    of_prompt = {g.prompt.id: g.split for g in groups}
    write_text(work.splits, json.dumps(of_prompt, indent=0, sort_keys=True) + "\n")
    work.save_part("human", section)
    work.save_part(MADE, {"stamp": _stamp(config, work)})
    left = {"level": section.level, "repeated": section.repeated, **section.skipped}
    left |= {"contradicted": section.contradicted}
    told = ", ".join(f"{n} {why}" for why, n in left.items() if n)
    say(
        f"human: {section.pairs['train']} pairs to train on, {section.pairs['test']} held out"
        + (f"; left out: {told}" if told else "")
    )


def _check_there(config: HumanConfig) -> None:
    check_there(config.path, "human.path")
    if config.test_path is not None:
        check_there(config.test_path, "human.test_path")


def _stamp(config: HumanConfig, work: Workspace) -> str:
    """Tells apart what this stage has made, and of which config."""
    files = (work.prompts, work.responses, work.human, work.splits)
    found = [hashlib.sha256(f.read_bytes()).hexdigest() if f.is_file() else None for f in files]
    asked = config.model_dump(mode="json", exclude={"usd_per_label"})
    return digest([asked, work.seed, found])


def _answered(gold: GoldSet) -> tuple[GoldSet, int]:
    """The pairs of two answers with text, and how many are not: they have no token to train on."""
    pairs = tuple(p for p in gold.pairs if p.first.strip() and p.second.strip())
    return gold._replace(pairs=pairs), len(gold.pairs) - len(pairs)


def _section(sets: list[GoldSet], found: Grouped, leaked: set[str], empty: int) -> HumanSection:
    skipped: Counter[str] = Counter()
    for of in sets:
        skipped.update(of.skipped)
    if empty:
        skipped["empty response"] = empty
    count: dict[Split, int] = {"train": 0, "test": 0}
    pairs: dict[Split, int] = {"train": 0, "test": 0}
    for g in found.groups:
        count[g.split] += 1
        pairs[g.split] += len(g.comparisons)
    ceiling = sets[-1].ceiling
    return HumanSection(
        sets=tuple(of.path for of in sets),
        sha256=tuple(of.sha256 for of in sets),
        layout=sets[0].layout,
        rows=sum(len(of.pairs) for of in sets) + sum(skipped.values()),
        skipped=dict(sorted(skipped.items())),
        level=found.level,
        repeated=found.repeated,
        contradicted=found.contradicted,
        leaked=tuple(sorted(leaked)),
        groups=count,
        pairs=pairs,
        responses=dict(sorted(Counter(len(g.responses) for g in found.groups).items())),
        ceiling=None if ceiling is None else ceiling.value,
        ceiling_kind="" if ceiling is None else ceiling.source,
    )

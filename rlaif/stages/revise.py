"""Critique and revision: the supervised half of Constitutional AI (Bai et al. 2022, section 3)."""

from __future__ import annotations

import difflib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from pydantic import Field, field_validator

from rlaif.constitution import (
    Constitution,
    ConstitutionFile,
    Principle,
    load_constitution,
    read_constitution,
)
from rlaif.datasets import load_prompts
from rlaif.errors import SetupError, TooManyFailures
from rlaif.evaluate.chains_page import write_chains
from rlaif.evaluate.revisions import (
    JudgedRound,
    RevisionsSection,
    figures,
    judged_rounds,
    pairs_card,
    sft_card,
)
from rlaif.files import write_jsonl, write_text
from rlaif.judge.aggregate import ledger
from rlaif.judge.ask import draw
from rlaif.judge.config import JudgeConfig
from rlaif.judge.design import groups_of
from rlaif.judge.panel import Kept, Panel
from rlaif.models.client import Bill
from rlaif.models.pool import ModelConfig, check_model
from rlaif.preferences import (
    MESSAGES,
    SCHEMA,
    Labeler,
    build_groups,
    card_head,
    pair_rows,
    split_by_prompt,
    write_dataset,
)
from rlaif.progress import progress
from rlaif.revise import (
    LABELER,
    Choose,
    Wording,
    responses_of,
    revise,
    revision_id,
    won_by_construction,
)
from rlaif.sample import sample
from rlaif.types import Message, Prompt, Record, Response, RevisionChain, Sampling, Split
from rlaif.workspace import Workspace

SFT_SCHEMA = pa.schema(
    [
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("prompt_id", pa.string()),
        ("rounds", pa.int64()),
        ("principles", pa.list_(pa.string())),
        ("constitution", pa.string()),
        ("constitution_hash", pa.string()),
        ("ended", pa.bool_()),
    ]
)


class ReviseConfig(Record):
    """How the policy's answers are criticised and revised."""

    rounds: int = Field(default=2, ge=1)
    """Rounds of critique and revision for each answer; Bai et al. 2022 took four."""
    principles: Literal["sample"] | tuple[str, ...] = "sample"
    """sample: each round of each answer takes one of the principles that apply to its prompt, drawn
    by weight from the run's seed; or a list of principle ids, which are taken in turn."""
    constitution: str | None = None
    """Constitution file, or the name of one of ours; none: the judge's."""
    model: ModelConfig | None = None
    """The model that criticises and revises; none: the policy, as it is asked for its answers."""
    few_shot: bool = True
    """Show the principles' examples before the real question."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of critiques and revisions; Bai et al. 2022, section 3.2, took 1."""
    critique_tokens: int = Field(default=160, ge=1)
    """Longest critique, in tokens."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest revision, in tokens; a longer one is cut and counted."""
    prompts: str | None = None
    """Prompt set: a JSONL file, or the name of one of ours; none: the prompts of `sample`."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many prompts; none: all."""
    judged: bool = False
    """Let the run's judge compare the original and all revisions of each prompt, in both orders.
    These labels are kept apart from those that training reads."""
    max_failed: float = Field(default=0.05, ge=0, le=1)
    """Exit code 3 when a larger share of the calls fails; what was answered is kept."""

    @field_validator("principles", mode="before")
    @classmethod
    def _is_sample_or_ids(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "sample":
            raise ValueError(f"found {value!r}; write sample, or a list of ids: [{value}]")
        if not value:
            raise ValueError("names no principle; write sample, or a list of ids")
        return value


class Prepared(NamedTuple):
    """A config that has been checked."""

    prompts: tuple[Prompt, ...]
    constitution: Constitution
    fixed: tuple[Principle, ...]
    """The principles to take in turn; empty: one is drawn."""
    wording: Wording
    reviser: ModelConfig
    reviser_field: str


class _Chains(NamedTuple):
    """What the models answered."""

    chains: list[RevisionChain]
    unanswered: Mapping[str, int]
    policy: str
    reviser: str


class _Judged(NamedTuple):
    judges: tuple[str, ...] = ()
    rounds: tuple[JudgedRound, ...] = ()
    pairs: int = 0
    unscored: Mapping[str, int] = {}


def check(
    config: ReviseConfig,
    policy: ModelConfig,
    judge: JudgeConfig,
    sampled: Sequence[Prompt],
    seed: int,
) -> None:
    """Finds what is wrong before anything is asked. Raises SetupError."""
    plan = prepare(config, policy, judge, sampled, seed)
    check_model(policy.model, "policy.model")
    check_model(plan.reviser.model, plan.reviser_field)
    if config.judged:
        for field, asked in judge.judges():
            check_model(asked.model, field)


async def run(
    config: ReviseConfig,
    policy: ModelConfig,
    judge: JudgeConfig,
    sampled: Sequence[Prompt],
    sampling: Sampling,
    test_fraction: float,
    work: Workspace,
) -> None:
    """Writes revisions/: the chains, the data made of them, and a page to look through.

    `sampled` are the prompts of the sample stage: they are revised where the config names no
    others, and those of them that the pairs stage will hold out (by `test_fraction` and the run's
    seed) are held out here too. `sampling` shapes the originals, one a prompt. Raises SetupError,
    and TooManyFailures above `max_failed`, where the judge's `max_unscored` is passed, and where
    nothing has been revised.
    """
    plan = prepare(config, policy, judge, sampled, work.seed)
    splits = _splits(plan.prompts, sampled, test_fraction, work.seed)
    async with work.stage("revise") as bill:
        found = await ask(config, plan, policy, sampling, work, bill)
        failed, asked = bill.calls_failed, bill.calls_made + bill.calls_from_store
        responses = [responses_of(chain, found.reviser) for chain in found.chains]
        judged = _Judged()
        shutil.rmtree(work.revisions / "judged", ignore_errors=True)
        if config.judged:
            judged = await _judge(config.rounds, judge, plan, responses, work, bill)
        section = _write(config, plan, found, responses, judged, splits, work)
    if failed > config.max_failed * (failed + asked):
        raise TooManyFailures(
            f"{failed} of {failed + asked} calls for originals, critiques and revisions failed, "
            f"revise.max_failed allows {config.max_failed:.0%}; the rest is kept"
        )
    if not section.revised:
        why = ", ".join(f"{reason} {n}" for reason, n in section.ended.items())
        raise TooManyFailures(
            f"none of {section.prompts} prompts has a revision ({why or 'no answers'}): "
            "nothing to train on"
        )
    lost = sum(judged.unscored.values())
    if lost > judge.max_unscored * judged.pairs:
        raise TooManyFailures(
            f"{lost} of {judged.pairs} comparisons of revisions ended unscored "
            f"({', '.join(f'{reason} {n}' for reason, n in judged.unscored.items())}), "
            f"judge.max_unscored allows {judge.max_unscored:.0%}; what was answered is kept"
        )


def prepare(
    config: ReviseConfig,
    policy: ModelConfig,
    judge: JudgeConfig,
    sampled: Sequence[Prompt],
    seed: int,
) -> Prepared:
    """The config with what it names, read and checked. Raises SetupError."""
    file = read_constitution(config.constitution or judge.constitution)
    prompts = tuple(sampled) if config.prompts is None else load_prompts(config.prompts)
    if config.limit is not None and config.limit > len(prompts):
        raise SetupError(
            f"{config.limit} prompts were asked for, there are {len(prompts)}",
            field="revise.limit",
            fix="lower revise.limit or leave it out",
        )
    prompts = prompts[: config.limit]
    file.check_wordings(prompts)
    if config.judged:
        read_constitution(judge.constitution).check_wordings(prompts)
    reviser, field = (policy, "policy.model")
    if config.model is not None:
        reviser, field = (config.model, "revise.model.model")
    shared = {"temperature": config.temperature, "seed": seed}
    return Prepared(
        prompts=prompts,
        constitution=file.constitution,
        fixed=_fixed(config, file),
        wording=Wording(
            Sampling(max_tokens=config.critique_tokens, **shared),
            Sampling(max_tokens=config.max_tokens, **shared),
            few_shot=config.few_shot,
        ),
        reviser=reviser,
        reviser_field=field,
    )


def _fixed(config: ReviseConfig, file: ConstitutionFile) -> tuple[Principle, ...]:
    if config.principles == "sample":
        return ()
    by_id = {p.id: p for p in file.constitution.principles}
    for at, wanted in enumerate(config.principles):
        if wanted not in by_id:
            near = difflib.get_close_matches(wanted, by_id, n=1, cutoff=0.5)
            raise SetupError(
                f"there is no principle {wanted!r} in {file.path}",
                field=f"revise.principles[{at}]",
                fix=f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(by_id)}",
            )
    return tuple(by_id[wanted] for wanted in config.principles)


def chooser(constitution: Constitution, fixed: Sequence[Principle], seed: int) -> Choose:
    """Which principle a prompt's response is revised by in a round: the `fixed` ones that apply to
    the prompt in turn, or, where there are none fixed, one drawn by weight from the seed, the
    prompt's id and the round. A principle may be drawn twice for one response."""

    def choose(prompt: Prompt, number: int) -> Principle | None:
        if fixed:
            applying = [p for p in fixed if p.applies(prompt)]
            return applying[(number - 1) % len(applying)] if applying else None
        applying = [p for p in constitution.principles if p.weight and p.applies(prompt)]
        return draw(applying, str(seed), prompt.id, str(number)) if applying else None

    return choose


def _splits(
    prompts: Sequence[Prompt], sampled: Sequence[Prompt], test_fraction: float, seed: int
) -> dict[str, Split]:
    """Prompt id -> side. A conversation of the sample stage is on the side on which the pairs stage
    will have it, whatever its id; all others are split by themselves."""
    of_pairs = split_by_prompt((p.id for p in sampled), test_fraction, seed)
    known: dict[tuple[Message, ...], Split] = {}
    for p in sampled:
        # Held out under one of its ids is held out.
        known[p.messages] = "test" if known.get(p.messages) == "test" else of_pairs[p.id]
    others = [p.id for p in prompts if p.messages not in known]
    own = split_by_prompt(others, test_fraction, seed)
    return {p.id: known[p.messages] if p.messages in known else own[p.id] for p in prompts}


async def ask(
    config: ReviseConfig,
    plan: Prepared,
    policy: ModelConfig,
    sampling: Sampling,
    work: Workspace,
    bill: Bill,
) -> _Chains:
    async with work.pool.open(policy, "policy.model", bill) as client:
        with progress("originals", len(plan.prompts), "prompts") as advance:
            answers, failed, unusable, _ = await sample(plan.prompts, 1, sampling, client, advance)
        policy_name = client.model.identity
    by_id = {p.id: p for p in plan.prompts}
    originals = [
        (by_id[r.prompt_id], r.model_copy(update={"id": revision_id(r.prompt_id, 0)}))
        for r in answers
    ]
    async with work.pool.open(plan.reviser, plan.reviser_field, bill) as client:
        with progress("revising", len(originals), "answers") as advance:
            chains = await revise(
                originals,
                config.rounds,
                chooser(plan.constitution, plan.fixed, work.seed),
                plan.wording,
                client,
                advance,
            )
        reviser = client.model.identity
    lost = Counter(error.reason for error in failed) + Counter(unusable)
    return _Chains(chains, dict(sorted(lost.items())), policy_name, reviser)


async def _judge(
    rounds: int,
    config: JudgeConfig,
    plan: Prepared,
    responses: Sequence[Sequence[Response]],
    work: Workspace,
    bill: Bill,
) -> _Judged:
    """The judge's labels of the chains: every two responses, whatever the run's own design."""
    constitution, _ = load_constitution(config.constitution)
    every_pair = {"comparisons": "all", "comparisons_per_prompt": None}
    panel = Panel(
        config.in_both_orders().model_copy(update=every_pair),
        constitution,
        work.seed,
        lambda asked, field: work.pool.open(asked, field, bill),
    )
    revised = [r for of_chain in responses if len(of_chain) > 1 for r in of_chain]
    groups = groups_of({p.id: p for p in plan.prompts}, revised)
    kept = Kept()
    heard = await panel.judge_groups(groups, len(groups), progress, kept)
    write_jsonl(work.revisions / "judged" / "judgments.jsonl", kept.judgments)
    write_jsonl(work.revisions / "judged" / "comparisons.jsonl", kept.comparisons)
    number_of = {r.id: n for of_chain in responses for n, r in enumerate(of_chain)}
    return _Judged(
        judges=heard.judges,
        rounds=judged_rounds(kept.comparisons, number_of, rounds, work.seed),
        pairs=len(kept.pairs),
        unscored=ledger(kept.comparisons).unscored,
    )


def _write(
    config: ReviseConfig,
    plan: Prepared,
    found: _Chains,
    responses: Sequence[Sequence[Response]],
    judged: _Judged,
    splits: Mapping[str, Split],
    work: Workspace,
) -> RevisionsSection:
    folder = work.revisions
    prompts = {p.id: p for p in plan.prompts}
    every = [r for of_chain in responses for r in of_chain]
    comparisons = [c for of_chain in responses for c in won_by_construction(of_chain)]
    groups = build_groups(prompts, every, comparisons, splits, LABELER, soft=False)
    labeler = Labeler(LABELER, plan.constitution.id, plan.constitution.hash, LABELER)
    pairs = pair_rows(prompts, {r.id: r for r in every}, comparisons, labeler)
    rows = _sft_rows(found.chains, prompts, plan.constitution)
    counts = Counter(splits[row["prompt_id"]] for row in rows)
    section = RevisionsSection.model_validate(
        {
            **figures(found.chains, config.rounds),
            "constitution": plan.constitution.id,
            "constitution_hash": plan.constitution.hash,
            "policy": found.policy,
            "reviser": found.reviser,
            "prompts": len(prompts),
            "unanswered": found.unanswered,
            "train": counts["train"],
            "test": counts["test"],
            "pairs": len(pairs),
            "judges": judged.judges,
            "judged": judged.rounds,
        }
    )
    # Killed from here on, the policy that was tuned on other revisions is not taken for theirs.
    work.mark_unfinished(folder)
    write_jsonl(work.chains, found.chains)
    write_jsonl(folder / "prompts.jsonl", plan.prompts)
    write_text(folder / "splits.json", json.dumps(splits, indent=0, sort_keys=True) + "\n")
    write_jsonl(folder / "groups.jsonl", groups)
    _write_dataset(folder / "sft", rows, SFT_SCHEMA, splits, sft_card(section))
    _write_dataset(folder / "preferences", pairs, SCHEMA, splits, pairs_card(section))
    write_chains(found.chains, prompts, section, folder / "chains.html")
    work.save_part("revisions", section)
    made = (work.chains, folder / "prompts.jsonl", folder / "splits.json")
    work.mark_made(folder, [path.read_text(encoding="utf-8") for path in made])
    return section


def _sft_rows(
    chains: Sequence[RevisionChain], prompts: Mapping[str, Prompt], constitution: Constitution
) -> list[dict[str, Any]]:
    """The last revision of each chain that has one, in the columns of `SFT_SCHEMA`."""
    return [
        {
            "prompt": [m.model_dump() for m in prompts[chain.prompt_id].messages],
            "completion": [{"role": "assistant", "content": chain.revisions[-1].text}],
            "prompt_id": chain.prompt_id,
            "rounds": len(chain.revisions),
            "principles": [revision.principle_id for revision in chain.revisions],
            "constitution": constitution.id,
            "constitution_hash": constitution.hash,
            "ended": chain.revisions[-1].finish_reason != "length",
        }
        for chain in chains
        if chain.revisions
    ]


def _write_dataset(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    schema: pa.Schema,
    splits: Mapping[str, Split],
    card: str,
) -> None:
    """A folder that `datasets.load_dataset` reads; none where there are no rows."""
    shutil.rmtree(folder, ignore_errors=True)
    if rows:
        counts = write_dataset(folder, rows, splits, schema)
        write_text(folder / "README.md", card_head(counts, "rlaif") + card)

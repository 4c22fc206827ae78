"""Stage 4: comparisons into preference groups, and into a dataset for any trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from rlaif.errors import SetupError, TooManyFailures
from rlaif.evaluate.intervals import clustered_share
from rlaif.evaluate.metrics import longer_wins
from rlaif.evaluate.schema import CertificateSection, PairsSection
from rlaif.evaluate.wording import percent, share
from rlaif.files import read_jsonl, write_jsonl, write_text
from rlaif.judge.aggregate import ledger
from rlaif.preferences import (
    Labeler,
    build_groups,
    dataset_card,
    pair_rows,
    split_by_prompt,
    write_dataset,
)
from rlaif.types import Comparison, Prompt, Record, Response, Split
from rlaif.workspace import Workspace


class PairsConfig(Record):
    """How comparisons become training data."""

    test_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of the prompts that is held out, with all their responses."""
    soft_labels: bool = True
    """Train on the judge's probabilities; false: on 1 and 0."""


async def run(config: PairsConfig, work: Workspace, *, tuned: bool = False) -> None:
    """Writes groups.jsonl and preferences/. Raises TooManyFailures when no pair has a winner, and
    SetupError where the run has been `tuned` on revisions of prompts that it would hold out."""
    responses = read_jsonl(work.responses, Response)
    prompts = {p.id: p for p in read_jsonl(work.prompts, Prompt)}
    comparisons = read_jsonl(work.comparisons, Comparison)
    async with work.stage("pairs"):
        _write(config, prompts, responses, comparisons, work, tuned=tuned)


def _write(
    config: PairsConfig,
    prompts: dict[str, Any],
    responses: list[Response],
    comparisons: list[Comparison],
    work: Workspace,
    *,
    tuned: bool,
) -> None:
    asked = work.part("labeler")
    if asked is None:
        raise SetupError(
            "the comparisons are not of the present responses",
            file=work.comparisons,
            fix="run `rlaif judge` first",
        )
    labeler = Labeler(
        judge=asked["judge"],
        mode=asked["mode"],
        constitution_id=asked["constitution"]["id"],
        constitution_hash=asked["constitution"]["hash"],
    )
    # Over all prompts, answered or not: the revise stage splits the same ones before the sampling.
    splits = split_by_prompt(prompts, config.test_fraction, work.seed)
    if tuned and work.part("sft") is not None:
        _check_held_out(prompts, splits, work)
    groups = build_groups(
        prompts, responses, comparisons, splits, labeler.judge, soft=config.soft_labels
    )
    by_id = {r.id: r for r in responses}
    rows = pair_rows(prompts, by_id, comparisons, labeler)
    # Killed from here on, this stage has not been run: no training on groups of one split that are
    # then held against another.
    work.drop_part("pairs")
    write_jsonl(work.groups, groups)
    write_text(work.splits, json.dumps(splits, indent=0, sort_keys=True) + "\n")
    counts = write_dataset(work.preferences, rows, splits)
    labels = ledger(comparisons)
    unscored = labels.unscored
    outcomes = {"A": labels.a, "B": labels.b, "tie": labels.tie}
    write_text(
        work.preferences / "README.md",
        dataset_card(
            splits=counts,
            labeler=labeler,
            policies=sorted({r.model for r in responses}),
            requested=len(comparisons),
            outcomes=outcomes,
            unscored=unscored,
            certificate=_certificate(work, asked["way"]),
        ),
    )
    work.save_part("pairs", _section(len(groups), counts, rows, work.seed))
    if not rows:
        raise TooManyFailures(
            f"none of the {len(comparisons)} comparisons has a winner "
            f"({outcomes['tie']} ties, {sum(unscored.values())} unscored): nothing to train on"
        )


def _check_held_out(
    prompts: Mapping[str, Prompt], splits: Mapping[str, Split], work: Workspace
) -> None:
    """Raises SetupError where a prompt is held out whose revision has been trained on."""
    side: Mapping[str, Split] = json.loads(
        (work.revisions / "splits.json").read_text(encoding="utf-8")
    )
    revised = read_jsonl(work.revisions / "prompts.jsonl", Prompt)
    trained = {p.messages for p in revised if side[p.id] == "train"}
    leaked = [i for i, p in prompts.items() if splits[i] == "test" and p.messages in trained]
    if leaked:
        raise SetupError(
            f"{len(leaked)} prompts would be held out that the policy was fine-tuned on, such as "
            f"{leaked[0]!r}",
            file=work.directory,
            fix="run `rlaif revise` and `rlaif train-sft` again with this split",
        )


def _certificate(work: Workspace, way: str) -> str:
    """What the dataset card says of the judge's certificate, which travels beside it."""
    beside = work.preferences / "certificate.json"
    beside.unlink(missing_ok=True)
    part = work.part("certificate")
    if part is None or part["way"] != way:
        return "none: nothing shows that these labels match people's"
    source = work.directory / "certificate.json"
    if not source.is_file():
        raise SetupError("is gone", file=source, fix="run `rlaif judge` again")
    shutil.copyfile(source, beside)
    found = CertificateSection.model_validate(part)
    if found.shortfalls:
        return f"FELL SHORT of its gate: {'; '.join(found.shortfalls)} (`certificate.json`)"
    if found.accuracy is None:
        return "no verdict on the gold pairs (`certificate.json`)"
    longer = f"; longer wins: {percent(found.longer_wins.value)}" if found.longer_wins else ""
    people = f"; people: {percent(found.ceiling)}" if found.ceiling is not None else ""
    return (
        f"{share(found.accuracy, 0.5)} of {found.rows:,} gold pairs ({', '.join(found.sets)}) "
        f"decided as gold says{longer}{people} (`certificate.json`)"
    )


def _section(
    groups: int, counts: Mapping[Split, int], rows: Sequence[dict[str, Any]], seed: int
) -> PairsSection:
    longer = longer_wins(
        [len(row["chosen"][0]["content"]) for row in rows],
        [len(row["rejected"][0]["content"]) for row in rows],
        [1.0] * len(rows),
    )
    return PairsSection(
        groups=groups,
        comparisons=len(rows),
        train=counts["train"],
        test=counts["test"],
        mean_probability=sum(r["probability"] for r in rows) / len(rows) if rows else None,
        longer_chosen=clustered_share(longer, [r["prompt_id"] for r in rows], seed)
        if rows
        else None,
    )

"""From comparisons to preference groups, and to a dataset that everyone's trainer reads."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif.files import write_bytes
from rlaif.types import (
    Comparison,
    Message,
    PreferenceGroup,
    Prompt,
    Response,
    Split,
    WeightedComparison,
)


class Labeler(NamedTuple):
    """Who gave the labels, and by what."""

    judge: str
    constitution_id: str
    constitution_hash: str
    mode: str


def split_by_prompt(prompt_ids: Iterable[str], test_fraction: float, seed: int) -> dict[str, Split]:
    """A prompt is held out with all its responses. The same set of prompts is always split in the
    same way for a seed, in whatever order it comes.

    At least one prompt is held out where there are two or more and the fraction is not 0; at least
    one is left to train on.
    """
    ordered = sorted(
        set(prompt_ids), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).hexdigest()
    )
    held_out = round(test_fraction * len(ordered))
    if test_fraction > 0:
        held_out = min(max(held_out, 1), len(ordered) - 1)
    return {i: "test" if n < held_out else "train" for n, i in enumerate(ordered)}


def build_groups(
    prompts: Mapping[str, Prompt],
    responses: Sequence[Response],
    comparisons: Sequence[Comparison],
    splits: Mapping[str, Split],
    labeler: str,
    *,
    soft: bool,
) -> list[PreferenceGroup]:
    """One group a prompt that has at least one comparison with a winner.

    Ties and unscored comparisons are left out. With `soft` the judge's probability is kept, else
    it is 1 or 0. Every group weighs 1: its comparisons share it (Ouyang et al. 2022, section 3.5:
    a prompt's C(K, 2) pairs are one element, or prompts with many pairs are overfitted).
    """
    by_prompt: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        if comparison.outcome in ("A", "B"):
            by_prompt[comparison.prompt_id].append(comparison)
    of_prompt: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        of_prompt[response.prompt_id].append(response)
    groups = []
    for prompt_id, won in by_prompt.items():
        members = of_prompt[prompt_id]
        index = {response.id: i for i, response in enumerate(members)}
        groups.append(
            PreferenceGroup(
                prompt=prompts[prompt_id],
                responses=tuple(response.text for response in members),
                ended=tuple(response.ended for response in members),
                comparisons=tuple(
                    WeightedComparison(
                        first=index[c.first],
                        second=index[c.second],
                        p_first=_target(c, soft),
                        weight=1.0 / len(won),
                    )
                    for c in won
                ),
                split=splits[prompt_id],
                labeler=labeler,
            )
        )
    return groups


def _target(comparison: Comparison, soft: bool) -> float:
    assert comparison.p_first is not None, "a comparison with a winner has a probability"
    if soft:
        return comparison.p_first
    return 1.0 if comparison.outcome == "A" else 0.0


SPLITS: tuple[Split, ...] = ("train", "test")
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("probability", pa.float64()),
        ("probability_margin", pa.float64()),
        ("votes", pa.list_(pa.struct([("principle", pa.string()), ("p_chosen", pa.float64())]))),
        ("orders", pa.int64()),
        ("judge", pa.string()),
        ("by_judge", pa.list_(pa.struct([("judge", pa.string()), ("p_chosen", pa.float64())]))),
        ("disagreement", pa.float64()),
        ("escalated", pa.string()),
        ("mode", pa.string()),
        ("constitution", pa.string()),
        ("constitution_hash", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("chosen_ended", pa.bool_()),
        ("rejected_ended", pa.bool_()),
        ("comparison_id", pa.string()),
    ]
)


def pair_rows(
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    comparisons: Iterable[Comparison],
    labeler: Labeler,
) -> list[dict[str, Any]]:
    """A row for each comparison with a winner, in the columns of `SCHEMA`.

    `probability` is P(chosen preferred), above 0.5; `probability_margin` is 2 p - 1. (No column is
    named `margin`: TRL's RewardTrainer would subtract it inside the loss.)
    """
    rows = []
    for c in comparisons:
        if c.outcome not in ("A", "B") or c.p_first is None:
            continue
        first_wins = c.outcome == "A"
        chosen, rejected = (c.first, c.second) if first_wins else (c.second, c.first)
        probability = c.p_first if first_wins else 1.0 - c.p_first
        rows.append(
            {
                "prompt": [m.model_dump() for m in prompts[c.prompt_id].messages],
                "chosen": _assistant(responses[chosen]),
                "rejected": _assistant(responses[rejected]),
                "probability": probability,
                "probability_margin": 2.0 * probability - 1.0,
                "votes": [
                    {"principle": i, "p_chosen": p if first_wins else 1.0 - p}
                    for i, p in c.votes.items()
                ],
                "orders": c.orders,
                "judge": c.judge,
                "by_judge": [
                    {"judge": judge, "p_chosen": p if first_wins or p is None else 1.0 - p}
                    for judge, p in c.by_judge.items()
                ],
                "disagreement": c.disagreement,
                "escalated": c.escalated,
                "mode": labeler.mode,
                "constitution": labeler.constitution_id,
                "constitution_hash": labeler.constitution_hash,
                "prompt_id": c.prompt_id,
                "chosen_id": chosen,
                "rejected_id": rejected,
                "chosen_ended": responses[chosen].ended,
                "rejected_ended": responses[rejected].ended,
                "comparison_id": c.id,
            }
        )
    return rows


def _assistant(response: Response) -> list[dict[str, str]]:
    return [Message(role="assistant", content=response.text).model_dump()]


def write_parquet(
    path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema = SCHEMA
) -> None:
    """Rows in the columns of `schema`; the same rows give the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def write_dataset(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    splits: Mapping[str, Split],
    schema: pa.Schema = SCHEMA,
) -> dict[Split, int]:
    """Writes the rows of each split, which is that of their `prompt_id`, into a folder that
    `datasets` reads; returns how many each has."""
    # A split of an earlier config would be read as part of this dataset.
    shutil.rmtree(folder / "data", ignore_errors=True)
    counts: dict[Split, int] = {}
    for split in SPLITS:
        part = [row for row in rows if splits[row["prompt_id"]] == split]
        counts[split] = len(part)
        if part:
            write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", part, schema)
    return counts


def card_head(splits: Mapping[Split, int], *tags: str) -> str:
    """The YAML head of a dataset folder's README.md: tells `datasets` where the splits are."""
    files = "".join(
        f"      - split: {split}\n        path: data/{split}-*.parquet\n"
        for split, rows in splits.items()
        if rows
    )
    configs = f"configs:\n  - config_name: default\n    data_files:\n{files}"
    return f"---\n{configs}tags:\n" + "".join(f"  - {tag}\n" for tag in tags) + "---\n"


def dataset_card(
    *,
    splits: Mapping[Split, int],
    labeler: Labeler,
    policies: Sequence[str],
    requested: int,
    outcomes: Mapping[str, int],
    unscored: Mapping[str, int],
    certificate: str,
) -> str:
    """The README.md of the dataset folder."""
    lost = ", ".join(f"{reason} {n}" for reason, n in unscored.items()) or "none"
    counts = ", ".join(f"{n} {split}" for split, n in splits.items())
    head = card_head(splits, "preference", "rlaif")
    return f"""{head}# Preferences under the constitution `{labeler.constitution_id}`

{sum(splits.values())} pairs ({counts}; split by prompt). Every label was given by the judge named
below; ties and unscored comparisons are not in here.

| | |
|---|---|
| judge | `{labeler.judge}` |
| certificate | {certificate} |
| asked | {labeler.mode} |
| constitution | `{labeler.constitution_id}`, sha256 `{labeler.constitution_hash}` |
| policy | {", ".join(f"`{p}`" for p in policies)} |
| comparisons requested | {requested} |
| first won / second won / tie | {outcomes["A"]} / {outcomes["B"]} / {outcomes["tie"]} |
| unscored | {sum(unscored.values())} ({lost}) |

Columns: `prompt`, `chosen`, `rejected` (chat messages), `probability` that chosen is preferred,
`probability_margin` (2 p - 1), `votes` (each principle's probability for chosen), `orders` asked,
`judge` that decided, `by_judge` and `disagreement` where several were asked, `escalated` (why a
cascade asked its strong judge), `mode`, `constitution`, `constitution_hash`, the ids that lead back
to the calls, and `chosen_ended` / `rejected_ended`: false where the token limit cut the answer.
"""

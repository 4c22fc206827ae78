"""Pairs that are too long to be trained on, told before a judge is paid to label them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping

from rlaif.errors import SetupError
from rlaif.files import digest, read_jsonl
from rlaif.interrupts import interruptible
from rlaif.models.pool import ModelConfig
from rlaif.progress import say
from rlaif.stages._training import Start, start_weights
from rlaif.types import PreferenceGroup
from rlaif.workspace import Workspace

SPLITS = {"train": "train", "test": "held-out"}
COUNTED = "pair_lengths"
"""The part that keeps what was counted."""


def run(most: Mapping[str, int], policy: ModelConfig, base: str | None, work: Workspace) -> None:
    """Says how many of people's pairs are left out because they have more tokens than a model's
    `max_length`, which `most` gives by its field. Raises SetupError where a split loses them all.
    """
    longest = _counted(start_weights(base, policy.model, "dpo"), work)
    fields: dict[int, list[str]] = defaultdict(list)
    for field, tokens in most.items():
        fields[tokens].append(field)
    told = []
    for limit, named in fields.items():
        lost = {split: sum(tokens > limit for tokens in of) for split, of in longest.items()}
        for split, shown in SPLITS.items():
            if lost[split] == len(longest[split]):
                raise SetupError(
                    f"is {limit}, and every {shown} pair has more tokens than that with its prompt "
                    f"(the shortest {min(longest[split])}), so none would be left",
                    field=named[0],
                    fix="raise it" + "".join(f", and {other} with it" for other in named[1:]),
                )
        if any(lost.values()):
            counts = (f"{lost[s]:,} of {len(longest[s]):,} {SPLITS[s]} pairs" for s in SPLITS)
            told.append(f"{' and '.join(counts)} ({' and '.join(named)}: {limit:,} tokens)")
    if told:
        say(f"study: too long, and left out: {'; '.join(told)}")


def _counted(start: Start, work: Workspace) -> dict[str, list[int]]:
    """Tokens of every pair by split: counted once, so that a study of which all is stored loads
    no tokenizer."""
    stamp = digest([start.identity, hashlib.sha256(work.human.read_bytes()).hexdigest()])
    kept = work.part(COUNTED)
    if kept is None or kept["stamp"] != stamp:
        from rlaif.train.lengths import pair_lengths

        groups = read_jsonl(work.human, PreferenceGroup)
        longest: dict[str, list[int]] = {split: [] for split in SPLITS}
        with interruptible():
            for group, tokens_C in zip(groups, pair_lengths(start.weights, groups), strict=True):
                longest[group.split] += tokens_C
        kept = {"stamp": stamp, "tokens": longest}
        work.save_part(COUNTED, kept)
    found: dict[str, list[int]] = kept["tokens"]
    return found

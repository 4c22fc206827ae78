"""A gold set: its pairs, what was skipped, how far people agree, and the half that is asked for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rlaif.errors import SetupError
from rlaif.files import digest
from rlaif.gold.layouts import Ceiling, Layout, NoPair, layout_of, object_of
from rlaif.gold.sources import Rows, Source, read_source
from rlaif.types import Message, Prompt

Part = Literal["all", "dev", "test"]


class GoldPair(NamedTuple):
    """Two responses to one prompt, and what people said about them."""

    id: str
    """The row's own id where all rows have one and no two share it, else `row-` and its number."""
    prompt: Prompt
    """Named by a hash of its conversation: rows with the same conversation share a cluster."""
    first: str
    second: str
    p_gold: float
    """1.0 first is better, 0.0 second is, 0.5 people (or the scores beside it) call it level."""
    annotators: tuple[float, ...]
    """Each person's own verdict in the same coding, where the file has them; else empty."""


class GoldSet(NamedTuple):
    name: str
    """File name without folders and suffixes; for a dataset its name and split."""
    path: str
    """As the user gave it; for a dataset with the split that was read."""
    sha256: str
    """Of the file's bytes; of the rows that were read where `datasets` read them."""
    layout: str
    pairs: tuple[GoldPair, ...]
    skipped: Mapping[str, int]
    """Reason -> rows that hold no usable pair; with the pairs they add up to the rows."""
    ceiling: Ceiling | None


def load_gold(name: str) -> GoldSet:
    """The gold set that `name` means: a path (`.json`, `.jsonl`, either with `.gz`, `.parquet`, or
    a folder that `datasets` reads, with `@SPLIT` if need be), one of ours, or
    `hub:ORG/NAME[/CONFIG][@SPLIT]`.

    The layout is told from the first row and asked of all. Where it names a chosen and a rejected
    response, the parity of a hash of the pair's content puts the better one first or second, so
    that no judge is right by position. Without a split `test` is read, else the first there is.
    Raises SetupError with the place for a file or row that cannot be read, an unknown layout, a set
    in which nothing is decided, and one whose positions give every answer away.
    """
    source = read_source(name)
    if not source.rows:
        raise SetupError("has no rows", file=source.path, fix="give a set with at least one pair")
    layout = layout_of(source)
    own_ids = _own_ids(source.rows)
    pairs: list[GoldPair] = []
    skipped: Counter[str] = Counter()
    for number, row in source.rows:
        try:
            pair = layout.read(object_of(row))
            prompt = _prompt(pair.messages, _tags(row))
            if pair.first.strip() == pair.second.strip():
                raise NoPair("identical responses")
        except NoPair as e:
            skipped[str(e)] += 1
            continue
        except ValueError as e:
            fix = f"the first row says layout {layout.name}: {layout.fields}"
            raise source.wrong(number, str(e), fix) from e
        first, second, p_gold = pair.first, pair.second, pair.p_gold
        if not layout.positional and int(digest([prompt.id, *sorted((first, second))]), 16) % 2:
            first, second, p_gold = second, first, 1.0 - p_gold
        identity = str(row["id"]) if own_ids else f"row-{number}"
        pairs.append(GoldPair(identity, prompt, first, second, p_gold, pair.annotators))
    _decided(source, layout, pairs, skipped)
    return GoldSet(
        source.name,
        source.path,
        source.sha256,
        layout.name,
        tuple(pairs),
        dict(sorted(skipped.items())),
        layout.ceiling(source.rows) if layout.ceiling else None,
    )


def part_of(pairs: Sequence[GoldPair], part: Part, limit: int | None) -> list[GoldPair]:
    """The pairs of one half: a conversation lies in `dev` or in `test`, whole, by a hash of its id.

    `limit` takes the first of a fixed shuffle (by a hash of the pair's id), since files are often
    sorted; a smaller limit takes a part of a larger one's pairs.
    """
    wanted = {"all": (0, 1), "dev": (0,), "test": (1,)}[part]
    chosen = [p for p in pairs if int(_sha256(p.prompt.id), 16) % 2 in wanted]
    if limit is None:
        return chosen
    return sorted(chosen, key=lambda p: _sha256(p.id))[:limit]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _own_ids(rows: Rows) -> bool:
    ids = [row.get("id") if isinstance(row, dict) else None for _, row in rows]
    named = all(isinstance(i, str | int) and str(i).strip() for i in ids)
    return named and len({str(i) for i in ids}) == len(ids)


def _tags(row: object) -> tuple[str, ...]:
    """The row's own tags, and where it comes from."""
    if not isinstance(row, dict):
        return ()
    given = row.get("tags")
    tags = [str(tag) for tag in given] if isinstance(given, list) else []
    return (*tags, *([row["source"]] if isinstance(row.get("source"), str) else []))


def _prompt(messages: list[Message], tags: tuple[str, ...]) -> Prompt:
    if not messages or messages[-1].role != "user":
        raise NoPair("the prompt does not end with the user's turn")
    if not messages[-1].content.strip():
        raise NoPair("empty prompt")
    identity = "g-" + digest([m.model_dump() for m in messages])[:12]
    return Prompt(id=identity, messages=tuple(messages), tags=tags)


def _decided(
    source: Source, layout: Layout, pairs: Sequence[GoldPair], skipped: Mapping[str, int]
) -> None:
    """Refuses a set on which no judge, or a judge that never reads, would be right."""
    winners = [p.p_gold for p in pairs if p.p_gold != 0.5]
    if not winners:
        lost = "".join(f", {reason}: {n}" for reason, n in sorted(skipped.items()))
        raise SetupError(
            f"of {len(source.rows)} rows none says which response is better"
            f" (level: {len(pairs)}{lost})",
            file=source.path,
            fix="give a set in which people decided",
        )
    if layout.positional and len(winners) > 1 and len(set(winners)) == 1:
        raise SetupError(
            f"every one of the {len(winners)} decided rows says that response "
            f"{1 if winners[0] else 2} is better: a judge that always names that one would look "
            "perfect",
            file=source.path,
            fix="shuffle the two responses of each row, or use the fields chosen and rejected; "
            "labels are 1, 2, and 0 for a tie",
        )

"""Prompt sets from files, and nothing dropped in silence."""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from rlaif.errors import SetupError
from rlaif.files import digest, find
from rlaif.types import Prompt
from rlaif.yamlfile import dotted


class PromptSet:
    """The prompts of a file, read anew by each loop over them: a million rows need no memory."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Prompt]:
        return itertools.islice((prompt for _, prompt in _rows(self._path)), self._count)


def load_prompts(name: str, limit: int | None = None) -> tuple[Prompt, ...]:
    """As `open_prompts`, all in memory."""
    return tuple(open_prompts(name, limit))


def open_prompts(name: str, limit: int | None = None) -> PromptSet:
    """A JSONL prompt set: each row has `prompt` (text, or a list of chat messages), and may have
    `id`, `tags` and `metadata` (names and plain values).

    Without an id a row is named by a hash of its conversation. `limit` keeps the first rows. Every
    row is checked here. Raises SetupError that names the row for JSON that is broken, an empty
    prompt, an unknown field, or an id that stands twice.
    """
    path = find("prompts/sets", name, ".jsonl")
    hashes = array("Q")
    for _, prompt in _rows(path):
        hashes.append(_short(prompt.id))
    if not hashes:
        raise SetupError("has no rows", file=path, fix='rows look like {"prompt": "…"}')
    _refuse_twice(path, hashes)
    if limit is not None and limit > len(hashes):
        raise SetupError(
            f"{limit} prompts were asked for, the file has {len(hashes)}",
            file=path,
            field="sample.limit",
            fix="lower sample.limit or leave it out",
        )
    return PromptSet(path, len(hashes) if limit is None else limit)


def _short(text: str) -> int:
    """64 bits of a hash: ids themselves would fill the memory."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _refuse_twice(path: Path, hashes: array[int]) -> None:
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return
    seen = set()
    for number, prompt in _rows(path):
        if _short(prompt.id) in suspects:
            if prompt.id in seen:
                raise SetupError(
                    f"id {prompt.id!r} stands twice",
                    file=path,
                    line=number,
                    fix="ids must be unique",
                )
            seen.add(prompt.id)


def _rows(path: Path) -> Iterator[tuple[int, Prompt]]:
    try:
        with path.open(encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield number, _row(line.removesuffix("\n"), path, number)
                elif line.endswith("\n"):
                    raise SetupError(
                        "the row is empty", file=path, line=number, fix="delete the line"
                    )
    except UnicodeDecodeError as e:
        raise SetupError("is not UTF-8 text", file=path, fix="save it as UTF-8 JSONL") from e


def _row(line: str, path: Path, number: int) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise SetupError(
            f"not valid JSON: {e.msg}, column {e.colno}",
            file=path,
            line=number,
            fix="one JSON object a line",
        ) from e
    try:
        return _prompt(row)
    except ValidationError as e:
        first = e.errors()[0]
        at = first["loc"] or ("messages",)
        raise SetupError(
            first["msg"].removeprefix("Value error, "),
            file=path,
            line=number,
            field=dotted(("prompt", *at[1:]) if at[0] == "messages" else at),
            fix="mend the row",
        ) from e
    except ValueError as e:
        raise SetupError(str(e), file=path, line=number, fix="mend the row") from e


def _prompt(row: Any) -> Prompt:
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, found {type(row).__name__}")
    unknown = set(row) - {"id", "prompt", "tags", "metadata"}
    if unknown:
        raise ValueError(
            f"unknown field {sorted(unknown)[0]!r}; a row has prompt, id, tags, metadata"
        )
    if "prompt" not in row:
        raise ValueError("the row has no field 'prompt'")
    content = row["prompt"]
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    if not isinstance(messages, list):
        raise ValueError("prompt must be text or a list of messages")
    if any(isinstance(m, dict) and not str(m.get("content", "")).strip() for m in messages):
        raise ValueError("the prompt is empty")
    if row.get("id") == "":
        raise ValueError("the id is empty")
    identity = row.get("id", "p-" + digest(messages)[:12])
    return Prompt.model_validate(
        {
            "id": identity,
            "messages": messages,
            "tags": row.get("tags", []),
            "metadata": row.get("metadata", {}),
        }
    )

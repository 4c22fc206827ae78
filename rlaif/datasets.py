"""Prompt sets from files, and nothing dropped in silence."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from rlaif.errors import SetupError
from rlaif.files import digest, find
from rlaif.types import Prompt
from rlaif.yamlfile import dotted


def load_prompts(name: str, limit: int | None = None) -> tuple[Prompt, ...]:
    """A JSONL prompt set: each row has `prompt` (text, or a list of chat messages), and may have
    `id`, `tags` and `metadata` (names and plain values).

    Without an id a row is named by a hash of its conversation. `limit` keeps the first rows.
    Raises SetupError that names the row for JSON that is broken, an empty prompt, an unknown
    field, or an id that stands twice.
    """
    path = find("prompts/sets", name, ".jsonl")
    prompts: dict[str, Prompt] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise SetupError("is not UTF-8 text", file=path, fix="save it as UTF-8 JSONL") from e
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            if number <= text.count("\n"):
                raise SetupError("the row is empty", file=path, line=number, fix="delete the line")
            continue
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
            prompt = _prompt(row)
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
        if prompt.id in prompts:
            raise SetupError(
                f"id {prompt.id!r} stands twice", file=path, line=number, fix="ids must be unique"
            )
        prompts[prompt.id] = prompt
    if not prompts:
        raise SetupError("has no rows", file=path, fix='rows look like {"prompt": "…"}')
    if limit is not None and limit > len(prompts):
        raise SetupError(
            f"{limit} prompts were asked for, the file has {len(prompts)}",
            file=path,
            field="sample.limit",
            fix="lower sample.limit or leave it out",
        )
    return tuple(prompts.values())[:limit]


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

"""The exact prompts and answers behind a label: what makes it traceable."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from rlaif.callstore.tools import Row, row_of, store_of
from rlaif.errors import SetupError
from rlaif.files import read_jsonl
from rlaif.types import ChatReply, ChatRequest, Choice, Comparison, Judgment, Response

M = TypeVar("M", bound=BaseModel)
PLACES = ("", "compare", "revisions/judged", "rl")
"""Folders of a run with labels in them."""
CERTIFICATE = ("certificate_comparisons.jsonl", "certificate_judgments.jsonl")


def told(
    run: Path, comparison: str | None, response: str | None, key: str | None, *, as_json: bool
) -> Iterator[str]:
    """What is to be printed: the calls of a comparison, of a response, or one by its key; without
    any of them what there is. Raises SetupError that names the nearest id."""
    path = store_of(run)
    if comparison is not None:
        yield from _of_comparison(run, path, comparison, as_json=as_json)
    elif response is not None:
        found = _named(response, _all(run, "responses.jsonl", Response), "response")
        yield from _call(path, found.call, as_json=as_json)
    elif key is not None:
        yield from _call(path, key, as_json=as_json)
    else:
        yield from _overview(run)


def _overview(run: Path) -> Iterator[str]:
    comparisons = _comparisons(run)
    responses = _all(run, "responses.jsonl", Response)
    yield f"{len(responses):,} responses, {len(comparisons):,} comparisons"
    if comparisons:
        yield f"rlaif calls {run} --comparison '{comparisons[0].id}'"
    if responses:
        yield f"rlaif calls {run} --response '{responses[0].id}'"


def _of_comparison(run: Path, path: Path, name: str, *, as_json: bool) -> Iterator[str]:
    found = _named(name, _comparisons(run), "comparison")
    judgments = [j for j in _judgments(run) if j.comparison_id == name]
    if not as_json:
        p = "" if found.p_first is None else f", P(first preferred) = {found.p_first:.3f}"
        yield f"comparison {found.id}: {found.outcome}{p} {found.reason}".rstrip()
        yield f"first: {found.first}   second: {found.second}"
    for judgment in judgments:
        if not as_json:
            yield _heading(judgment)
        for key in judgment.calls:
            yield from _call(path, key, as_json=as_json)


def _heading(judgment: Judgment) -> str:
    said = judgment.reason or f"P(first preferred) = {judgment.p_first:.3f}"
    mass = "" if judgment.label_mass is None else f", label mass {judgment.label_mass:.3f}"
    return f"\n==== {judgment.principle_id}, order {judgment.order}, {judgment.judge}: {said}{mass}"


def _call(path: Path, key: str, *, as_json: bool) -> Iterator[str]:
    row = row_of(path, key)
    if row is None:
        # A failed call is not stored: it is asked again next time.
        text = {"key": key, "reply": None}
        yield json.dumps(text) if as_json else f"---- {key}: was not answered"
    elif as_json:
        plain = {"request": json.loads(row.request), "reply": json.loads(row.reply)}
        yield json.dumps({**row._asdict(), **plain}, ensure_ascii=False)
    else:
        yield from _shown(row)


def _shown(row: Row) -> Iterator[str]:
    request = ChatRequest.model_validate_json(row.request)
    reply = ChatReply.model_validate_json(row.reply)
    yield f"---- {row.key}  {row.created}, {row.seconds:.2f} s"
    yield f"{request.model}  {request.sampling.model_dump_json(exclude_defaults=True)}"
    for message in request.messages:
        yield f"[{message.role}]\n{message.content}"
    for number, choice in enumerate(reply.choices):
        which = f" {number}" if len(reply.choices) > 1 else ""
        yield f"[answer{which}, {choice.finish_reason}]\n{choice.text}"
        yield from _alternatives(choice)
    yield f"({reply.prompt_tokens} prompt tokens, {reply.completion_tokens} answered)"


def _alternatives(choice: Choice) -> Iterator[str]:
    if choice.first_token:
        shown = ", ".join(f"{t.token!r} {t.logprob:.3f}" for t in choice.first_token[:5])
        yield f"first token, log-probabilities: {shown}"


def _comparisons(run: Path) -> list[Comparison]:
    found = [c for place in PLACES for c in _all(run / place, "comparisons.jsonl", Comparison)]
    return found + _all(run, CERTIFICATE[0], Comparison)


def _judgments(run: Path) -> list[Judgment]:
    found = [j for place in PLACES for j in _all(run / place, "judgments.jsonl", Judgment)]
    return found + _all(run, CERTIFICATE[1], Judgment)


def _all(folder: Path, name: str, kind: type[M]) -> list[M]:
    path = folder / name
    return read_jsonl(path, kind) if path.is_file() else []


N = TypeVar("N", Comparison, Response)


def _named(name: str, found: Sequence[N], kind: str) -> N:
    for one in found:
        if one.id == name:
            return one
    ids = [one.id for one in found]
    near = difflib.get_close_matches(name, ids, n=1)
    fix = f"the nearest is {near[0]!r}" if near else f"ids look like {ids[0]!r}" if ids else ""
    raise SetupError(f"there is no {kind} {name!r}", fix=fix)

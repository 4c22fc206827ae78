"""Other people's constitutions: read into ours, and written back.

A format is named or found out from the content. Nothing is dropped in silence: what a constitution
has no place for is named in the notes, and what it cannot say at all is an error. Spaces around a
text, role markers (`CritiqueRequest:` … `Critique:`) and the order of examples are not kept.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.constitution import formats_choices as choices
from rlaif.constitution import formats_pairs as pairs
from rlaif.constitution.file import file_id
from rlaif.constitution.formats_draft import Draft
from rlaif.constitution.model import WORDINGS, Constitution, Principle, derived
from rlaif.errors import SetupError
from rlaif.files import canonical
from rlaif.types import Prompt
from rlaif.yamlfile import validate


class Imported(NamedTuple):
    """A constitution made of another tool's file."""

    constitution: Constitution
    format: str
    notes: tuple[str, ...]
    """What was changed or could not be kept: which entry, and why."""
    prompts: tuple[Prompt, ...] = ()
    """Prompts that came with it, tagged with the id of the principle that they try."""


class Format(NamedTuple):
    """How one format is read and written."""

    holds: str
    """What its file looks like."""
    read: Callable[[Any, Draft], None]
    write: Callable[[Constitution, Sequence[Prompt]], str]
    prompts: bool = False
    """Whether it holds prompts as well."""


def import_constitution(
    path: Path, *, format: str | None = None, id: str | None = None
) -> Imported:
    """The constitution in another tool's file, called `id`, or by the file's name.

    Raises SetupError with file, entry and reason for a file that cannot be read, a format that is
    unknown or not the file's, an entry that no principle can say, and a name that stands twice.
    """
    known = None if format is None else _format(format)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise SetupError(f"cannot be read: {e}", file=path) from e
    content, lines = _parsed(text, path, plain=format in ("nemo-aligner", "icai"))
    name = format or _detected(content, path)
    draft = Draft(path, lines, id=file_id(path.with_suffix("")))
    (known or FORMATS[name]).read(content, draft)
    constitution = _finished(draft, draft.id if id is None else id)
    return Imported(constitution, name, tuple(draft.notes), tuple(draft.prompts))


def export_constitution(
    constitution: Constitution, format: str, prompts: Sequence[Prompt] = ()
) -> str:
    """The content of a file of that format (and of the prompts that came with it).

    What it cannot hold is not left out: the text is read back, and what is not there as it was,
    unless it is at its default, is a SetupError. Ids are made anew by formats without names.
    """
    form = _format(format)
    if prompts and not form.prompts:
        raise SetupError(f"{format} holds no prompts", fix="write them to a file of their own")
    text = form.write(constitution, prompts)
    path = Path(f"{constitution.id} as {format}")
    draft = Draft(path)
    form.read(_parsed(text, path, plain=True)[0], draft)
    lost = _lost(constitution, draft)
    if not lost and [_asked(p) for p in prompts] != [_asked(p) for p in draft.prompts]:
        lost = "the prompts as they are"
    if lost:
        raise SetupError(
            f"{format} cannot hold {lost}",
            file=constitution.id,
            fix="take it out first, or export to rlaif, which holds all",
        )
    return text


def prompt_rows(prompts: Sequence[Prompt]) -> str:
    """The prompts as a prompt set, a JSONL file that `sample.prompts` takes."""
    rows = []
    for prompt in prompts:
        row = prompt.model_dump(mode="json")
        rows.append(canonical({"prompt": row.pop("messages"), **row}) + "\n")
    return "".join(rows)


def _read_rlaif(content: Any, draft: Draft) -> None:
    plain = dict(draft.mapping(content, ()))
    said = plain.pop("hash", None)
    found = validate(Constitution, plain, None, str(draft.path))
    if said not in (None, found.hash):
        draft.note(("hash",), "is not that of the content; it was changed after it was written")
    draft.id, draft.version, draft.description = found.id, found.version, found.description
    draft.principles, draft.tests = list(found.principles), found.tests


def _read_nemo(content: Any, draft: Draft) -> None:
    if isinstance(content, str):
        choices.read_numbered(content, draft)
    elif isinstance(content, dict) and "samples" in content:
        pairs.read_samples(content, draft)
    else:
        pairs.read_cai(content, draft)


FORMATS: Mapping[str, Format] = {
    "rlaif": Format(
        "our own JSON: {id, principles, …}",
        _read_rlaif,
        lambda constitution, _: constitution.model_dump_json(indent=2) + "\n",
    ),
    "cai-critique-revision": Format(
        '{"harmful0": {"prompt": […], "edit_request": …}}',
        pairs.read_cai,
        lambda constitution, _: pairs.write_cai(constitution),
    ),
    "cai-comparison": Format(
        'a list of "… Options:"',
        choices.read_cai,
        lambda constitution, _: choices.write_cai(constitution),
    ),
    "llm-swarm": Format(
        '{"constitutions": [{"critic": …, "revision": …}], "system_chat": […]}',
        pairs.read_llm_swarm,
        lambda constitution, _: pairs.write_llm_swarm(constitution),
    ),
    "nemo-aligner": Format(
        "a text with ```CONSTITUTION and numbered principles",
        _read_nemo,
        lambda constitution, _: choices.write_nemo(constitution),
    ),
    "open-character": Format(
        'lines of {"trait": …, "clarification": …, "questions": […]}',
        choices.read_open_character,
        choices.write_open_character,
        prompts=True,
    ),
    "icai": Format(
        "a list of principles, or cluster number -> principle",
        choices.read_icai,
        lambda constitution, _: choices.write_icai(constitution),
    ),
}


def _format(name: str) -> Format:
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.4)
        fix = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(FORMATS)}"
        raise SetupError(f"there is no format {name!r}", field="format", fix=fix)
    return FORMATS[name]


def _detected(content: Any, path: Path) -> str:
    match content:
        case str():
            return "nemo-aligner" if choices.FENCE.search(content) else "icai"
        case {"principles": _}:
            return "rlaif"
        case {"constitutions": _} | [{"critic": _}, *_]:
            return "llm-swarm"
        case {"samples": _}:
            return "nemo-aligner"
        case [{"trait": _}, *_]:
            return "open-character"
        case {"annotators": _}:
            return "icai"
        case [str(first), *_]:
            return "cai-comparison" if first.rstrip().endswith(choices.OPTIONS) else "icai"
        case dict() if content and all(key.isdecimal() for key in content):
            return "icai"
        case dict() if any("prompt" in v for v in content.values() if isinstance(v, dict)):
            return "cai-critique-revision"
    if content in ([], {}):
        raise SetupError("is empty", file=path, fix="there is nothing to import")
    raise SetupError(
        "is JSON, but no constitution in a format that is known",
        file=path,
        fix="known: " + "; ".join(f"{name}: {form.holds}" for name, form in FORMATS.items()),
    )


def _parsed(text: str, path: Path, *, plain: bool) -> tuple[Any, list[int]]:
    """The JSON value, the rows and their lines, or a text with a fenced constitution in it
    (`plain`: any text)."""
    rows = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise SetupError("is empty", file=path, fix="there is nothing to import")
    whole = _json(text, path)
    if not isinstance(whole, SetupError):
        # A file of one row is JSON lines as well.
        return (
            ([whole], [rows[0][0]]) if isinstance(whole, dict) and "trait" in whole else (whole, [])
        )
    if len(rows) > 1 and isinstance(_json(rows[0][1], path), dict):
        values = []
        for number, line in rows:
            value = _json(line, path, number)
            if isinstance(value, SetupError):
                raise value
            values.append(value)
        return values, [number for number, _ in rows]
    if choices.FENCE.search(text) or (plain and text.lstrip()[0] not in "[{"):
        return text, []
    raise whole


def _json(text: str, path: Path, line: int | None = None) -> Any:
    """The value, or the mistake."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as e:
        where = f"{e.msg}, column {e.colno}"
        return SetupError(f"not valid JSON: {where}", file=path, line=line or e.lineno)
    except (ValueError, RecursionError) as e:
        return SetupError(f"not usable JSON: {e}", file=path, line=line)


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in members:
        if key in found:
            raise ValueError(f"{key!r} stands twice in one object; keep one")
        try:
            key.encode()
        except UnicodeEncodeError as e:
            raise ValueError(f"the key {key!r} is no valid text: {e.reason}") from e
        found[key] = value
    return found


def _finished(draft: Draft, id: str) -> Constitution:
    value = {
        "id": id,
        "version": draft.version,
        "description": draft.description,
        "principles": draft.principles,
        "tests": draft.tests,
    }
    return validate(Constitution, value, None, str(draft.path))


def _lost(original: Constitution, back: Draft) -> str:
    """The first thing of the original that is not as it was; empty where all is."""
    if len(original.principles) != len(back.principles):
        return "a line that looks like a principle of its own"
    defaults = {name: field.default for name, field in Principle.model_fields.items()}
    for before, after in zip(original.principles, back.principles, strict=True):
        read = dict(after)
        for name, value in before:
            default = derived(before.text)[name] if name in WORDINGS else defaults[name]
            if name != "id" and value not in (read[name], default):
                return f"{name} of {before.id!r}"
    if original.version not in (back.version, "0"):
        return "a version"
    if original.description not in (back.description, ""):
        return "a description"
    return "tests" if original.tests and original.tests != back.tests else ""


def _asked(prompt: Prompt) -> tuple[Any, ...]:
    return prompt.messages, dict(prompt.metadata)

"""What every reader of another project's format needs: mistakes with their place, notes, ids."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.constitution.file import new_id
from rlaif.constitution.model import BARE, Case, Example, Principle
from rlaif.errors import SetupError
from rlaif.types import Prompt
from rlaif.yamlfile import Location, dotted

ID_WORDS = 4
# Words that begin nearly every instruction to choose or to rewrite a response.
FRAME = re.compile(
    "a|all|amend|an|and|any|are|as|assistant|be|choose|compare|consider|content|degree|do|does|for|"
    "from|i|in|is|it|last|less|more|most|not|of|one|or|please|prefer|remove|response|responses|"
    "revise|rewrite|select|so|that|the|these|this|to|was|way|what|which|with|write"
)


@dataclass
class Draft:
    """A constitution in the making, and what of its source it cannot hold."""

    path: Path
    lines: Sequence[int] = ()
    """The line of each row, where the source is JSON lines."""
    id: str = ""
    version: str = "0"
    description: str = ""
    principles: list[Principle] = field(default_factory=list)
    tests: tuple[Case, ...] = ()
    prompts: list[Prompt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def mistake(self, at: Location, problem: str, fix: str = "") -> SetupError:
        """What is wrong with the entry at `at`."""
        row = at[0] if at else None
        line = self.lines[row] if self.lines and isinstance(row, int) else None
        return SetupError(problem, file=self.path, line=line, field=dotted(at), fix=fix)

    def note(self, at: Location, said: str) -> None:
        """Something that was changed or not kept."""
        self.notes.append(f"{dotted(at)}: {said}" if at else said)

    def text(self, value: Any, at: Location) -> str:
        """Text that is not blank, without spaces around it. Raises SetupError."""
        if not isinstance(value, str):
            raise self.mistake(at, f"found {_kind(value)}", "it must be text")
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise self.mistake(at, f"is no valid text: {e.reason}", "mend it at the source") from e
        if not value.strip():
            raise self.mistake(at, "is empty", "write it, or delete the entry")
        return value.strip()

    def perhaps(self, value: Any, at: Location) -> list[Any]:
        """A list that may be empty, or null in its place. Raises SetupError."""
        return [] if value in (None, []) else self.listed(value, at)

    def listed(self, value: Any, at: Location) -> list[Any]:
        """A list with something in it. Raises SetupError."""
        if not isinstance(value, list):
            raise self.mistake(at, f"found {_kind(value)}", "it must be a list")
        if not value:
            raise self.mistake(at, "is an empty list", "there is nothing to import")
        return value

    def mapping(self, value: Any, at: Location) -> dict[str, Any]:
        """Named fields. Raises SetupError."""
        if not isinstance(value, dict):
            raise self.mistake(at, f"found {_kind(value)}", "it must be a JSON object")
        if not value:
            raise self.mistake(at, "is an empty object", "there is nothing to import")
        return value

    def fields(
        self, value: Any, at: Location, needed: Collection[str], others: Collection[str] = ()
    ) -> dict[str, Any]:
        """An object that has the needed fields; what it has beyond these and the others is noted.
        Raises SetupError."""
        entry = self.mapping(value, at)
        for name in needed:
            if name not in entry:
                raise self.mistake((*at, name), "is missing", f"it has: {', '.join(entry)}")
        for name in entry:
            if name not in needed and name not in others:
                self.note((*at, name), "not kept; a constitution has no place for it")
        return entry

    def add(
        self,
        at: Location,
        name: str,
        text: str,
        wordings: dict[str, str],
        *,
        tags: tuple[str, ...] = (),
        examples: Sequence[Example] = (),
    ) -> Principle:
        """A principle at the end; one that says the same as another is kept, and noted."""
        made = Principle(id=name, text=text, tags=tags, examples=tuple(examples), **wordings)
        for other in self.principles:
            if (other.text, other.critique) == (made.text, made.critique):
                self.note(at, f"says the same as {other.id!r}; both are kept, so it votes twice")
                break
        self.principles.append(made)
        return made

    def id_of_key(self, key: str, at: Location) -> str:
        """The key itself where it can be an id."""
        taken = {principle.id for principle in self.principles}
        if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", key) and key not in taken:
            return key
        name = new_id(key, dict.fromkeys(taken))
        self.note(at, f"is called {name!r} here, as an id has only a-z, 0-9, - and _")
        return name

    def id_of_text(self, text: str) -> str:
        """The first words that tell it from its like."""
        words = re.findall(r"[a-z0-9]+", re.sub(r"['’]\w+", "", text.casefold()))
        telling = [word for word in words if not FRAME.fullmatch(word)] or words
        taken = dict.fromkeys(principle.id for principle in self.principles)
        return new_id(" ".join(telling[:ID_WORDS]), taken)


def as_read(principle: Principle) -> Principle:
    """The principle with its wordings as plain text. Raises SetupError for one that needs to know
    the prompt."""
    try:
        return principle.worded(BARE)
    except SetupError as e:
        raise SetupError(f"depends on the prompt: {e.problem}", field=e.field) from e


def as_json(content: Any) -> str:
    """A JSON file's text."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null"}
    return names.get(type(value), repr(value)[:40])

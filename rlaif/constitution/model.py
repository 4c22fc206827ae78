"""A constitution as the judge sees it: the principles that responses are held against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)

from rlaif.constitution.conditions import Condition
from rlaif.constitution.wording import WordingError, render, template
from rlaif.errors import SetupError
from rlaif.files import digest
from rlaif.types import Message, Prompt, Record, Scalar

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]

WORDINGS = ("comparison", "critique", "revision")
"""The fields of a principle that are Jinja."""
BARE = Prompt(id="bare", messages=(Message(role="user", content="Hello."),))
"""A prompt without tags and metadata, as most are."""
EVERY = "*"
"""In a test's `principle`: the whole constitution, as a run would ask it."""


def derived(text: str) -> dict[str, str]:
    """The wordings of a principle that has only its text. The text is data: braces in it are not
    Jinja."""
    rule = template(text.rstrip("."))
    return {
        "comparison": f"Which response follows this rule better: {rule}?",
        "critique": f"Say where the response breaks this rule: {rule}.",
        "revision": f"Rewrite the response so that it follows this rule: {rule}.",
    }


def _or_text(schema: dict[str, Any]) -> None:
    listed = {key: schema.pop(key) for key in ("type", "items", "minItems") if key in schema}
    schema["anyOf"] = [{"type": "string", "minLength": 1}, listed]


class Example(Record):
    """A worked example that is shown before the real question (few-shot)."""

    prompt: Text
    chosen: Text
    """The response that follows the rule: what a comparison prefers, what a revision ends as."""
    rejected: Text
    """The response that falls short."""
    critique: str = ""
    """What is wrong with `rejected`; examples without one are not shown to who writes critiques."""
    rationale: str = ""
    """Why `chosen` follows the rule better; it is shown as A and as B in turn, so name neither.
    Examples without one are not shown to a judge that reasons before its verdict."""

    @model_serializer(mode="wrap")
    def _without_rationale(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The hash of a constitution whose examples have none is what it was before there were any.
        dumped: dict[str, Any] = plain(self)
        if not self.rationale:
            dumped.pop("rationale", None)
        return dumped


class PrincipleFields(Record):
    """What a principle may say beside its id and text."""

    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Its share in the vote, relative to the other principles' weights; at 0 it is asked and
    counts for nothing."""
    tier: int = Field(default=1, ge=1)
    """Rank: with `judge.principles: tiers`, tier 1 decides, and only what leaves it indifferent
    goes on to tier 2, and so on."""
    tags: tuple[Slug, ...] = ()
    """Words to find the principle by; nothing is judged by them."""
    applies_when: str = ""
    """A condition on the prompt's tags and metadata, such as `'code' in tags and metadata.turns >
    2`; where it does not hold, the principle is not asked. Empty: it always is."""
    comparison: str = ""
    """The question that asks a judge which of two responses follows the rule better. Jinja, as the
    other two wordings: it may use the rule's `text` and the prompt's `tags` and `metadata`. Left
    out, it is derived from the text."""
    critique: str = ""
    """The instruction to say where one response falls short of the rule."""
    revision: str = ""
    """The instruction to rewrite a response so that it follows the rule."""
    examples: tuple[Example, ...] = ()
    """Shown to the judge, the critic and the reviser before the real question."""

    @field_validator(*WORDINGS)
    @classmethod
    def _is_jinja(cls, wording: str) -> str:
        render(wording.strip(), None)
        return wording.strip()

    @field_validator("applies_when")
    @classmethod
    def _is_a_condition(cls, text: str) -> str:
        Condition.of(text)
        return text.strip()


class Principle(PrincipleFields):
    """One rule, with all its wordings."""

    id: Slug
    text: Text
    """The rule itself, in a sentence or two."""

    @model_validator(mode="after")
    def _derive_wording(self) -> Self:
        for field, wording in derived(self.text).items():
            if not self.__dict__[field]:
                # Frozen for everyone else; here the record is still being made.
                object.__setattr__(self, field, wording)
        return self

    def applies(self, prompt: Prompt) -> bool:
        """Whether the principle is asked about answers to this prompt."""
        return Condition.of(self.applies_when).holds(prompt.tags, prompt.metadata)

    @property
    def asks_the_prompt(self) -> bool:
        """Whether a wording may depend on the prompt that it is shown with."""
        said = [self.__dict__[field] for field in WORDINGS]
        return any("metadata" in wording or "tags" in wording for wording in said)

    def worded(self, prompt: Prompt) -> Principle:
        """The principle with its wordings rendered for a prompt. Raises SetupError, with the field
        in front, for a wording that cannot be: it uses metadata that this prompt lacks, say."""
        changed = {}
        for field in WORDINGS:
            wording: str = self.__dict__[field]
            try:
                said = render(wording, {"text": self.text, "prompt": prompt})
            except WordingError as e:
                raise SetupError(
                    str(e),
                    field=f"principles[{self.id}].{field}",
                    fix="give the prompt this metadata, or let `applies_when` ask for it",
                ) from e
            if said != wording:
                changed[field] = said
        return self.model_copy(update=changed) if changed else self


class Case(Record):
    """A test of a principle: two responses and the one that should win, or one response and whether
    it complies."""

    name: str = ""
    """What the test is called in tables; the prompt's first words where it is left out."""
    principle: str = ""
    """Id of the principle that it tests; `*`: the whole constitution, as a run asks it."""
    prompt: Annotated[tuple[Message, ...], Field(min_length=1, json_schema_extra=_or_text)]
    """A user's message, or a list of messages that ends with one."""
    tags: tuple[str, ...] = ()
    """The prompt's tags, for `applies_when`."""
    metadata: Mapping[str, Scalar] = {}
    """The prompt's metadata, for `applies_when` and wordings."""
    chosen: Text | None = None
    """The response that should win."""
    rejected: Text | None = None
    """The response that should lose."""
    response: Text | None = None
    """A response by itself."""
    complies: bool | None = None
    """Whether `response` follows the principle."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _text_is_a_message(cls, prompt: Any) -> Any:
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt

    @model_validator(mode="after")
    def _is_one_of_two_kinds(self) -> Self:
        two = (self.chosen is not None, self.rejected is not None)
        one = (self.response is not None, self.complies is not None)
        if not ((all(two) and not any(one)) or (all(one) and not any(two))):
            raise ValueError("a test has chosen and rejected, or response and complies")
        if all(two) and self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same text")
        if self.prompt[-1].role != "user":
            raise ValueError("the last message of a test's prompt must be the user's")
        return self

    def as_prompt(self) -> Prompt:
        """The prompt that its responses answer."""
        content = [[m.model_dump() for m in self.prompt], self.tags, dict(self.metadata)]
        return Prompt(
            id=f"test-{digest(content)[:12]}",
            messages=self.prompt,
            tags=self.tags,
            metadata=self.metadata,
        )

    @property
    def title(self) -> str:
        """Its name, or the first words of its prompt."""
        words = self.prompt[-1].content.split()
        return self.name or " ".join(words[:8]) + (" …" if len(words) > 8 else "")


class Constitution(Record):
    """A named, versioned list of principles, and the tests that say what they mean."""

    id: Slug
    version: Text = "0"
    description: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    principles: tuple[Principle, ...] = Field(min_length=1)
    tests: tuple[Case, ...] = ()

    @field_validator("principles")
    @classmethod
    def _ids_are_unique(cls, principles: tuple[Principle, ...]) -> tuple[Principle, ...]:
        seen: dict[str, int] = {}
        for number, principle in enumerate(principles):
            if principle.id in seen:
                raise ValueError(
                    f"principles[{number}]: id {principle.id!r} is already that of "
                    f"principles[{seen[principle.id]}]; give it another"
                )
            seen[principle.id] = number
        if math.isinf(sum(p.weight for p in principles)):
            raise ValueError("the principles' weights sum to infinity; give them smaller ones")
        if not any(p.weight for p in principles):
            raise ValueError("the principles' weights sum to nothing; give one a weight above 0")
        return principles

    @property
    def hash(self) -> str:
        """sha256 (hex) of what shapes a label: the principles. Not of the name, the version, the
        description or the tests, so a constitution with one more test is still the same one."""
        return digest([p.model_dump(mode="json") for p in self.principles])

    def only(self, ids: Iterable[str]) -> Constitution:
        """The constitution of some of its principles; a weight of 0 becomes 1 where it would leave
        nothing to vote."""
        wanted = set(ids)
        kept = [p for p in self.principles if p.id in wanted]
        if kept and not any(p.weight for p in kept):
            kept = [p.model_copy(update={"weight": 1.0}) for p in kept]
        return Constitution(
            id=self.id,
            version=self.version,
            description=self.description,
            principles=tuple(kept),
            tests=tuple(t for t in self.tests if t.principle in wanted),
        )


def facts(constitution: Constitution) -> dict[str, str | int]:
    """What a label's origin is named by: id, version, hash, number of principles."""
    return {
        "id": constitution.id,
        "version": constitution.version,
        "hash": constitution.hash,
        "principles": len(constitution.principles),
    }

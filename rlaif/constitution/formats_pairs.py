"""Formats whose entries are a critique request and a revision request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rlaif.constitution.formats_draft import Draft, as_json, as_read
from rlaif.constitution.model import Constitution, Example
from rlaif.constitution.wording import template
from rlaif.yamlfile import Location

CRITIQUE_MARKS = ("CritiqueRequest:", "Critique:")
REVISION_MARKS = ("RevisionRequest:", "Revision:")
COMPARISON = "A revision was asked for: {{ text }}\nWhich response has less need of it?"
SHAPE = "prompt, response, critique request, critique, revision request and revision"
ROLES = ["user", "assistant"] * 3
JUDGING = (
    "the question for judges is made from the revision request: read it before you judge by it"
)


class Chat(NamedTuple):
    """One worked example as these formats have it: a conversation of six messages."""

    prompt: str
    response: str
    critic: str
    critique: str
    request: str
    revision: str

    @property
    def requests(self) -> tuple[str, str]:
        """Critique request and revision request, however they are spaced and capitalised."""
        return _normal(self.critic), _normal(self.request)

    @property
    def example(self) -> Example:
        return Example(
            prompt=self.prompt,
            chosen=self.revision,
            rejected=self.response,
            critique=self.critique,
        )


def read_cai(content: Any, draft: Draft) -> None:
    """Anthropic's CritiqueRevisionInstructions.json (Bai et al. 2022), which NeMo-Aligner uses too:
    `{"harmful0": {"prompt": [critique request], "edit_request": revision request}}`."""
    for key, value in draft.mapping(content, ()).items():
        entry = draft.fields(value, (key,), ("prompt", "edit_request"))
        requests = draft.listed(entry["prompt"], (key, "prompt"))
        if len(requests) != 1:
            raise draft.mistake(
                (key, "prompt"),
                f"has {len(requests)} critique requests; a principle has one",
                "make an entry of each",
            )
        critique = _unmarked(draft, requests[0], (key, "prompt", 0), CRITIQUE_MARKS)
        revision = _unmarked(draft, entry["edit_request"], (key, "edit_request"), REVISION_MARKS)
        _add(draft, (key,), draft.id_of_key(key, (key,)), critique, revision)
    draft.note((), JUDGING)


def write_cai(constitution: Constitution) -> str:
    """As `read_cai` reads it, under the principles' ids. NeMo-Aligner wants them to be `harmful0`,
    `harmful1` and so on."""
    content = {}
    for principle in map(as_read, constitution.principles):
        critique = _marked(principle.critique, CRITIQUE_MARKS)
        revision = _marked(principle.revision, REVISION_MARKS)
        content[principle.id] = {"prompt": [critique], "edit_request": revision}
    return as_json(content)


def read_llm_swarm(content: Any, draft: Draft) -> None:
    """The JSON of llm-swarm's constitutional-ai example: `{"constitutions": [{"critic": …,
    "revision": …}], "system_chat": [few-shot conversations]}`, or the first list alone.

    A conversation becomes an example of the principle whose requests it uses.
    """
    if isinstance(content, list):
        content = {"constitutions": content}
    whole = draft.fields(content, (), ("constitutions",), ("system_chat",))
    pairs = []
    for i, value in enumerate(draft.listed(whole["constitutions"], ("constitutions",))):
        at: Location = ("constitutions", i)
        entry = draft.fields(value, at, ("critic", "revision"))
        pairs.append(
            (
                draft.text(entry["critic"], (*at, "critic")),
                draft.text(entry["revision"], (*at, "revision")),
            )
        )
    keys = [(_normal(critic), _normal(revision)) for critic, revision in pairs]
    examples = _examples(draft, whole.get("system_chat"), keys)
    for i, (critic, revision) in enumerate(pairs):
        at = ("constitutions", i)
        # Of two entries that ask the same the first has the examples.
        shown = examples.pop(keys[i], [])
        _add(draft, at, draft.id_of_text(revision), critic, revision, shown)
    draft.note((), JUDGING)


def write_llm_swarm(constitution: Constitution) -> str:
    """As `read_llm_swarm` reads it; the conversations stand in the principles' order."""
    principles = [as_read(principle) for principle in constitution.principles]
    chats = [
        Chat(e.prompt, e.rejected, p.critique, e.critique, p.revision, e.chosen)
        for p in principles
        for e in p.examples
    ]
    return as_json(
        {
            "constitutions": [{"critic": p.critique, "revision": p.revision} for p in principles],
            "system_chat": [
                [{"role": r, "content": c} for r, c in zip(ROLES, chat, strict=True)]
                for chat in chats
            ],
        }
    )


def read_samples(content: Any, draft: Draft) -> None:
    """NeMo-Aligner's few-shot samples: `{"samples": [conversations]}`. Every two requests that go
    together are a principle, and the conversations with them are its examples."""
    whole = draft.fields(content, (), ("samples",))
    chats: dict[tuple[str, str], list[Chat]] = {}
    places: dict[tuple[str, str], Location] = {}
    for i, value in enumerate(draft.listed(whole["samples"], ("samples",))):
        at: Location = ("samples", i)
        chat = _chat(draft, value, at)
        if chat is None:
            raise draft.mistake(
                at,
                f"is no {SHAPE}",
                "six messages, the user's first, in turns",
            )
        chats.setdefault(chat.requests, []).append(chat)
        places.setdefault(chat.requests, at)
    for requests, same in chats.items():
        first = same[0]
        name = draft.id_of_text(first.request)
        shown = [chat.example for chat in same]
        _add(draft, places[requests], name, first.critic, first.request, shown)
    draft.note((), JUDGING)


def _examples(
    draft: Draft, chats: Any, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], list[Example]]:
    """The examples of each two requests; a conversation that belongs to none is noted."""
    examples: dict[tuple[str, str], list[Example]] = {key: [] for key in keys}
    for i, value in enumerate(draft.perhaps(chats, ("system_chat",))):
        at: Location = ("system_chat", i)
        chat = _chat(draft, value, at)
        if chat is None:
            draft.note(at, f"not kept as an example: it is no {SHAPE}")
        elif chat.requests not in examples:
            draft.note(at, "not kept as an example: its two requests are no principle's")
        else:
            examples[chat.requests].append(chat.example)
    return examples


def _add(
    draft: Draft,
    at: Location,
    name: str,
    critique: str,
    revision: str,
    examples: Sequence[Example] = (),
) -> None:
    wordings = {
        "comparison": COMPARISON,
        "critique": template(critique),
        "revision": "{{ text }}",
    }
    draft.add(at, name, revision, wordings, examples=examples)


def _chat(draft: Draft, value: Any, at: Location) -> Chat | None:
    """None for a conversation of another shape. Raises SetupError for what is none."""
    roles, said = [], []
    for i, turn in enumerate(draft.listed(value, at)):
        place = (*at, i)
        message = draft.fields(turn, place, ("role", "content"))
        roles.append(draft.text(message["role"], (*place, "role")).casefold())
        said.append(draft.text(message["content"], (*place, "content")))
    return Chat(*said) if roles == ROLES else None


def _unmarked(draft: Draft, value: Any, at: Location, marks: tuple[str, str]) -> str:
    text = draft.text(value, at).removeprefix(marks[0]).removesuffix(marks[1])
    return draft.text(text, at)


def _marked(text: str, marks: tuple[str, str]) -> str:
    return f"\n\n{marks[0]} {text}\n\n{marks[1]}"


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())

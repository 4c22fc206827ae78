"""Formats whose entries are one sentence: an instruction to choose, a rule or a trait."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from rlaif.constitution.formats_draft import Draft, as_json
from rlaif.constitution.model import Constitution
from rlaif.errors import SetupError
from rlaif.types import Message, Prompt
from rlaif.yamlfile import Location

OPTIONS = "Options:"
FENCE = re.compile(r"^```CONSTITUTION[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
ITEM = re.compile(r"\s*\d+[.)]\s+(\S.*)")
CLUSTER = "cluster-"
CHOOSING = {"comparison": "{{ text }}"}
REVISING = (
    "the critique and revision wordings are derived from the text: read them before you use them"
)
TRAIT = {
    "comparison": "A trait of the assistant: {{ text }}\nWhich response fits it better?",
    "critique": "A trait of the assistant: {{ text }}\nSay where the response does not fit it.",
    "revision": "A trait of the assistant: {{ text }}\nRewrite the response so that it fits.",
}
QUESTIONS = ("questions", "additional_questions")
# What NeMo-Aligner's script reads from the answer is the dictionary.
NEMO_FRAME = """\
You are shown a request and several numbered responses to it. Hold the responses against the
principles in the CONSTITUTION below, all of them together.

Answer with a dictionary first, and with your reasons after it:
{"chosen": number of the response that keeps to the principles best, "rejected": number of the one \
that keeps to them least}

```CONSTITUTION
"""


def read_cai(content: Any, draft: Draft) -> None:
    """Anthropic's RLMadisonInstructions.json (Bai et al. 2022): a list of instructions to choose,
    each followed by `Options:`."""
    for i, value in enumerate(draft.listed(content, ())):
        text = draft.text(value, (i,)).removesuffix(OPTIONS)
        _add(draft, (i,), draft.text(text, (i,)))
    draft.note((), REVISING)


def write_cai(constitution: Constitution) -> str:
    """As `read_cai` reads it."""
    return as_json([f"\n{p.text} {OPTIONS}" for p in constitution.principles])


def read_icai(content: Any, draft: Draft) -> None:
    """What inverse constitutional AI (Findeis et al. 2024) leaves in its results folder: a list of
    principles (050), one a cluster (030, whose number is kept as a tag), the constitution as one
    numbered text (060), or annotated pairs (070), of which only the principles are read."""
    if isinstance(content, str):
        read_numbered(content, draft)
        return
    if isinstance(content, list):
        for i, value in enumerate(draft.listed(content, ())):
            _add(draft, (i,), draft.text(value, (i,)))
    elif isinstance(content, dict) and "annotators" in content:
        _read_annotators(content, draft)
    else:
        for key, value in draft.mapping(content, ()).items():
            if isinstance(value, dict):
                raise draft.mistake(
                    (key,),
                    "counts votes and is no principle",
                    "import 030_distilled_principles_per_cluster.json of the same run",
                )
            if not (key.isascii() and key.isdecimal()):
                raise draft.mistake((key,), "is no cluster's number", "keys must be 0, 1, 2 …")
            _add(draft, (key,), draft.text(value, (key,)), tags=(CLUSTER + key,))
    draft.note((), REVISING)


def write_icai(constitution: Constitution) -> str:
    """The list, or the clusters where every principle has a cluster's tag."""
    texts = {}
    for principle in constitution.principles:
        for tag in principle.tags:
            if tag.startswith(CLUSTER):
                texts[tag.removeprefix(CLUSTER)] = principle.text
    if len(texts) == len(constitution.principles):
        return as_json(texts)
    return as_json([principle.text for principle in constitution.principles])


def read_numbered(content: str, draft: Draft) -> None:
    """The system prompt that NeMo-Aligner's judge is given: numbered principles between
    `` ```CONSTITUTION `` and `` ``` ``.

    What else stands between these is the description; what stands around them is not kept, as our
    judges have prompts of their own. An entry may go on on the next line.
    """
    fences = list(FENCE.finditer(content))
    if len(fences) > 1:
        raise draft.mistake(
            (), f"has {len(fences)} CONSTITUTION blocks", "make one of them, or a file of each"
        )
    inside, around = content, ""
    for fence in fences:
        inside, around = fence[1], content[: fence.start()] + content[fence.end() :]
    items: list[str] = []
    described: list[str] = []
    joined: set[int] = set()
    within = False
    for line in inside.split("\n"):
        if match := ITEM.fullmatch(line):
            items.append(match[1].strip())
            within = True
        elif re.fullmatch(r"\s*\d+[.)]\s*", line):
            raise draft.mistake(
                (len(items),), f"the number {line.strip()!r} has no text", "write it beside it"
            )
        elif within and line.strip():
            # A point of a list stays one.
            items[-1] += ("\n" if re.match(r"\s*[-*•]\s", line) else " ") + line.strip()
            joined.add(len(items) - 1)
        else:
            within = False
            described.append(line.strip())
    if not items:
        raise draft.mistake((), "has no numbered principles", "write them as `1. …`, `2. …`")
    draft.description = re.sub(r"\n{3,}", "\n\n", "\n".join(described)).strip()
    for i, item in enumerate(items):
        _add(draft, (i,), draft.text(item, (i,)))
        if i in joined:
            draft.note((i,), "goes on over several lines, which are one principle here")
    if around.strip():
        draft.note(
            (),
            "the instructions around the CONSTITUTION are not kept: our judges are asked "
            "in our own prompts",
        )
    draft.note((), REVISING)


def write_nemo(constitution: Constitution) -> str:
    """A system prompt for NeMo-Aligner's judge."""
    described = f"{constitution.description}\n\n" if constitution.description else ""
    items = [f"{i}. {p.text}\n" for i, p in enumerate(constitution.principles, 1)]
    return f"{NEMO_FRAME}{described}{''.join(items)}```\n"


def read_open_character(content: Any, draft: Draft) -> None:
    """OpenCharacterTraining (Maiya et al. 2025): rows with a `trait` and perhaps its
    `clarification`, which goes into the text, and `questions` and `additional_questions`, which
    become prompts tagged with the principle's id. The hand-written ones are one JSON list."""
    for i, value in enumerate(draft.listed(content, ())):
        row = draft.fields(value, (i,), ("trait",), ("clarification", *QUESTIONS))
        text = draft.text(row["trait"], (i, "trait"))
        name = draft.id_of_text(text)
        if row.get("clarification") not in (None, ""):
            text += "\n\n" + draft.text(row["clarification"], (i, "clarification"))
        draft.add((i,), name, text, TRAIT)
        for field in QUESTIONS:
            for j, question in enumerate(draft.perhaps(row.get(field), (i, field))):
                _add_prompt(draft, name, field, draft.text(question, (i, field, j)))


def write_open_character(constitution: Constitution, prompts: Sequence[Prompt]) -> str:
    """As `read_open_character` reads it, with the prompts that it made. Raises SetupError for
    others."""
    rows: dict[str, dict[str, Any]] = {}
    for principle in constitution.principles:
        trait, _, clarification = principle.text.partition("\n\n")
        if clarification and (trait, clarification) == (trait.strip(), clarification.strip()):
            rows[principle.id] = {"trait": trait, "clarification": clarification}
        else:
            rows[principle.id] = {"trait": principle.text}
    for prompt in prompts:
        field = prompt.metadata.get("field")
        if len(prompt.tags) != 1 or prompt.tags[0] not in rows or field not in QUESTIONS:
            raise SetupError(
                f"the prompt {prompt.id!r} belongs to no trait",
                fix=f"its one tag must be a principle's id, its metadata.field one of {QUESTIONS}",
            )
        rows[prompt.tags[0]].setdefault(str(field), []).append(prompt.messages[-1].content)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())


def _read_annotators(content: dict[str, Any], draft: Draft) -> None:
    whole = draft.fields(content, (), ("annotators",), ("comparisons", "metadata"))
    others = 0
    for key, value in draft.mapping(whole["annotators"], ("annotators",)).items():
        at: Location = ("annotators", key)
        annotator = draft.fields(value, at, ("type",), ("description", "name"))
        if annotator["type"] == "principle":
            _add(draft, at, draft.text(annotator.get("description"), (*at, "description")))
        else:
            others += 1
    if not draft.principles:
        raise draft.mistake(("annotators",), "has no principles", "none is of type principle")
    pairs = len(draft.perhaps(whole.get("comparisons"), ("comparisons",)))
    draft.note(
        (),
        f"{pairs} comparisons with their votes, {others} other annotators and the "
        "metadata are not kept: they are data, and a constitution is rules",
    )


def _add_prompt(draft: Draft, principle: str, field: str, question: str) -> None:
    number = sum(principle in prompt.tags for prompt in draft.prompts) + 1
    draft.prompts.append(
        Prompt(
            id=f"{principle}-{number:02}",
            messages=(Message(role="user", content=question),),
            tags=(principle,),
            metadata={"field": field},
        )
    )


def _add(draft: Draft, at: Location, text: str, tags: tuple[str, ...] = ()) -> None:
    draft.add(at, draft.id_of_text(text), text, CHOOSING, tags=tags)

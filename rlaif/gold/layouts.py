"""What a row says, in the layouts that people have.

LLMBar (Zeng et al. 2023), PandaLM (Wang et al. 2023), HHH (Askell et al. 2021), the transcripts of
HH-RLHF (Bai et al. 2022a), Chatbot Arena (Zheng et al. 2023), preference datasets of TRL, ShareGPT
and UltraFeedback, plain labelled rows, and what `rankings` makes of rankings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from rlaif.gold.rankings import KIND, RANKINGS
from rlaif.gold.sources import Rows, Source, shown
from rlaif.types import Message, Role

Row = dict[str, Any]
CONTEXT = ("prompt", "conversations", "question", "instruction")
FIRST = ("first", "response_a", "response_1")
SECOND = ("second", "response_b", "response_2")
LABEL = ("label", "winner", "preference")
ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
VERDICTS = {
    **dict.fromkeys(("a", "1", *FIRST), 1.0),
    **dict.fromkeys(("b", "2", *SECOND), 0.0),
    **dict.fromkeys(("tie", "0"), 0.5),
}
ARENA = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}
TURN = re.compile(r"\n\n(Human|Assistant):")


class NoPair(Exception):
    """The row is well formed, and holds no pair that a judge can be scored on: why."""


class Pair(NamedTuple):
    """As in `GoldPair`, before it has a name and a place."""

    messages: list[Message]
    first: str
    second: str
    p_gold: float
    annotators: tuple[float, ...] = ()


class Ceiling(NamedTuple):
    """How far people agree with each other. (A judge may agree with their majority more.)"""

    value: float
    source: str


class Layout(NamedTuple):
    name: str
    fields: str
    """For people: what a row of it has."""
    fits: Callable[[Row], bool]
    """Whether a row is of this layout, by its fields."""
    read: Callable[[Row], Pair]
    """Raises NoPair, and ValueError for a row that is not well formed."""
    positional: bool = False
    """Whether the row itself puts one response first; else the better one is given first."""
    ceiling: Callable[[Rows], Ceiling] | None = None
    """From all rows, each of which `read` has taken, and of which one at least is decided."""


def layout_of(source: Source) -> Layout:
    """The layout of the first row. Raises SetupError where it is none that is known."""
    number, first = source.rows[0]
    try:
        row = object_of(first)
    except ValueError as e:
        raise source.wrong(number, str(e), "mend the row") from e
    for layout in LAYOUTS:
        if layout.fits(row):
            return layout
    raise source.wrong(
        number,
        f"unknown layout: the first row has the fields {_names(row)}",
        f"known layouts are {'; '.join(f'{known.name}: {known.fields}' for known in LAYOUTS)}",
    )


def object_of(row: Any) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"a row must be an object with fields, found {shown(row)}")
    return row


# One reader a layout.


def _llmbar(row: Row) -> Pair:
    if row.get("label") in ("1", "2"):
        row = row | {"label": int(row["label"])}
    texts = (_text(row, "output_1"), _text(row, "output_2"))
    verdict = _vote(row, "label", tie=False)
    return Pair(_user(_text(row, "input")), *texts, verdict)


def _pandalm(row: Row) -> Pair:
    annotators = _annotators(row)
    # The publishers' spreadsheet turned the response "True" into a truth value.
    row = {
        k: str(v) if k.startswith("response") and isinstance(v, bool) else v for k, v in row.items()
    }
    more = _text(row, "input") if _field(row, "input") is not None else ""
    question = "\n\n".join(filter(None, (_text(row, "instruction"), more)))
    texts = (_text(row, "response1"), _text(row, "response2"))
    verdict, votes = Counter(annotators).most_common(1)[0]
    if votes == 1:
        raise NoPair("no majority")
    return Pair(_user(question), *texts, verdict, annotators)


def _pandalm_ceiling(rows: Rows) -> Ceiling:
    # As a judge is scored: against decided gold alone, a tie for half.
    scores = []
    for _, row in rows:
        votes = _annotators(row)
        for i, own in enumerate(votes):
            one, other = votes[:i] + votes[i + 1 :]
            if one == other != 0.5:
                scores.append(1.0 - abs(own - one))
    return Ceiling(sum(scores) / len(scores), "an annotator against the other two, from the file")


def _annotators(row: Row) -> tuple[float, ...]:
    return tuple(_vote(row, f"annotator{i}", tie=True) for i in (1, 2, 3))


def _hhh(row: Row) -> Pair:
    if "target_scores" in row:
        given = _typed(row, "target_scores", dict)
        # A table of such rows has every other row's texts as columns without a value.
        scores = {text: score for text, score in given.items() if score is not None}
        choices, labels = list(scores), list(scores.values())
    else:
        targets = _typed(row, "targets", dict)
        choices, labels = _typed(targets, "choices", list), _typed(targets, "labels", list)
    choices = [_checked(c, "choices") for c in choices]
    if not all(isinstance(label, int | float) for label in labels) or len(choices) != len(labels):
        raise ValueError(f"targets: found labels {shown(labels)}, a number for each choice")
    if len(choices) != 2:
        raise NoPair("not two responses")
    if labels[0] == labels[1]:
        raise NoPair("no verdict")
    better, worse = choices if labels[0] > labels[1] else reversed(choices)
    text = _text(row, "input")
    # The publishers leave the mark of the first human turn out.
    transcript = _is_transcript(text) or {"Human", "Assistant"} <= set(TURN.findall(text))
    if transcript and not text.lstrip().startswith("Human:"):
        text = f"\n\nHuman: {text}"
    return Pair(_transcript(text) if transcript else _user(text), better, worse, 1.0)


def _hh_transcripts(row: Row) -> Pair:
    def side(field: str) -> list[Message]:
        prompt, mark, response = _text(row, field).rpartition("\n\nAssistant:")
        if not mark:
            raise ValueError(f'{field}: the transcript has no "\\n\\nAssistant:"')
        return [*_transcript(prompt), Message(role="assistant", content=response.strip())]

    return _pair(side("chosen"), side("rejected"), 1.0)


def _pairs(row: Row) -> Pair:
    context = context_of(row)
    sides = (_side(row, "chosen", context), _side(row, "rejected", context))
    pair = _pair(*sides, _by_scores(row))
    given = row.get("prompt")
    if isinstance(given, str) and _is_transcript(given) and pair.first.startswith(given):
        # Some sets repeat the whole transcript before each response.
        better, worse = (t.removeprefix(given).strip() for t in (pair.first, pair.second))
        return pair._replace(first=better, second=worse)
    return pair


def _by_scores(row: Row) -> float:
    """What the scores beside chosen and rejected leave of it: 1.0, or 0.5 where they are level."""
    better, worse = row.get("score_chosen"), row.get("score_rejected")
    if not isinstance(better, int | float) or not isinstance(worse, int | float):
        return 1.0
    if better < worse:
        raise NoPair("scores contradict chosen")
    return 0.5 if better == worse else 1.0


def _arena(row: Row) -> Pair:
    verdict = _verdict(_field(row, "winner"), ARENA)
    if verdict is None:
        raise NoPair("no verdict")
    for field in ("conversation_a", "conversation_b"):
        _typed(row, field, list)
    return _pair(_side(row, "conversation_a", []), _side(row, "conversation_b", []), verdict)


def _labelled(row: Row) -> Pair:
    # "A" and 1 are two spellings of one verdict: the fields are held against each other read.
    row = row | {name: _verdict(row[name], VERDICTS) for name in LABEL if name in row}
    verdict = _field(row, *LABEL)
    if verdict is None:
        raise NoPair("no verdict")
    context = context_of(row)
    first, second = (_side(row, _given(row, *names), context) for names in (FIRST, SECOND))
    return _pair(first, second, verdict)


def _ranked(row: Row) -> Pair:
    if row["left_out"]:
        raise NoPair(row["left_out"])
    if row.keys().isdisjoint(CONTEXT):
        raise ValueError(f"the row has no field {'|'.join(CONTEXT)!r}")
    return Pair(context_of(row), row["better"], row["worse"], 0.5 if row["level"] else 1.0)


def _is_ranked(name: str, row: Row) -> bool:
    return row.get(KIND) == name


def _verdict(label: Any, known: Mapping[str, float]) -> float | None:
    if label is None or label == "":
        return None
    word = str(label).strip().lower() if isinstance(label, str | int) else ""
    if word not in known:
        raise ValueError(f"unknown label {shown(label)}; known are {', '.join(known)}")
    return known[word]


def _is_pairs(row: Row) -> bool:
    return {"chosen", "rejected"} <= row.keys() and (
        not row.keys().isdisjoint(CONTEXT)
        or all(isinstance(row[side], list) for side in ("chosen", "rejected"))
    )


def _is_hh_transcripts(row: Row) -> bool:
    sides = (row.get("chosen"), row.get("rejected"))
    return row.keys().isdisjoint(CONTEXT) and all(
        isinstance(side, str) and "\n\nAssistant:" in side for side in sides
    )


LAYOUTS = (
    *(Layout(name, has, partial(_is_ranked, name), _ranked) for name, has in RANKINGS.items()),
    Layout(
        "llmbar",
        "input, output_1, output_2, label (1 or 2)",
        fits=lambda row: {"input", "output_1", "output_2", "label"} <= row.keys(),
        read=_llmbar,
        positional=True,
        ceiling=lambda _: Ceiling(0.94, "experts, Zeng et al. 2023"),
    ),
    Layout(
        "pandalm",
        "instruction, input, response1, response2, annotator1, annotator2, annotator3",
        fits=lambda row: {"instruction", "response1", "response2", "annotator1"} <= row.keys(),
        read=_pandalm,
        positional=True,
        ceiling=_pandalm_ceiling,
    ),
    Layout(
        "hhh",
        "input, and targets {choices, labels} or target_scores {text: 1 or 0}",
        fits=lambda row: "input" in row and ("targets" in row or "target_scores" in row),
        read=_hhh,
    ),
    Layout(
        "hh-transcripts",
        'chosen, rejected ("\\n\\nHuman: … \\n\\nAssistant: …")',
        fits=_is_hh_transcripts,
        read=_hh_transcripts,
    ),
    Layout(
        "pairs",
        f"chosen, rejected, and {'|'.join(CONTEXT)} unless both are lists of messages; may have "
        "system, and score_chosen with score_rejected",
        fits=_is_pairs,
        read=_pairs,
    ),
    Layout(
        "arena",
        f"conversation_a, conversation_b, winner ({', '.join(ARENA)})",
        fits=lambda row: {"conversation_a", "conversation_b", "winner"} <= row.keys(),
        read=_arena,
        positional=True,
    ),
    Layout(
        "labelled",
        f"prompt, {'|'.join(FIRST)}, {'|'.join(SECOND)}, {'|'.join(LABEL)}",
        fits=lambda row: (
            "prompt" in row
            and not any(row.keys().isdisjoint(names) for names in (FIRST, SECOND, LABEL))
        ),
        read=_labelled,
        positional=True,
    ),
)
"""In the order in which they are tried."""


# Fields.


def _names(row: Row) -> str:
    return ", ".join(map(repr, row)) or "none"


def _field(row: Row, *names: str) -> Any:
    return row[_given(row, *names)]


def _given(row: Row, *names: str) -> str:
    """Which of these names for one thing the row has. Where it has more, they must say the same."""
    given = [name for name in names if name in row]
    if len(given) > 1 and any(row[name] != row[given[0]] for name in given):
        raise ValueError(f"the fields {given[0]!r} and {given[1]!r} differ; leave one of them out")
    if given:
        return given[0]
    raise ValueError(f"the row has no field {'|'.join(names)!r}, found {_names(row)}")


def _typed(row: Row, field: str, kind: type[Any]) -> Any:
    value = _field(row, field)
    if not isinstance(value, kind):
        raise ValueError(f"{field}: found {shown(value)}, {kind.__name__} was expected")
    return value


def _text(row: Row, field: str) -> str:
    return _checked(_field(row, field), field)


def _checked(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{field}: found {shown(value)}, text was expected")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{field}: holds half a character (a lone surrogate)")
    return value


def _vote(row: Row, field: str, *, tie: bool) -> float:
    value = _field(row, field)
    votes = {1: 1.0, 2: 0.0, **({0: 0.5} if tie else {})}
    if value not in list(votes) or isinstance(value, bool):
        known = "0 (tie), 1 or 2" if tie else "1 or 2"
        raise ValueError(f"{field}: found {shown(value)}, {known} was expected")
    return votes[value]


# Conversations.


def _pair(first: list[Message], second: list[Message], p_gold: float) -> Pair:
    """Of two whole conversations, each of which ends with its response."""
    if first[:-1] != second[:-1]:
        raise NoPair("prompts differ")
    return Pair(first[:-1], first[-1].content, second[-1].content, p_gold)


def context_of(row: Row) -> list[Message]:
    """The prompt of a row, empty where it has none. Raises ValueError."""
    field = next((f for f in CONTEXT if f in row), None)
    if field is None:
        return []
    if isinstance(row[field], list):
        return [_message(m, field) for m in row[field]]
    text = _text(row, field)
    if field == "instruction" and row.get("input"):
        text = f"{text}\n\n{_text(row, 'input')}"
    before = [Message(role="system", content=_text(row, "system"))] if row.get("system") else []
    return [*before, *(_transcript(text) if _is_transcript(text) else _user(text))]


def _side(row: Row, field: str, context: list[Message]) -> list[Message]:
    """The whole conversation of one side, which ends with its response."""
    value = _field(row, field)
    if isinstance(value, str) and row.keys().isdisjoint(CONTEXT):
        raise ValueError(f"the row has no field {'|'.join(CONTEXT)!r}")
    return answered(value, field, context)


def answered(value: Any, field: str, context: list[Message]) -> list[Message]:
    """The conversation that ends with the response `value`: a text, a message or messages, with or
    without the prompt before them. Raises ValueError, and NoPair where that is another prompt."""
    if isinstance(value, str):
        return [*context, Message(role="assistant", content=_checked(value, field))]
    messages = [_message(m, field) for m in (value if isinstance(value, list) else [value])]
    if not messages or messages[-1].role != "assistant":
        raise ValueError(f"{field}: the last message must be the assistant's")
    if messages[0].role == "assistant":
        return [*context, *messages]
    # The list holds the prompt too, as in TRL's implicit form; a prompt beside it must be in it.
    if context and context[-1].content.strip() not in [m.content.strip() for m in messages]:
        raise NoPair("the prompt is not in the conversation")
    return messages


def _message(value: Any, field: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"{field}: found {shown(value)}, a message was expected")
    name, content = ("from", "value") if "from" in value else ("role", "content")
    role = _text(value, name)
    if role not in ROLES:
        raise ValueError(f"{field}: unknown role {shown(role)}; known are {', '.join(ROLES)}")
    return Message(role=ROLES[role], content=_text(value, content))


def _user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def _is_transcript(text: str) -> bool:
    return text.startswith("\n\nHuman:") or (
        text.lstrip().startswith("Human:") and "\n\nAssistant:" in text
    )


def _transcript(text: str) -> list[Message]:
    """Turns of "\\n\\nHuman: … \\n\\nAssistant: …"; an open last Assistant turn is left out, and
    turns of one speaker in a row (HH-RLHF has some) are one."""
    start, *rest = TURN.split("\n\n" + text.lstrip())
    if start.strip() or rest[:1] != ["Human"]:
        raise ValueError(f'a transcript begins with "\\n\\nHuman:", found {shown(text)}')
    turns = list(zip(rest[::2], map(str.strip, rest[1::2]), strict=True))
    if turns[-1] == ("Assistant", ""):
        turns.pop()
    messages: list[Message] = []
    for speaker, said in turns:
        role: Role = "user" if speaker == "Human" else "assistant"
        if messages and messages[-1].role == role:
            said = f"{messages.pop().content}\n\n{said}".strip()
        messages.append(Message(role=role, content=said))
    return messages

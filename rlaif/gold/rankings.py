"""Rankings of several answers as rows of two, each with the number of the row that it comes from.

OpenAssistant's conversation trees and messages (Köpf et al. 2023), and rows of responses beside
their ranks or scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rlaif.errors import SetupError

Rows = list[tuple[int, Any]]
"""Number in the file, from 1, and the row."""
Wrong = Callable[[int, str, str], SetupError]
"""The error at a row: its number, the problem, how to mend it."""
KIND = "rlaif.ranking"
"""The field of an expanded row that names its layout."""
RANKINGS = {
    "oasst-trees": "a message, or one under prompt, with message_id, text, role (prompter or "
    "assistant), replies, and in answers rank (lower is better)",
    "oasst-messages": "message_id, parent_id, text, role (prompter or assistant), and in answers "
    "rank (lower is better)",
    "ranking": "responses (texts, or objects with text or content), their ranks|rankings (one a "
    "response, lower is better) or scores (higher is better), and a prompt",
}
AFTER = "after a message that is left out"
ORDERS = ("ranks", "rankings", "scores")


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


M = TypeVar("M", bound=_Read)


def _whole(text: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("holds half a character (a lone surrogate)")
    return text


def _content(value: Any) -> Any:
    return value.get("text", value.get("content")) if isinstance(value, dict) else value


Text = Annotated[str, AfterValidator(_whole)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Message(_Read):
    message_id: Text
    parent_id: str | None = None
    text: Text
    role: Literal["prompter", "assistant"]
    rank: Number | None = None
    deleted: bool | None = None
    review_result: bool | None = None


class _Tree(_Message):
    replies: list[_Tree] = []


class _Responses(_Read):
    responses: list[Annotated[Text, BeforeValidator(_content)]]
    ranks: list[Number | None] = []
    rankings: list[Number | None] = []
    scores: list[Number | None] = []


class _Node(NamedTuple):
    number: int
    parent: str | None
    said: _Message


class _Answer(NamedTuple):
    number: int
    id: str
    text: str
    rank: float
    """Lower is better."""


def expanded(rows: Rows, wrong: Wrong) -> Rows:
    """A row for each pair of answers to one prompt, with `better`, `worse`, whether they are
    `level`, the fields of the prompt and an `id` (of the better answer, `>`, of the worse; where
    answers have none, the row's number and theirs); and one with the reason in `left_out` for
    whatever gives no pair. The first row says whether they are rankings; other rows come back as
    they are. Raises SetupError."""
    kind = _kind(rows[0][1]) if rows else None
    if kind is None:
        return rows
    if kind == "ranking":
        return [new for number, row in rows for new in _of_responses(number, row, wrong)]
    nodes: list[_Node] = []
    for number, row in rows:
        if kind == "oasst-messages":
            message = _checked(_Message, number, row, kind, wrong)
            nodes.append(_Node(number, message.parent_id, message))
            continue
        root = row["prompt"] if isinstance(row, dict) and "prompt" in row else row
        todo: list[tuple[str | None, _Tree]]
        todo = [(None, _checked(_Tree, number, root, kind, wrong))]
        while todo:
            parent, tree = todo.pop()
            nodes.append(_Node(number, parent, tree))
            todo += [(tree.message_id, reply) for reply in reversed(tree.replies)]
    return list(_of_messages(kind, nodes, wrong))


def _kind(row: Any) -> str | None:
    if not isinstance(row, dict) or "chosen" in row:
        return None
    if "replies" in row or (isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]):
        return "oasst-trees"
    if {"message_id", "text", "role"} <= row.keys():
        return "oasst-messages"
    return "ranking" if "responses" in row and not row.keys().isdisjoint(ORDERS) else None


def _checked(model: type[M], number: int, row: Any, kind: str, wrong: Wrong) -> M:
    try:
        return model.model_validate(row)
    except ValidationError as e:
        first = e.errors()[0]
        field, found = ".".join(map(str, first["loc"])), first["input"]
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] == "model_type":
            problem = "it must be an object with fields"
        if first["type"] != "missing":
            plain = isinstance(found, str | int | float)
            problem += f", found {ascii(found)[:80] if plain else type(found).__name__}"
        problem = f"{field}: {problem}" if field else problem
        raise wrong(number, problem, _fix(kind)) from e


def _fix(kind: str) -> str:
    return f"the first row says layout {kind}: {RANKINGS[kind]}"


def _of_responses(number: int, row: Any, wrong: Wrong) -> Iterator[tuple[int, Any]]:
    kind = "ranking"
    # A table has its other rows' fields as columns without a value.
    row = {k: v for k, v in row.items() if v is not None} if isinstance(row, dict) else row
    read = _checked(_Responses, number, row, kind, wrong)
    given = [name for name in ORDERS if name in row]
    if len(given) != 1:
        problem = f"one of {', '.join(ORDERS)} was expected, found {' and '.join(given) or 'none'}"
        raise wrong(number, problem, _fix(kind))
    order = read.ranks or read.rankings or read.scores
    if len(order) != len(read.responses):
        problem = f"{given[0]}: found {len(order)} for {len(read.responses)} responses"
        raise wrong(number, problem, _fix(kind))
    answers: list[_Answer] = []
    for i, (text, place) in enumerate(zip(read.responses, order, strict=True), 1):
        if not text.strip():
            yield _left_out(kind, number, f"{number}.{i}", "empty")
        elif place is None:
            yield _left_out(kind, number, f"{number}.{i}", "no rank")
        else:
            rank = -place if given[0] == "scores" else place
            answers.append(_Answer(number, f"{number}.{i}", text, rank))
    if not read.responses:
        yield _left_out(kind, number, f"{number}", "no ranked answers")
    yield from _compared(kind, row, answers)


def _of_messages(kind: str, nodes: list[_Node], wrong: Wrong) -> Iterator[tuple[int, Any]]:
    known: dict[str, _Node] = {}
    replies: dict[str | None, list[_Node]] = defaultdict(list)
    for node in nodes:
        if (other := known.setdefault(node.said.message_id, node)) is not node:
            problem = f"message_id: {node.said.message_id!r} is that of row {other.number} as well"
            raise wrong(node.number, problem, "leave one of them out")
        replies[node.parent].append(node)
    reached: set[str] = set()
    for root in nodes:
        if root.parent not in known:
            yield from _of_root(kind, root, replies, reached)
    for node in nodes:
        if node.said.message_id not in reached:
            raise wrong(node.number, "parent_id: leads in a circle", "mend parent_id")


def _of_root(
    kind: str, root: _Node, replies: dict[str | None, list[_Node]], reached: set[str]
) -> Iterator[tuple[int, Any]]:
    why = ""
    if root.parent is not None:
        why = "the message before it is missing"
    elif root.said.role == "assistant":
        why = "an assistant's message at the root"
    silent = True
    todo: list[tuple[_Node, list[dict[str, str]], str]] = [(root, [], why)]
    while todo:
        node, before, lost = todo.pop()
        said, after = node.said, replies[node.said.message_id]
        reached.add(said.message_id)
        inherited = lost == AFTER
        lost = lost or _unfit(said)
        reason = lost or ("no rank" if said.role == "assistant" and said.rank is None else "")
        if reason and not (inherited and said.role == "prompter"):
            silent = False
            yield _left_out(kind, node.number, said.message_id, reason)
        role = "user" if said.role == "prompter" else "assistant"
        here = [*before, {"role": role, "content": said.text}]
        todo += [(reply, here, AFTER if lost else "") for reply in reversed(after)]
        if not lost:
            answers = [
                _Answer(reply.number, reply.said.message_id, reply.said.text, reply.said.rank)
                for reply in after
                if reply.said.role == "assistant"
                and reply.said.rank is not None
                and not _unfit(reply.said)
            ]
            silent = silent and not answers
            yield from _compared(kind, {"prompt": here}, answers)
    if silent:
        yield _left_out(kind, root.number, root.said.message_id, "no ranked answers")


def _unfit(said: _Message) -> str:
    if said.deleted:
        return "deleted"
    if said.review_result is False:
        return "review_result is false"
    return "" if said.text.strip() else "empty"


def _compared(
    kind: str, shared: dict[str, Any], answers: Iterable[_Answer]
) -> Iterator[tuple[int, Any]]:
    ranked = sorted(answers, key=lambda answer: answer.rank)
    if len(ranked) == 1:
        yield _left_out(kind, ranked[0].number, ranked[0].id, "the only ranked answer")
    for better, worse in combinations(ranked, 2):
        ours = {
            KIND: kind,
            "id": f"{better.id}>{worse.id}",
            "left_out": "",
            "better": better.text,
            "worse": worse.text,
            "level": better.rank == worse.rank,
        }
        yield better.number, shared | ours


def _left_out(kind: str, number: int, identity: str, reason: str) -> tuple[int, Any]:
    return number, {KIND: kind, "id": identity, "left_out": reason}

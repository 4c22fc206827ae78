"""A reward model put to work on rows: their scores, and the best of several responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from rlaif.errors import SetupError
from rlaif.evaluate.overoptimization import kl_of_best_of
from rlaif.gold.layouts import NoPair, answered, context_of
from rlaif.judge.design import sampled
from rlaif.progress import progress
from rlaif.rows import Chunk, Row, RowSource, RowWriter, chunked, open_rows, row_writer
from rlaif.train.scale import RewardScale, Score, best
from rlaif.train.settings import ScoringSettings, check_directory, require_torch
from rlaif.types import Message, Prompt

if TYPE_CHECKING:
    from rlaif.train.reward_model import RewardModel

SCORES = pa.list_(pa.float64())


class ScoringConfig(ScoringSettings):
    """How a reward model is asked, and how its columns are named."""

    prefix: str = ""
    """Begins the name of each new column."""


class Item(NamedTuple):
    """What one row asks of the reward model."""

    prompt: list[Message]
    responses: list[str]


class Layout(NamedTuple):
    fields: tuple[str, ...]
    """What a row of it has."""
    columns: dict[str, pa.DataType]
    """What is added."""
    read: Callable[[Row], Item]
    """Raises ValueError and NoPair."""
    values: Callable[[RewardModel, Item, list[Score | None]], list[Any]]
    """A row's values of the added columns, from the scores of its responses."""


def run_score(model: str, rows: str, out: Path | None, config: ScoringConfig) -> list[str]:
    """Writes the rows (see `open_rows`) with the reward model's scores beside them, in their order,
    and returns what to tell.

    A row has `prompt` and `response`; `prompt` and `responses`; `chosen` and `rejected` (texts with
    a `prompt`, or whole conversations); or `messages`, which end with a response. Every row is read
    once before the first is scored. `out`: .jsonl, .parquet or a folder for `datasets`; None:
    beside the rows, in their format. Raises SetupError for a row that is not so, a column that is
    there already and an `out` that exists.
    """
    require_torch()
    source = open_rows(rows)
    layout = _layout(source)
    told = _Told()
    out = out or _beside(rows, "scored")
    _run(model, source, out, config, layout, (), told)
    lines = [f"{told.rows:,} rows, {told.scores:,} scores in {out}"]
    if layout is PAIR and told.pairs:
        share = told.right / told.pairs
        lines.append(f"chosen scores above rejected in {share:.1%} of {told.pairs:,} pairs")
        lines.append(f"p_chosen: {_calibrated_by(told.scale)}")
    return [*lines, *told.left_out()]


def _calibrated_by(scale: RewardScale | None) -> str:
    if scale is None or scale.temperature is None:
        return "sigmoid of the raw difference; no temperature calibrates it"
    of = "an unknown number of" if scale.pairs is None else f"{scale.pairs:,}"
    return f"temperature {scale.temperature:.3g}, of {of} held-out pairs"


def run_best_of_n(
    model: str, rows: str, out: Path | None, n: int | None, config: ScoringConfig
) -> list[str]:
    """Writes, for each row with `prompt` and `responses`, the response that the reward model likes
    best, and returns what to tell. `rows` may also be a run's folder.

    Columns: `response`, its place among the responses (`response_index`, from 0), its `score`, how
    many it was chosen from (`n`; None: all, else the first `n`, less what is too long), and `kl`:
    the nats from the policy that drew them (see `kl_of_best_of`). `responses` is left out. Raises
    SetupError as `run_score` does, and for an `n` that no row has.
    """
    require_torch()
    source = _run_source(Path(rows)) if _is_run(Path(rows)) else open_rows(rows)
    first = next((row for chunk in source.chunks() for row in chunk.rows), {})
    if first and "responses" not in first:
        raise source.wrong(1, f"has no field 'responses', found {', '.join(map(repr, first))}")
    told = _Told()
    out = out or (
        Path(rows) / "best-of-n.jsonl" if _is_run(Path(rows)) else _beside(rows, "best-of-n")
    )
    _run(model, source, out, config, _best_of(n), ("responses",), told, n)
    lines = [f"{told.rows:,} rows in {out}"]
    sizes = sorted(told.sizes)
    if sizes[-1]:
        nats = f"at most {kl_of_best_of(sizes[-1]):.3f} nats from the policy that drew them"
        lines.append(
            f"best of {' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))}: {nats}"
        )
    return [*lines, *told.left_out()]


class _Told:
    """What is counted on the way."""

    def __init__(self) -> None:
        self.rows = self.scores = self.too_long = self.pairs = self.right = 0
        self.max_length = 0
        self.scale: RewardScale | None = None
        self.sizes: Counter[int] = Counter()
        """Rows by how many of their responses have a score."""

    def count(self, layout: Layout, scores_K: Sequence[Score | None]) -> None:
        """One row."""
        known = [score.score for score in scores_K if score is not None]
        self.rows += 1
        self.scores += len(known)
        self.too_long += len(scores_K) - len(known)
        self.sizes[len(known)] += 1
        if layout is PAIR and len(known) == 2:
            self.pairs += 1
            self.right += known[0] > known[1]

    def left_out(self) -> list[str]:
        """What has no score."""
        if not self.too_long:
            return []
        return [f"{self.too_long:,} responses exceed {self.max_length:,} tokens and have no score"]


def _run(
    model: str,
    source: RowSource,
    out: Path,
    config: ScoringConfig,
    layout: Layout,
    dropped: Sequence[str],
    told: _Told,
    n: int | None = None,
) -> None:
    check_directory(model)
    added = {config.prefix + name: kind for name, kind in layout.columns.items()}
    writer = row_writer(out, source, added, dropped)
    total, most = _checked(source, layout, writer)
    if n is not None and 0 < most < n:
        raise SetupError(
            f"found {n}, and no row of {source.name} has more than {most} responses",
            field="--n",
            fix=f"write {most}, or leave it out",
        )
    # torch is imported when all rows are known to be good.
    from rlaif.train.reward_model import RewardModel

    rewards = RewardModel.load(
        model,
        how=config.how,
        penalty=config.penalty,
        max_length=config.max_length,
        dtype=config.dtype,
    )
    told.max_length, told.scale = rewards.max_length, rewards.scale
    with progress("scoring", total, "rows") as advance, writer.opened() as write:
        for chunk in source.chunks():
            items = [_item(source, layout, *numbered) for numbered in chunk.numbered()]
            values = []
            for item, scores_K in zip(items, _scored(rewards, source, chunk, items), strict=True):
                values.append(layout.values(rewards, item, scores_K))
                told.count(layout, scores_K)
                advance(told.rows)
            write(chunk, dict(zip(added, zip(*values, strict=True), strict=True)))


def _checked(source: RowSource, layout: Layout, writer: RowWriter) -> tuple[int, int]:
    """Reads every row; how many there are, and the most responses that one of them has."""
    rows = most = 0
    for chunk in source.chunks():
        for number, row in chunk.numbered():
            most = max(most, len(_item(source, layout, number, row).responses))
            for name in writer.added:
                if name in row and name not in writer.dropped:
                    raise source.wrong(
                        number, "is there already", name, "drop that column, or give a --prefix"
                    )
        writer.see(chunk)
        rows += len(chunk.rows)
    if not rows:
        raise SetupError("has no rows", file=source.name, fix="give some rows to score")
    writer.all_seen()
    return rows, most


def _scored(
    rewards: RewardModel, source: RowSource, chunk: Chunk, items: Sequence[Item]
) -> Iterator[list[Score | None]]:
    number = chunk.first

    def asked() -> Iterator[tuple[Prompt, list[str]]]:
        nonlocal number
        for number, item in enumerate(items, chunk.first):  # noqa: B007
            yield Prompt(id="", messages=tuple(item.prompt)), item.responses

    try:
        yield from rewards.score_many(asked())
    except SetupError as e:
        if e.file is not None:
            raise
        # What the chat template refuses is a mistake in a row.
        raise source.wrong(number, e.problem, fix=e.fix) from e


# Layouts.


def _layout(source: RowSource) -> Layout:
    """The layout of the first row. Raises SetupError where it is none."""
    first = next((row for chunk in source.chunks() for row in chunk.rows), None)
    if first is None:
        raise SetupError("has no rows", file=source.name, fix="give some rows to score")
    for layout in (PAIR, SEVERAL, ONE, WHOLE):
        if first.keys() >= set(layout.fields):
            return layout
    raise source.wrong(
        1,
        f"unknown layout: the row has the fields {', '.join(map(repr, first)) or 'none'}",
        fix="a row has prompt and response, prompt and responses, chosen and rejected, or messages",
    )


def _item(source: RowSource, layout: Layout, number: int, row: Row) -> Item:
    try:
        return layout.read(row)
    except (ValueError, NoPair) as e:
        raise source.wrong(number, str(e)) from e


def _ending_with(values: Sequence[Any], field: str, context: list[Message]) -> Item:
    """The prompt that these responses have in common."""
    wholes = [answered(value, field, context) for value in values]
    prompt = wholes[0][:-1] if wholes else context
    if any(whole[:-1] != prompt for whole in wholes):
        raise ValueError(f"{field}: the prompts differ")
    if not prompt:
        raise ValueError(f"{field}: there is no prompt before the response")
    if prompt[-1].role != "user":
        raise ValueError("the prompt must end with the user's turn")
    return Item(prompt, [whole[-1].content for whole in wholes])


def _value(row: Row, field: str) -> Any:
    if row.get(field) is None:
        raise ValueError(f"{field}: the row has none")
    return row[field]


def _read_pair(row: Row) -> Item:
    context = context_of(row)
    sides = [_ending_with([_value(row, name)], name, context) for name in PAIR.fields]
    if sides[0].prompt != sides[1].prompt:
        raise ValueError("chosen and rejected answer different prompts")
    return Item(sides[0].prompt, [side.responses[0] for side in sides])


def _read_several(row: Row) -> Item:
    responses = _value(row, "responses")
    if not isinstance(responses, list):
        raise ValueError("responses: a list was expected")
    return _ending_with(responses, "responses", context_of(row))


def _score(score: Score | None) -> float | None:
    return None if score is None else score.score


def _raw(score: Score | None) -> list[float] | None:
    return None if score is None else list(score.raw_M)


def _values_of_pair(rewards: RewardModel, _: Item, scores_K: list[Score | None]) -> list[Any]:
    chosen, rejected = scores_K
    p = None if chosen is None or rejected is None else rewards.p_preferred(chosen, rejected)
    return [_score(chosen), _score(rejected), p, _raw(chosen), _raw(rejected)]


PAIR = Layout(
    ("chosen", "rejected"),
    {
        "score_chosen": pa.float64(),
        "score_rejected": pa.float64(),
        "p_chosen": pa.float64(),
        "raw_chosen": SCORES,
        "raw_rejected": SCORES,
    },
    read=_read_pair,
    values=_values_of_pair,
)
SEVERAL = Layout(
    ("prompt", "responses"),
    {"scores": SCORES, "raw": pa.list_(SCORES)},
    read=_read_several,
    values=lambda _, item, scores_K: [[_score(s) for s in scores_K], [_raw(s) for s in scores_K]],
)
ONE = Layout(
    ("prompt", "response"),
    {"score": pa.float64(), "raw": SCORES},
    read=lambda row: _ending_with([_value(row, "response")], "response", context_of(row)),
    values=lambda _, item, scores_K: [_score(scores_K[0]), _raw(scores_K[0])],
)
WHOLE = ONE._replace(
    fields=("messages",),
    read=lambda row: _ending_with([_value(row, "messages")], "messages", []),
)


def _best_of(n: int | None) -> Layout:
    def read(row: Row) -> Item:
        item = _read_several(row)
        return item._replace(responses=item.responses[:n])

    return Layout(
        ("prompt", "responses"),
        {
            "response": pa.string(),
            "response_index": pa.int64(),
            "score": pa.float64(),
            "n": pa.int64(),
            "kl": pa.float64(),
        },
        read=read,
        values=_values_of_best,
    )


def _values_of_best(_: RewardModel, item: Item, scores_K: list[Score | None]) -> list[Any]:
    chosen = best(scores_K).chosen
    if chosen is None:
        return [None, None, None, 0, None]
    n = sum(score is not None for score in scores_K)
    return [item.responses[chosen], chosen, _score(scores_K[chosen]), n, kl_of_best_of(n)]


# Places.


def _is_run(path: Path) -> bool:
    return (path / "responses.jsonl").is_file() and (path / "prompts.jsonl").is_file()


def _run_source(run: Path) -> RowSource:
    """A run's prompts with what its policy answered, a row a prompt."""
    prompts, responses = run / "prompts.jsonl", run / "responses.jsonl"

    def rows() -> Iterator[Row]:
        for prompt, answers in sampled(prompts, responses, unanswered=True):
            yield {
                "prompt_id": prompt.id,
                "prompt": [m.model_dump() for m in prompt.messages],
                "responses": [response.text for response in answers],
            }

    return RowSource(str(responses), False, lambda: chunked(rows()))


def _beside(rows: str, what: str) -> Path:
    """Where the result goes when nobody says: beside a file or a folder, or where we are."""
    if rows.startswith("hub:"):
        return Path(f"{rows.rpartition('/')[2].replace('.', '-').replace('@', '-')}-{what}")
    path = Path(rows)
    if path.suffix in (".jsonl", ".parquet"):
        return path.with_name(f"{path.stem}-{what}{path.suffix}")
    return path.with_name(f"{path.name.replace('.', '-').replace('@', '-')}-{what}")

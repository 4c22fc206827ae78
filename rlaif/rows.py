"""Rows of a file or a dataset, read and written a chunk at a time: any number needs little memory.

What is added stands in new columns beside the rows as they were.
"""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlaif.errors import SetupError
from rlaif.files import absent, disk_errors, line_writer, sweep_of, whole, whole_folder
from rlaif.gold.sources import folder_and_split, hub_address, open_dataset, shown

CHUNK = 256
ROW_GROUP_BYTES = 2**25
"""Parquet is written in row groups of about this size."""
EXACT = 2**53
"""Beyond it, up and down, a float64 does not hold every integer."""

Row = dict[str, Any]
Columns = Mapping[str, Sequence[Any]]
Place = tuple[str, ...]
"""A column, and the fields within it."""


class Chunk(NamedTuple):
    """Some rows that follow one another."""

    first: int
    """Number of the first one, from 1."""
    rows: list[Row]
    table: pa.Table | None
    """The same rows in the types that they have; None where these are JSON's."""

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """The rows with their numbers."""
        return enumerate(self.rows, self.first)


Write = Callable[[Chunk, Columns], None]


class RowSource(NamedTuple):
    """Rows that can be read more than once."""

    name: str
    by_line: bool
    """Whether the numbers of the rows are lines of a file."""
    chunks: Callable[[], Iterator[Chunk]]

    def wrong(self, number: int, problem: str, field: str = "", fix: str = "") -> SetupError:
        """A mistake in a row."""
        at = "" if self.by_line else f"row {number}"
        return SetupError(
            problem,
            file=self.name,
            line=number if self.by_line else None,
            field=": ".join(filter(None, (at, field))),
            fix=fix or "mend the row",
        )


def open_rows(name: str) -> RowSource:
    """What `name` means: FILE.jsonl, FILE.parquet, a folder that `datasets` reads or hub:ORG/NAME,
    each of the latter two with @SPLIT where it has several. Raises SetupError."""
    if name.startswith("hub:"):
        address, config, split = hub_address(name)
        return _dataset(name, address, config, split)
    path, split = folder_and_split(name)
    if path.is_dir():
        return _dataset(name, path, None, split)
    if not path.is_file():
        raise SetupError(
            "is not there",
            file=name,
            fix="give a .jsonl or .parquet file, a dataset's folder or hub:ORG/NAME",
        )
    if path.suffix == ".jsonl":
        return RowSource(name, True, lambda: _json_chunks(path))
    if path.suffix == ".parquet":
        return RowSource(name, False, lambda: _parquet_chunks(path))
    raise SetupError("is of no known kind", file=name, fix="give one in .jsonl or .parquet")


def chunked(rows: Iterable[Row]) -> Iterator[Chunk]:
    """Rows that come one by one."""
    rest = iter(rows)
    first = 1
    while some := list(islice(rest, CHUNK)):
        yield Chunk(first, some, None)
        first += len(some)


def _json_chunks(path: Path) -> Iterator[Chunk]:
    try:
        with path.open(encoding="utf-8") as lines:
            yield from chunked(_json_row(line, path, i) for i, line in enumerate(lines, 1))
    except UnicodeDecodeError as e:
        raise SetupError("is not UTF-8 text", file=path, fix="save it as UTF-8 JSONL") from e


def _json_row(line: str, path: Path, number: int) -> Row:
    def wrong(problem: str, fix: str = "one JSON object a line") -> SetupError:
        return SetupError(problem, file=path, line=number, fix=fix)

    def no_number(name: str) -> Any:
        raise wrong(f"not valid JSON: {name} is no number of it", "write null")

    if not line.strip():
        raise wrong("the row is empty", "delete the line")
    try:
        row = json.loads(line, parse_constant=no_number)
    except json.JSONDecodeError as e:
        raise wrong(f"not valid JSON: {e.msg}, column {e.colno}") from e
    except ValueError as e:
        # Python reads no integer of more than some thousand digits.
        raise wrong("an integer has too many digits", "write it as text") from e
    except RecursionError as e:
        raise wrong("is nested too deeply") from e
    if not isinstance(row, dict):
        raise wrong(f"a row must be an object with fields, found {shown(row)}")
    return row


def _parquet_chunks(path: Path) -> Iterator[Chunk]:
    try:
        with pq.ParquetFile(path) as file:
            yield from _numbered(str(path), map(_table, file.iter_batches(batch_size=CHUNK)))
    except (pa.ArrowException, OSError) as e:
        raise SetupError(f"not a Parquet file: {e}", file=path, fix="save it again") from e


def _table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def _numbered(name: str, tables: Iterator[pa.Table]) -> Iterator[Chunk]:
    first = 1
    for table in tables:
        yield Chunk(first, _table_rows(name, first, table), table)
        first += table.num_rows


def _table_rows(name: str, first: int, table: pa.Table) -> list[Row]:
    columns: dict[str, list[Any]] = {}
    for field, column in zip(table.column_names, table.columns, strict=True):
        if field in columns:
            raise SetupError(
                "two columns have this name", file=name, field=field, fix="rename one of them"
            )
        try:
            columns[field] = column.to_pylist()
        except (pa.ArrowException, OverflowError, ValueError) as e:
            raise SetupError(
                f"rows {first} to {first + table.num_rows - 1}: a value cannot be read: {e}",
                file=name,
                field=field,
                fix="mend it, or drop the column",
            ) from e
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _dataset(name: str, place: str | Path, config: str | None, split: str) -> RowSource:
    def only(splits: Sequence[str]) -> str:
        if len(splits) != 1:
            raise SetupError(
                f"has the splits {', '.join(splits)}",
                file=name,
                fix=f"name one: {name}@{splits[0]}",
            )
        return splits[0]

    shown = name.removesuffix(f"@{split}") if split else name
    found, _ = open_dataset(place, config, split, shown, only)
    tables = found.with_format("arrow")
    return RowSource(name, False, lambda: _numbered(name, tables.iter(CHUNK)))


class RowWriter(ABC):
    """Where rows go. Every chunk is shown to it first, and then, in a second pass, written."""

    def __init__(
        self,
        out: Path,
        source: RowSource,
        added: Mapping[str, pa.DataType],
        dropped: Sequence[str],
    ) -> None:
        self.out = out
        self.source = source
        self.added = added
        self.dropped = dropped

    @abstractmethod
    def see(self, chunk: Chunk) -> None:
        """Learns the rows' types. Raises SetupError for what cannot be written."""

    def all_seen(self) -> None:
        """No chunk is left to see. Raises SetupError for what they make together and cannot be
        written."""
        return

    @abstractmethod
    @contextmanager
    def opened(self) -> Iterator[Write]:
        """Takes the chunks with the values of the added columns. The file is there, whole, when the
        block has ended without an error; else nothing is. Raises SetupError where `out` has come to
        be there meanwhile."""


def row_writer(
    out: Path, source: RowSource, added: Mapping[str, pa.DataType], dropped: Sequence[str] = ()
) -> RowWriter:
    """A writer of the rows without the columns `dropped` and with those `added`: of JSONL, Parquet
    or, for a name without a suffix, a folder that `datasets.load_from_disk` reads. Raises
    SetupError where `out` is there already."""
    absent(out)
    sweep_of(out)
    if out.suffix == ".jsonl":
        return _JsonWriter(out, source, added, dropped)
    if out.suffix == ".parquet":
        return _ParquetWriter(out, source, added, dropped)
    if not out.suffix:
        return _FolderWriter(out, source, added, dropped)
    raise SetupError(
        "is of no known kind",
        file=out,
        fix="end it in .jsonl or .parquet; without a suffix it becomes a dataset's folder",
    )


class _JsonWriter(RowWriter):
    def see(self, chunk: Chunk) -> None:
        for number, row in chunk.numbered():
            for name, value in row.items():
                try:
                    _line({name: value}).encode()
                except (TypeError, ValueError, RecursionError) as e:
                    raise self.source.wrong(
                        number,
                        f"JSON has no such value ({e})",
                        name.encode(errors="backslashreplace").decode(),
                        "mend the row, or name an --out that ends in .parquet",
                    ) from e

    @contextmanager
    def opened(self) -> Iterator[Write]:
        with line_writer(self.out) as write:

            def add(chunk: Chunk, values: Columns) -> None:
                for i, row in enumerate(chunk.rows):
                    kept = {k: v for k, v in row.items() if k not in self.dropped}
                    write(_line(kept | {name: column[i] for name, column in values.items()}))

            yield add
            absent(self.out)


class _TableWriter(RowWriter):
    def __init__(
        self,
        out: Path,
        source: RowSource,
        added: Mapping[str, pa.DataType],
        dropped: Sequence[str],
    ) -> None:
        super().__init__(out, source, added, dropped)
        self._seen = pa.schema([])
        self._large: dict[Place, Chunk] = {}
        """Where integers beyond EXACT stand, with the first chunk that has them."""

    def see(self, chunk: Chunk) -> None:
        if chunk.table is not None:
            self._seen = chunk.table.schema
            return
        name = ""
        try:
            for name in dict.fromkeys(name for row in chunk.rows for name in row):
                values = _values(chunk, name)
                new = pa.schema([(name, values.type)])
                self._seen = pa.unify_schemas([self._seen, new], promote_options="permissive")
                for place, part in _parts(values, (name,)):
                    if pa.types.is_integer(part.type) and _beyond(part):
                        self._large.setdefault(place, chunk)
        except (pa.ArrowException, OverflowError, UnicodeError) as e:
            raise self._no_type(
                name, f"{_lines(chunk)} or some before them give it no one type: {e}"
            ) from e

    def all_seen(self) -> None:
        schema = self._schema()
        for field in schema:
            try:
                # Some types of Arrow's are none of Parquet's.
                pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
            except pa.ArrowException as e:
                raise self._no_type(field.name, f"Parquet has no such type: {e}") from e
        for place, chunk in self._large.items():
            if place[0] in self.dropped:
                continue
            column = pa.array([], schema.field(place[0]).type)
            if pa.types.is_floating(dict(_parts(column, place[:1]))[place].type):
                raise self._no_type(
                    ".".join(place),
                    f"{_lines(chunk)} have an integer that a float does not hold, and other rows "
                    "have a float there",
                )

    def _no_type(self, field: str, problem: str) -> SetupError:
        fix = "mend the rows, or name an --out that ends in .jsonl"
        return SetupError(problem, file=self.source.name, field=field, fix=fix)

    def _schema(self) -> pa.Schema:
        kept = pa.schema([f for f in self._seen if f.name not in self.dropped], self._seen.metadata)
        added = pa.schema(list(self.added.items()))
        # Of what `datasets` keeps in the metadata, it goes by the columns that are there.
        return pa.schema([*kept, *added], kept.metadata)

    @contextmanager
    def _to_parquet(self, path: Path) -> Iterator[Write]:
        schema = self._schema()
        held: list[pa.Table] = []
        with disk_errors(self.out):
            file = pq.ParquetWriter(path, schema)

        def flush() -> None:
            if held:
                with disk_errors(self.out), self._refused():
                    file.write_table(pa.concat_tables(held).combine_chunks())
                held.clear()

        def add(chunk: Chunk, values: Columns) -> None:
            with self._refused():
                columns = [
                    pa.array(values[field.name], field.type)
                    if field.name in self.added
                    else _values(chunk, field.name, field.type)
                    for field in schema
                ]
                held.append(pa.table(columns, schema))
            if sum(table.nbytes for table in held) >= ROW_GROUP_BYTES:
                flush()

        try:
            yield add
            flush()
        finally:
            # It writes the footer, and what the file system held back.
            with disk_errors(self.out):
                file.close()

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Says in one line what Arrow does not take."""
        try:
            yield
        except pa.ArrowException as e:
            raise SetupError(
                f"its rows cannot be written to {self.out}: {e}",
                file=self.source.name,
                fix="name an --out that ends in .jsonl",
            ) from e


class _ParquetWriter(_TableWriter):
    @contextmanager
    def opened(self) -> Iterator[Write]:
        with whole(self.out) as unfinished:
            with self._to_parquet(unfinished) as add:
                yield add
            absent(self.out)


class _FolderWriter(_TableWriter):
    @contextmanager
    def opened(self) -> Iterator[Write]:
        import datasets

        with (
            whole_folder(self.out) as new,
            tempfile.TemporaryDirectory(dir=new.parent) as scratch,
        ):
            table = Path(scratch) / "rows.parquet"
            with self._to_parquet(table) as add:
                yield add
            shown = not datasets.are_progress_bars_disabled()
            datasets.disable_progress_bars()
            rows = datasets.Dataset.from_parquet(str(table), cache_dir=scratch)
            rows.save_to_disk(str(new))
            if shown:
                datasets.enable_progress_bars()
            absent(self.out)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _values(chunk: Chunk, name: str, kind: pa.DataType | None = None) -> pa.Array:
    """A column of a chunk, whose rows may lack it."""
    if chunk.table is not None:
        return chunk.table[name]
    return pa.array([row.get(name) for row in chunk.rows], kind)


def _parts(values: pa.Array, place: Place) -> Iterator[tuple[Place, pa.Array]]:
    """The values, and those within them, down to what holds no others."""
    if pa.types.is_struct(values.type):
        for i, field in enumerate(values.type):
            yield from _parts(values.field(i), (*place, field.name))
    elif pa.types.is_list(values.type):
        yield from _parts(values.values, (*place, "[]"))
    else:
        yield place, values


def _beyond(integers: pa.Array) -> bool:
    ends = pc.min_max(integers).as_py()
    return ends["min"] is not None and (ends["min"] < -EXACT or ends["max"] > EXACT)


def _lines(chunk: Chunk) -> str:
    return f"lines {chunk.first} to {chunk.first + len(chunk.rows) - 1}"

"""Looking into a store, and mending it: a million rows need no more memory than one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from rlaif.callstore import SCHEMA_VERSION, CallStore, call_key
from rlaif.callstore.journal import Batch, Journal
from rlaif.errors import SetupError, StoreError
from rlaif.files import absent, disk_errors, whole
from rlaif.types import ChatReply, ChatRequest

NAME = "calls.sqlite"
CHUNK = 1000
COLUMNS = "key, request, reply, seconds, created"


class Damaged(StoreError):
    """The file is there and can be opened, and is not what it was."""


class Row(NamedTuple):
    """One answered call as it stands in the file."""

    key: str
    request: str
    reply: str
    seconds: float
    created: str

    @property
    def fault(self) -> str:
        """What is wrong with it; empty if nothing is."""
        try:
            request = ChatRequest.model_validate_json(self.request)
            ChatReply.model_validate_json(self.reply)
        except ValidationError:
            return "cannot be read"
        return "" if call_key(request) == self.key else "is not what its key says"


@dataclass
class Verified:
    """What a look at every row has found."""

    rows: int = 0
    """Sound ones."""
    faults: dict[str, str] = field(default_factory=dict)
    """Key -> what is wrong."""
    damage: list[str] = field(default_factory=list)
    """What SQLite says of the file; empty if it is sound."""

    @property
    def sound(self) -> bool:
        return not self.faults and not self.damage


@dataclass
class Usage:
    """What one model was asked, by all that is stored."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    usd: float | None = 0.0
    """In US dollars; None: the price is not known."""
    first: str = ""
    last: str = ""


def store_of(place: Path) -> Path:
    """The store in a run's folder, or the file itself. Raises SetupError."""
    path = place / NAME if place.is_dir() else place
    if not path.is_file():
        raise SetupError("holds no call store", file=place, fix=f"name a run or its {NAME}")
    return path


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, opened to be read while others may write. Raises StoreError."""
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=60)
    except sqlite3.Error as e:
        raise _unreadable(path, e) from e
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"was written by another version of rlaif (format {version})", file=path
            )
        yield db
    except sqlite3.Error as e:
        raise _unreadable(path, e) from e
    finally:
        db.close()


def rows(path: Path) -> Iterator[Row]:
    """Every row, by key."""
    with reading(path) as db:
        for row in db.execute(f"SELECT {COLUMNS} FROM calls ORDER BY key"):
            yield Row(*row)


def row_of(path: Path, key: str) -> Row | None:
    """One row."""
    with reading(path) as db:
        found = db.execute(f"SELECT {COLUMNS} FROM calls WHERE key = ?", (key,)).fetchone()
    return Row(*found) if found else None


def verify(path: Path) -> Verified:
    """Checks the file's structure, and each row: does its request give its key, can its reply be
    read. Raises StoreError for what is no damage: another version, a file that cannot be opened."""
    found = Verified()
    try:
        with reading(path) as db:
            said = [line for (line,) in db.execute("PRAGMA integrity_check")]
        found.damage = [] if said == ["ok"] else said
        for row in rows(path):
            if row.fault:
                found.faults[row.key] = row.fault
            else:
                found.rows += 1
    except Damaged as e:
        found.damage.append(e.problem)
    return found


class Repaired(NamedTuple):
    """What a repair has saved."""

    rows: int
    old: Path
    """Where the damaged file is now."""
    batches: bool
    """Whether the batches that are on their way are known still."""


def repair(path: Path) -> Repaired:
    """Puts every sound row that can still be read into a new file in its place; the old one stays
    beside it."""
    new = path.with_name(path.name + ".repaired")
    new.unlink(missing_ok=True)
    with CallStore(new) as store:
        saved = store.copy(row for row in _salvaged(path) if not row.fault)
    batches = _keep_batches(path, new)
    kept = path.with_name(path.name + ".damaged")
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.damaged{number}")
    path.replace(kept)
    for suffix in ("-wal", "-shm"):
        side = path.with_name(path.name + suffix)
        if side.exists():
            side.replace(kept.with_name(kept.name + suffix))
    new.replace(path)
    return Repaired(saved, kept, batches)


def _keep_batches(path: Path, new: Path) -> bool:
    """Batches that are on their way must not be forgotten: they would be paid for again. False
    where they could not be read."""
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        batches = db.execute("SELECT token, id, model, created, keys FROM batches").fetchall()
    except sqlite3.OperationalError as e:
        return "no such table" in str(e)
    except sqlite3.DatabaseError:
        return False
    finally:
        db.close()
    journal = Journal(new)
    for token, batch, model, created, keys in batches:
        journal.intend(Batch(token, batch, model, created, tuple(json.loads(keys))))
    journal.close()
    return True


def _salvaged(path: Path) -> Iterator[Row]:
    """Rows by ever later keys; where a page cannot be read, the search goes on behind it."""
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        # From both ends of every 256th part of the keys: damage in one hides no other.
        for start in (f"{i:02x}" for i in range(256)):
            end = f"{int(start, 16) + 1:02x}" if start != "ff" else "g"
            seen = set()
            for order in ("ASC", "DESC"):
                try:
                    for row in db.execute(
                        f"SELECT {COLUMNS} FROM calls WHERE key >= ? AND key < ?"
                        f" ORDER BY key {order}",
                        (start, end),
                    ):
                        if row[0] not in seen:
                            seen.add(row[0])
                            yield Row(*row)
                    break
                except sqlite3.Error:
                    continue
    except sqlite3.Error:
        return
    finally:
        db.close()


def stats(path: Path, usd: Callable[[str, ChatReply], float | None]) -> dict[str, Usage]:
    """Model -> what it was asked. `usd`: what a model's reply costs; None: not known."""
    found: dict[str, Usage] = {}
    for row in rows(path):
        model = json.loads(row.request)["model"]
        reply = ChatReply.model_validate_json(row.reply)
        usage = found.setdefault(model, Usage(first=row.created))
        usage.calls += 1
        usage.prompt_tokens += reply.prompt_tokens
        usage.cached_tokens += reply.cached_tokens
        usage.completion_tokens += reply.completion_tokens
        usage.seconds += row.seconds
        cost = usd(model, reply)
        usage.usd = None if cost is None or usage.usd is None else usage.usd + cost
        usage.first = min(usage.first, row.created)
        usage.last = max(usage.last, row.created)
    return dict(sorted(found.items()))


def count(path: Path) -> int:
    """How many calls are stored. Raises StoreError."""
    with reading(path) as db:
        found: int = db.execute("SELECT count(*) FROM calls").fetchone()[0]
    return found


def export(path: Path, to: Path) -> int:
    """Writes every row into a JSONL or Parquet file; returns how many."""
    if to.suffix not in (".jsonl", ".parquet"):
        raise SetupError("is of no known kind", file=to, fix="end it in .jsonl or .parquet")
    absent(to)
    with whole(to) as part, disk_errors(to):
        return _as_jsonl(path, part) if to.suffix == ".jsonl" else _as_parquet(path, part)


def _as_jsonl(path: Path, to: Path) -> int:
    count = 0
    with to.open("w", encoding="utf-8") as f:
        for row in rows(path):
            plain = row._asdict() | {
                "request": json.loads(row.request),
                "reply": json.loads(row.reply),
            }
            f.write(json.dumps(plain, ensure_ascii=False) + "\n")
            count += 1
    return count


def _as_parquet(path: Path, to: Path) -> int:
    schema = pa.schema(
        [(name, pa.float64() if name == "seconds" else pa.string()) for name in Row._fields]
    )
    count = 0
    with pq.ParquetWriter(to, schema) as writer:
        for chunk in _chunks(rows(path)):
            writer.write_table(pa.Table.from_pylist([r._asdict() for r in chunk], schema))
            count += len(chunk)
    return count


def _chunks(found: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in found:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def unused(path: Path, named: Set[str], model: str | None, before: str | None) -> list[str]:
    """Keys of the rows that nothing names; of one model, from before a date (YYYY-MM-DD)."""
    return [
        row.key
        for row in rows(path)
        if row.key not in named
        and (model is None or json.loads(row.request)["model"] == model)
        and (before is None or row.created < before)
    ]


def prune(path: Path, keys: Iterable[str]) -> None:
    """Deletes rows and gives their space back. Raises StoreError."""
    try:
        db = sqlite3.connect(path, timeout=60)
        with db:
            db.executemany("DELETE FROM calls WHERE key = ?", ((key,) for key in keys))
        db.execute("VACUUM")
        db.close()
    except sqlite3.Error as e:
        raise _unreadable(path, e) from e


def size_mb(path: Path) -> float:
    """Of the file and what SQLite keeps beside it."""
    files = [path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))]
    return sum(f.stat().st_size for f in files if f.exists()) / 2**20


def _unreadable(path: Path, error: sqlite3.Error) -> StoreError:
    # SQLite's "malformed" and "not a database" have no class of their own; what is locked, absent
    # or may not be read is an OperationalError.
    if type(error) is not sqlite3.DatabaseError:
        return StoreError(f"the call store cannot be read: {error}", file=path)
    return Damaged(
        f"the call store cannot be read: {error}",
        file=path,
        fix="rlaif store verify --repair saves what it still holds",
    )

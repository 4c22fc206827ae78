"""Every answered call, kept: content-addressed, committed before anything uses it."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pydantic import ValidationError

from rlaif.errors import StoreError
from rlaif.files import canonical
from rlaif.types import ChatReply, ChatRequest

SCHEMA_VERSION = 1


def call_key(request: ChatRequest) -> str:
    """sha256 (hex) of the request's canonical JSON."""
    return hashlib.sha256(request_json(request).encode()).hexdigest()


def request_json(request: ChatRequest) -> str:
    """A request as it stands in the store, and as it is hashed."""
    plain = request.model_dump(mode="json")
    # What is newer than a store leaves the keys of its calls as they were.
    if not request.menu:
        del plain["menu"]
    if not request.sampling.token_ids:
        del plain["sampling"]["token_ids"]
    return canonical(plain)


class StoredCall(NamedTuple):
    """An answered call."""

    request: ChatRequest
    reply: ChatReply
    seconds: float
    """From the question to the answer."""
    answered: float
    """When the answer was stored, in seconds since 1970."""


def _reply_json(reply: ChatReply) -> str:
    # What is as ever is left out: most replies have no cache, no batch, no alternatives.
    return canonical(reply.model_dump(mode="json", exclude_defaults=True))


class CallStore:
    """A SQLite file (WAL). Only replies are stored: a failed call is asked again next time.

    `synchronous=NORMAL`: a commit survives a kill of the process at any moment; after a power cut
    the last commits may be missing, never torn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
        except (sqlite3.Error, OSError) as e:
            raise self._unusable(e) from e
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise StoreError(
                    f"was written by another version of rlaif (format {version})",
                    file=path,
                    fix="use that version, or another --out",
                )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, request TEXT NOT NULL,"
                " reply TEXT NOT NULL, seconds REAL NOT NULL, created TEXT NOT NULL"
                " DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ'))) WITHOUT ROWID"
            )
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.Error as e:
            self._db.close()
            raise self._unusable(e) from e
        except StoreError:
            self._db.close()
            raise

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(
            f"the call store cannot be used: {error}",
            file=self.path,
            fix="check that the disk has space and the file is ours; rlaif store verify --repair "
            "saves what a damaged one still holds",
        )

    def get(self, key: str) -> ChatReply | None:
        """The stored reply, or None if this call was never answered. Raises StoreError."""
        try:
            row = self._db.execute("SELECT reply FROM calls WHERE key = ?", (key,)).fetchone()
            return ChatReply.model_validate_json(row[0]) if row else None
        except (sqlite3.Error, ValidationError) as e:
            raise self._unusable(e) from e

    def put(self, request: ChatRequest, reply: ChatReply, seconds: float) -> None:
        """Commits a reply; returns when it is in the file. Raises StoreError (disk full, …)."""
        self.put_many([(call_key(request), request, reply, seconds)])

    def put_many(self, rows: Sequence[tuple[str, ChatRequest, ChatReply, float]]) -> None:
        """Commits replies together, each with its key and the seconds that it took. Raises
        StoreError; then none of them is in the file."""
        values = [
            (key, request_json(request), _reply_json(reply), seconds)
            for key, request, reply, seconds in rows
        ]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT OR IGNORE INTO calls (key, request, reply, seconds) VALUES (?, ?, ?, ?)",
                values,
            )
            self._db.execute("COMMIT")
        except BaseException as e:
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            if not isinstance(e, sqlite3.Error):
                raise
            raise StoreError(
                f"an answered call could not be stored: {e}",
                file=self.path,
                fix="free some disk space and run the same command again; nothing stored is lost",
            ) from e

    def copy(self, rows: Iterable[tuple[str, str, str, float, str]]) -> int:
        """Takes over rows of another store, in one commit: key, request, reply, seconds, created.
        Returns how many."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            raise self._unusable(e) from e
        return len(self)

    def of_model(self, identity: str, most: int) -> list[StoredCall]:
        """Up to `most` calls of one model, in the order of their keys: the same ones in the same
        order, however they came in. Raises StoreError."""
        try:
            rows = self._db.execute(
                "SELECT request, reply, seconds, (julianday(created) - 2440587.5) * 86400.0 FROM"
                " calls WHERE json_extract(request, '$.model') = ? ORDER BY key LIMIT ?",
                (identity, most),
            ).fetchall()
            return [
                StoredCall(
                    ChatRequest.model_validate_json(request),
                    ChatReply.model_validate_json(reply),
                    seconds,
                    answered,
                )
                for request, reply, seconds, answered in rows
            ]
        except (sqlite3.Error, ValidationError) as e:
            raise self._unusable(e) from e

    def has_all(self, keys: Sequence[str]) -> bool:
        """Whether all of these calls are stored. Raises StoreError."""
        try:
            return all(
                self._db.execute("SELECT 1 FROM calls WHERE key = ?", (key,)).fetchone()
                for key in keys
            )
        except sqlite3.Error as e:
            raise self._unusable(e) from e

    def __len__(self) -> int:
        count: int = self._db.execute("SELECT count(*) FROM calls").fetchone()[0]
        return count

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

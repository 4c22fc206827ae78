"""Batches that are on their way: written beside the calls, so that no kill forgets one."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.errors import StoreError


class Batch(NamedTuple):
    """Calls that were submitted together, or were about to be."""

    token: str
    """Made here, before anything was sent."""
    id: str
    """The provider's; empty until it is known."""
    model: str
    """Identity of the model."""
    created: float
    """When it was about to be sent, in seconds since 1970."""
    keys: tuple[str, ...]


class Journal:
    """A table in the store's file, written by a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS batches (token TEXT PRIMARY KEY, id TEXT NOT NULL,"
                " model TEXT NOT NULL, created REAL NOT NULL, keys TEXT NOT NULL)"
            )
        except sqlite3.Error as e:
            raise StoreError(f"the call store cannot be used: {e}", file=path) from e

    def intend(self, batch: Batch) -> None:
        """Before it is sent. Raises StoreError."""
        self._write(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?)", (*batch[:4], json.dumps(batch.keys))
        )

    def submitted(self, token: str, batch: str) -> None:
        """The provider has it. Raises StoreError."""
        if self._write("UPDATE batches SET id = ? WHERE token = ?", (batch, token)) != 1:
            raise StoreError(f"batch {batch} was never written down", file=self._path)

    def forget(self, token: str) -> None:
        """All that it answered is stored, or it was never sent. Raises StoreError."""
        self._write("DELETE FROM batches WHERE token = ?", (token,))

    def open(self, model: str) -> list[Batch]:
        """Those of one model, the oldest first. Raises StoreError."""
        rows = self._read(
            "SELECT token, id, model, created, keys FROM batches WHERE model = ? ORDER BY created",
            (model,),
        )
        return [
            Batch(token, batch, identity, created, tuple(json.loads(keys)))
            for token, batch, identity, created, keys in rows
        ]

    def ids(self) -> set[str]:
        """The provider's ids of all. Raises StoreError."""
        return {i for (i,) in self._read("SELECT id FROM batches WHERE id != ''", ())}

    def close(self) -> None:
        self._db.close()

    def _read(self, statement: str, values: tuple[object, ...]) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as e:
            raise StoreError(
                f"the batches on their way cannot be read: {e}",
                file=self._path,
                fix="rlaif store verify --repair saves what the store still holds",
            ) from e

    def _write(self, statement: str, values: tuple[object, ...]) -> int:
        """How many rows it changed."""
        try:
            return self._db.execute(statement, values).rowcount
        except sqlite3.Error as e:
            raise StoreError(f"a batch could not be written down: {e}", file=self._path) from e

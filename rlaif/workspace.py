"""A run's folder: where each stage finds what came before and leaves what it made."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlaif.callstore import CallStore
from rlaif.files import canonical, digest, write_text
from rlaif.models.client import Bill
from rlaif.models.pool import ModelPool, Provider
from rlaif.progress import say

STAMP = "stamp.json"


class Workspace:
    """One run's folder, call store and models: made by the recipe, given to every stage."""

    def __init__(self, directory: Path, seed: int, providers: Mapping[str, Provider]) -> None:
        self.directory = directory
        self.seed = seed
        self.store = CallStore(directory / "calls.sqlite")
        self.pool = ModelPool(self.store, directory / "logs", providers)
        self.responses = directory / "responses.jsonl"
        self.judgments = directory / "judgments.jsonl"
        self.comparisons = directory / "comparisons.jsonl"
        self.groups = directory / "groups.jsonl"
        self.preferences = directory / "preferences"
        self.reward_model = directory / "reward_model"
        self.policy = directory / "dpo"
        self.compare = directory / "compare"

    @asynccontextmanager
    async def stage(self, name: str) -> AsyncIterator[Bill]:
        """Counts what a stage costs, and keeps the count when it ends well."""
        say(f"{name} …")
        bill = Bill()
        start = time.monotonic()
        yield bill
        seconds = round(time.monotonic() - start, 3)
        costs = self.part("cost") or {}
        self.save_part("cost", {**costs, name: {**asdict(bill), "seconds": seconds}})

    def part(self, name: str) -> dict[str, Any] | None:
        """A part of the report that a stage has saved; None before."""
        path = self.directory / "parts" / f"{name}.json"
        if not path.is_file():
            return None
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value

    def save_part(self, name: str, value: BaseModel | Mapping[str, Any]) -> None:
        """Keeps a part of the report."""
        plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        write_text(self.directory / "parts" / f"{name}.json", canonical(plain) + "\n")

    def is_made(self, made: Path, inputs: Any) -> bool:
        """Whether the folder `made` was finished from exactly these inputs."""
        stamp = made / STAMP
        return stamp.is_file() and stamp.read_text(encoding="utf-8") == digest(inputs)

    def mark_made(self, made: Path, inputs: Any) -> None:
        """Says that the folder is finished: the last thing that a stage writes into it."""
        write_text(made / STAMP, digest(inputs))

    async def close(self) -> None:
        """Stops the servers and closes the store."""
        await self.pool.close_servers()
        self.store.close()

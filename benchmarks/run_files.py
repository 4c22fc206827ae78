"""The files and the stored calls of a run, read and compared from outside."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counting_server import call_of

from rlaif.types import ChatRequest

STORE = ("calls.sqlite", "calls.sqlite-wal", "calls.sqlite-shm")
FIGURES = ("parts/", "report.json")
"""Files that tell of times and of what was stored already, beside figures."""
PAGE = "report.html"
OF_ONE_TIME = ("seconds", "asking_s", "usd", "created", "at")
"""Fields that tell of when, for how long and for how much: a run that goes on spends less."""
Stored = dict[str, tuple[str, str]]
"""Key of a call -> its request and reply, as they stand in the store."""


def stored(run: Path) -> Stored:
    """The calls in a run's store, read from a copy: whoever comes next finds what the kill left."""
    with tempfile.TemporaryDirectory() as folder:
        for name in STORE[:2]:
            if (run / name).exists():
                shutil.copyfile(run / name, Path(folder) / name)
        with contextlib.closing(sqlite3.connect(Path(folder) / STORE[0])) as db:
            # Killed early, it may not have a table yet.
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'calls'").fetchall():
                return {}
            rows = db.execute("SELECT key, request, reply FROM calls").fetchall()
    return {key: (request, reply) for key, request, reply in rows}


def told(rows: Stored) -> Counter[tuple[str, str]]:
    """Stored calls as the server tells them: (model's name there, call)."""
    requests = [ChatRequest.model_validate_json(request) for request, _ in rows.values()]
    return Counter((r.model.removeprefix("served/"), call_of(r)) for r in requests)


def files(run: Path) -> dict[str, bytes]:
    """Every file of a run, but for the store and the servers' logs."""
    return {
        name: path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file()
        and (name := str(path.relative_to(run))) not in STORE
        and not name.startswith("logs/")
    }


def figures(value: Any) -> Any:
    """A part of the report without its times; calls made and calls from the store are one."""
    if isinstance(value, list):
        return [figures(v) for v in value]
    if not isinstance(value, dict):
        return value
    kept = {k: figures(v) for k, v in value.items() if k not in OF_ONE_TIME}
    if "calls_made" in kept:
        kept["calls"] = kept.pop("calls_made") + kept.pop("calls_from_store")
    return kept


def torn(run: Path, whole: Mapping[str, bytes]) -> list[str]:
    """What is wrong with the files that a kill left: each must be there whole, or not at all."""
    wrong = []
    for name, data in files(run).items():
        hidden = any(step.startswith(".") for step in Path(name).parts)
        if name == PAGE:
            right = data.rstrip().endswith(b"</html>")
        elif name.startswith(FIGURES) and not hidden:
            with contextlib.suppress(ValueError):
                json.loads(data)
                continue
            right = False
        else:
            right = hidden or data == whole.get(name)
        if not right:
            wrong.append(f"{name} is not what an undisturbed run writes")
    return wrong


def differences(run: Path, other: Path) -> list[str]:
    """What two finished runs differ in: names and bytes of files, figures, stored calls."""
    ours, theirs = files(run), files(other)
    wrong = [f"{name} is in one of the runs only" for name in sorted(set(ours) ^ set(theirs))]
    for name in sorted(set(ours) & set(theirs)):
        one, two = ours[name], theirs[name]
        if name.startswith(FIGURES):
            same = figures(json.loads(one)) == figures(json.loads(two))
        else:
            same = name == PAGE or one == two
        if not same:
            wrong.append(f"{name} differs")
    if stored(run) != stored(other):
        wrong.append("the stored calls differ")
    return wrong

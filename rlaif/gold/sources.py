"""Rows, from a file, from a folder that `datasets` reads, or from the Hugging Face hub."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif.errors import SetupError
from rlaif.files import find
from rlaif.gold.rankings import Rows as Rows
from rlaif.gold.rankings import expanded

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
SAVED = ("state.json", "dataset_dict.json")
"""Either lies in a folder that `save_to_disk` wrote."""


class Source(NamedTuple):
    name: str
    path: str
    sha256: str
    """These three as in `GoldSet`."""
    rows: Rows
    by_line: bool
    """Whether the numbers are lines of the file."""

    def wrong(self, number: int, problem: str, fix: str) -> SetupError:
        return SetupError(
            problem,
            file=self.path,
            line=number if self.by_line else None,
            field="" if self.by_line else f"row {number}",
            fix=fix,
        )


def read_source(name: str) -> Source:
    """What `name` means (see `load_gold`), rankings as rows of two answers. Raises SetupError if it
    is not there or not readable."""
    source = _hub(name) if name.startswith("hub:") else _local(name)
    return source._replace(rows=expanded(source.rows, source.wrong))


def check_there(name: str, field: str) -> None:
    """Raises SetupError at the config's `field` where `name` means a file or a folder and there is
    none. Nothing is read, and no hub is asked."""
    if name.startswith("hub:") or folder_and_split(name)[1]:
        return
    try:
        _place(name)
    except SetupError as e:
        raise SetupError(e.problem, fix=e.fix, field=field) from e


def shown(value: Any) -> str:
    """What was found, short enough for a message."""
    if value is None or isinstance(value, str | int | float | bool):
        return repr(value)[:80]
    return type(value).__name__


def _local(name: str) -> Source:
    path, split = folder_and_split(name)
    if split:
        return _datasets(path, None, split, name.rpartition("@")[0])
    path = _place(name)
    if path.is_dir():
        return _datasets(path, None, "", name)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise SetupError(f"cannot be read: {e.strerror}", file=name, fix="give a file") from e
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
    if suffix is None:
        raise SetupError(
            "is of no known kind", file=name, fix=f"give one that ends in {', '.join(SUFFIXES)}"
        )
    if suffix == ".parquet":
        rows, by_line = _parquet_rows(name, data), False
    else:
        rows, by_line = _json_rows(name, _text_of(name, data, suffix), lines=".jsonl" in suffix)
    sha256 = hashlib.sha256(data).hexdigest()
    return Source(path.name.removesuffix(suffix), name, sha256, rows, by_line)


def folder_and_split(name: str) -> tuple[Path, str]:
    """What FOLDER@SPLIT names; without a folder of that name the whole is a path."""
    folder, _, split = name.rpartition("@")
    if folder and (path := _existing(folder)) and path.is_dir() and not _existing(name):
        return path, split
    return Path(name), ""


def _existing(name: str) -> Path | None:
    # `~nobody/x` and a name too long for the disk raise; they are no file either.
    with contextlib.suppress(OSError, RuntimeError):
        path = Path(name).expanduser()
        return path if path.exists() else None
    return None


def _place(name: str) -> Path:
    """The file or folder. A bare name is one of ours before it is a folder that lies about."""
    path = _existing(name)
    if path and ("/" in name or name.endswith(SUFFIXES)):
        return path
    try:
        return find("prompts/gold", name, ".jsonl")
    except SetupError:
        if path:
            return path
        raise


def _parquet_rows(name: str, data: bytes) -> Rows:
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError) as e:
        raise SetupError(f"not a Parquet file: {e}", file=name, fix="save it again") from e
    return list(enumerate(table.to_pylist(), 1))


def _text_of(name: str, data: bytes, suffix: str) -> str:
    try:
        raw = gzip.decompress(data) if suffix.endswith(".gz") else data
    except (EOFError, OSError, zlib.error) as e:
        raise SetupError(
            f"not a whole gzip file: {e}", file=name, fix="fetch or pack it again"
        ) from e
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise SetupError("is not UTF-8 text", file=name, fix="save it as UTF-8") from e


def _json_rows(name: str, text: str, *, lines: bool) -> tuple[Rows, bool]:
    """Rows with their numbers, and whether these are lines. Many a `.json` holds JSON lines."""

    def broken(e: json.JSONDecodeError, line: int, fix: str) -> SetupError:
        problem = f"not valid JSON: {e.msg}, column {e.colno}"
        return SetupError(problem, file=name, line=line, fix=fix)

    if not text.strip():
        return [], lines
    if not lines:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as e:
            if e.msg != "Extra data":
                fix = "a .json file holds a list of rows, or one JSON object a line"
                raise broken(e, e.lineno, fix) from e
        else:
            if isinstance(value, dict):
                value = value.get("examples", [value])
            if not isinstance(value, list):
                raise SetupError(
                    f"found {shown(value)}", file=name, fix="a .json file holds a list of rows"
                )
            return list(enumerate(value, 1)), False
    rows = []
    for number, line in enumerate(text.rstrip().split("\n"), 1):
        if not line.strip():
            raise SetupError("the row is empty", file=name, line=number, fix="delete the line")
        try:
            rows.append((number, json.loads(line)))
        except json.JSONDecodeError as e:
            raise broken(e, number, "one JSON object a line") from e
    return rows, True


def _hub(name: str) -> Source:
    address, config, split = hub_address(name)
    return _datasets(address, config, split, _told(address, config))


def hub_address(name: str) -> tuple[str, str | None, str]:
    """ORG/NAME, the config and the split of hub:ORG/NAME/CONFIG@SPLIT. Raises SetupError."""
    address, _, split = name.removeprefix("hub:").partition("@")
    owner, _, rest = address.partition("/")
    dataset, _, config = rest.partition("/")
    if not owner or not dataset:
        raise SetupError(
            "names no dataset", file=name, fix="write hub:ORG/NAME, hub:ORG/NAME@SPLIT"
        )
    return f"{owner}/{dataset}", config or None, split


def _told(address: str, config: str | None) -> str:
    return f"hub:{address}" + (f"/{config}" if config else "")


def open_dataset(
    place: str | Path,
    config: str | None,
    split: str,
    shown: str,
    default: Callable[[Sequence[str]], str],
) -> tuple[Any, str]:
    """A `datasets.Dataset`, whose rows stay on the disk, and its split: of a folder (a Path) or of
    a dataset on the hub (a str). `default` chooses where no split is named. Raises SetupError."""
    # Slow to import, and needed for these sets alone.
    import datasets

    try:
        if isinstance(place, Path) and any((place / f).is_file() for f in SAVED):
            saved = datasets.load_from_disk(str(place))
            splits = saved if isinstance(saved, datasets.DatasetDict) else {"": saved}
            split = split or default(list(splits))
            if split not in splits:
                raise ValueError(f"no split {split!r}, it has {', '.join(splits) or 'none'}")
            return splits[split], split
        split = split or default(datasets.get_dataset_split_names(str(place), config))
        return datasets.load_dataset(str(place), config, split=split), split
    except SetupError:
        raise
    except Exception as e:
        # The loader raises whatever its parts raise: no network, no such name, a broken file.
        raise SetupError(
            f"`datasets` cannot read it: {type(e).__name__}: {str(e)[:300]}",
            file=f"{shown}@{split}" if split else shown,
            fix="check the name, the network and the split (…@SPLIT); "
            "a hub dataset with configs is named hub:ORG/NAME/CONFIG",
        ) from e


def _datasets(place: str | Path, config: str | None, split: str, shown: str) -> Source:
    found, split = open_dataset(place, config, split, shown, _default_split)
    rows = found.to_list()
    sha256 = hashlib.sha256()
    for row in rows:
        sha256.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    at = f"@{split}" if split else ""
    short = "-".join(filter(None, (Path(place).resolve().name, config)))
    return Source(short + at, shown + at, sha256.hexdigest(), list(enumerate(rows, 1)), False)


def _default_split(names: Sequence[str]) -> str:
    return "test" if "test" in names else names[0]

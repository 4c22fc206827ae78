"""Finding, hashing and writing files: what every floor above needs of a disk."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from rlaif.errors import SetupError

PACKAGE = Path(__file__).resolve().parent
Kind = Literal["constitutions", "prompts", "prompts/sets", "prompts/gold", "recipes", "launch"]
M = TypeVar("M", bound=BaseModel)
UNFINISHED = ".unfinished"
"""How a file's or folder's name ends until it is whole and takes its own."""
UNUSABLE = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
)


def packaged(kind: Kind) -> Path:
    """Folder of our own files of that kind: in the wheel, or beside the package in a checkout."""
    if kind in ("recipes", "launch"):
        return PACKAGE / kind
    installed = PACKAGE / "data" / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def find(kind: Kind, name: str, suffix: str) -> Path:
    """The file that `name` means: a path, then the working directory's folder, then our own copy.

    Raises SetupError that lists the known names.
    """
    file_name = name if name.endswith(suffix) else name + suffix
    candidates = [
        # A bare name is never a path: a file called `critique` lying about is not the template.
        *([Path(name)] if "/" in name or name.endswith(suffix) else []),
        Path(file_name),
        Path(kind) / file_name,
        packaged(kind) / file_name,
    ]
    for candidate in candidates:
        # `~nobody/x` and a name too long for the disk raise; they are no file either.
        with contextlib.suppress(OSError, RuntimeError):
            if (path := candidate.expanduser()).is_file():
                return path
    known = [p.name.removesuffix(suffix) for p in sorted(packaged(kind).glob("[!_]*" + suffix))]
    near = difflib.get_close_matches(name, known, n=1)
    raise SetupError(
        f"{name!r} is neither a file nor one of ours",
        fix=(f"did you mean {near[0]!r}? " if near else "")
        + f"give a path, or one of: {', '.join(known)}",
        field=kind,
    )


def canonical(value: Any) -> str:
    """JSON with one spelling for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Turns a full disk, or a limit on a file's size, into one clear line that names `path`."""
    try:
        yield
    except OSError as e:
        if e.errno == errno.EFBIG:
            raise SetupError(
                "a file that it needs is larger than this process may write",
                file=path,
                fix="raise the limit (`ulimit -f`) and run the same command again",
            ) from e
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SetupError(
            "no disk space left", file=path, fix="free some space and run the same command again"
        ) from e


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """As `full_disk`, and the same for a place where nothing can be written: for a block that
    touches `path` alone."""
    try:
        with full_disk(path):
            yield
    except OSError as e:
        if e.errno not in UNUSABLE:
            raise
        raise SetupError(
            f"cannot be used: {e.strerror}", file=path, fix="choose another --out"
        ) from e


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or leaves the old one: a kill never leaves half."""
    write_bytes(path, text.encode())


def write_new(path: Path, text: str) -> None:
    """As `write_text`, for a file that is the user's: one that is there is never replaced."""
    absent(path)
    write_text(path, text)


def absent(path: Path) -> None:
    """Raises SetupError where there is such a file."""
    if path.exists():
        raise SetupError("is there already", file=path, fix="choose another name, or move it away")


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`, for bytes."""
    with whole(path) as unfinished, disk_errors(path):
        unfinished.write_bytes(data)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """An empty file to write to, which takes the place of `path` when the block has ended without
    an error; else the old one is left. What the block writes is for it to wrap in `disk_errors`."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    unfinished = Path(name)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield unfinished
        with disk_errors(path):
            unfinished.chmod(0o644)
            unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def sweep(directory: Path) -> None:
    """Removes what processes that were killed have left unfinished. Only for who holds the
    directory: another one's file would be torn from its hands."""
    for path in [*directory.rglob(f".*{UNFINISHED}")]:
        _remove(path)


def sweep_of(path: Path) -> None:
    """As `sweep`, of one file or folder, in a directory that nobody holds: who is still writing it
    holds a lock."""
    for left in [*path.parent.glob(f".{glob.escape(path.name)}.*{UNFINISHED}")]:
        try:
            handle = os.open(left, os.O_RDONLY)
        except FileNotFoundError:
            # Whoever wrote it has finished meanwhile.
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(left)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> None:
    """One record a line, in the order given."""
    write_text(path, jsonl(records))


def jsonl(records: Iterable[BaseModel]) -> str:
    """What `write_jsonl` writes."""
    return "".join(canonical(r.model_dump(mode="json")) + "\n" for r in records)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write to, which takes the place of `path` when the block has ended without
    an error; else the old one is left."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        )
        handle = os.open(temporary, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            new = temporary / "new"
            new.mkdir()
            yield new
            if path.exists():
                path.rename(temporary / "old")
            new.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(handle)


@contextlib.contextmanager
def jsonl_writer(
    path: Path, replacing: Callable[[Path], None] | None = None
) -> Iterator[Callable[[BaseModel], None]]:
    """Takes the records of a file one by one. The file is there, whole, when the block has ended
    without an error; else the old one is left. `replacing` is called with the whole new file
    before it takes the old one's place."""
    with line_writer(path, replacing) as write:
        yield lambda record: write(canonical(record.model_dump(mode="json")))


@contextlib.contextmanager
def line_writer(
    path: Path, replacing: Callable[[Path], None] | None = None
) -> Iterator[Callable[[str], None]]:
    """As `jsonl_writer`, for lines without their ends."""
    with whole(path) as unfinished:
        with disk_errors(path):
            file = unfinished.open("w", encoding="utf-8", newline="\n")

        def write(line: str) -> None:
            with disk_errors(path):
                file.write(line + "\n")

        try:
            yield write
            with disk_errors(path):
                file.close()
            if replacing is not None:
                replacing(unfinished)
        finally:
            # A second close after one that failed says nothing new.
            with contextlib.suppress(OSError):
                file.close()


def read_jsonl(path: Path, model: type[M]) -> list[M]:
    """Records that `write_jsonl` wrote. Raises SetupError with the line of the first bad row."""
    return list(each_jsonl(path, model))


def each_jsonl(path: Path, model: type[M]) -> Iterator[M]:
    """As `read_jsonl`, one by one."""
    if not path.is_file():
        raise SetupError(
            "is not there", file=path, fix="run the stage that writes it first, with the same --out"
        )
    with path.open(encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                record = model.model_validate_json(line)
            except ValidationError as e:
                first = e.errors()[0]
                raise SetupError(
                    first["msg"],
                    file=path,
                    line=number,
                    field=".".join(map(str, first["loc"])),
                    fix="the file was changed by hand or cut; delete it and run its stage again",
                ) from e
            yield record


def need_space(directory: Path, megabytes: int) -> None:
    """Raises SetupError before a long task when the disk cannot hold what it will write."""
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory).free // 2**20
    if free < megabytes:
        raise SetupError(
            f"{free} MB free on this disk, the run needs about {megabytes} MB",
            file=directory,
            fix="free some space or choose another --out",
        )

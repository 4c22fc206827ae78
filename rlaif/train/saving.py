"""Writing a directory whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from rlaif.errors import SetupError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def check_target(out: Path) -> None:
    """Raises SetupError unless `out` may become a model directory.

    An existing one is replaced only if it is empty or a model, so that a slip in a path cannot
    delete somebody's folder.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise SetupError("is a file, not a directory", file=out, fix="name another directory")
    if any(out.iterdir()) and not (out / "config.json").is_file():
        raise SetupError(
            "holds files that are no model, and is left alone", file=out, fix="name another one"
        )


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Gives a temporary directory beside `out` that takes its place when the block ends well.

    An error in the block leaves what was there. Raises SetupError if the disk is full or read-only
    or `out` is somebody else's (see `check_target`).
    """
    check_target(out)
    with _disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            new = temporary / "new"
            new.mkdir()
            yield new
            if out.exists():
                out.rename(temporary / "old")
            new.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in _NO_SPACE:
            raise _full(out) from e
        if e.errno in _NOT_ALLOWED:
            raise SetupError(
                f"cannot be written: {e.strerror}", file=out, fix="name another directory"
            ) from e
        raise
    except SafetensorError as e:
        if "No space left" in str(e):
            raise _full(out) from e
        raise


def _full(out: Path) -> SetupError:
    return SetupError(
        "no disk space left", file=out, fix="free some space and run the same command again"
    )

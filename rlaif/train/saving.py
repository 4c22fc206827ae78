"""Writing a directory whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from rlaif.errors import SetupError
from rlaif.files import whole_folder


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
    with whole_folder(out) as new, _with_number():
        yield new


@contextlib.contextmanager
def _with_number() -> Iterator[None]:
    """safetensors and tokenizers are Rust, and have errors of their own for a full disk, with its
    number in their text alone."""
    try:
        yield
    except OSError:
        raise
    except Exception as e:
        found = re.search(r"\(os error (\d+)\)", str(e))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from e

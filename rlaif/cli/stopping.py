"""Ctrl-C in a long task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def stoppable() -> Iterator[None]:
    """Ends a task that is stopped by hand with one line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        # Caught here because typer would end in silence.
        typer.echo(
            "rlaif: stopped; every answer so far is stored, the same command goes on", err=True
        )
        raise typer.Exit(130) from None

"""Ctrl-C in a long task."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rlaif.errors import AskingStopped
from rlaif.interrupts import terminate, unswallowed
from rlaif.progress import say


@contextmanager
def stoppable(
    left: str = "every answer so far is stored, this goes on",
) -> Iterator[None]:
    """Ends a task that is stopped, by hand or by SIGTERM (exit code 130) or by a budget, with what
    is left and the command that goes on."""
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with unswallowed():
            yield
    except AskingStopped as e:
        say(f"rlaif: {e}: {command()}", "stopped")
        raise typer.Exit(e.exit_code) from None
    except KeyboardInterrupt:
        # Caught here because typer would end in silence.
        told = f"rlaif: stopped; {left}: {command()}"
        say(told, "stopped")
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def command() -> str:
    """The command line that was given."""
    return shlex.join(["rlaif", *sys.argv[1:]])

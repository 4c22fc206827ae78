"""`rlaif calls`: the prompts and answers behind what a run says. No logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calls(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    comparison: Annotated[
        str | None, typer.Option(metavar="ID", help="All that was asked for one label.")
    ] = None,
    response: Annotated[
        str | None, typer.Option(metavar="ID", help="The call that gave a response.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="One call, by its key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a call.")] = False,
) -> None:
    """Print the exact prompt and answer behind a label or a response."""
    from rlaif.evaluate import calls as found

    for text in found.told(run, comparison, response, key, as_json=as_json):
        typer.echo(text)

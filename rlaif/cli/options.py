"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MaxUsd = Annotated[
    float | None,
    typer.Option(
        min=0, help="Stop asking when so many US dollars are spent (in this run of the command)."
    ),
]
MaxCalls = Annotated[
    int | None,
    typer.Option(min=1, help="Stop asking after so many calls (in this run of the command)."),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option(min=0, help="Stop asking after so many minutes (in this run of the command)."),
]
PriceFile = Annotated[
    Path | None,
    typer.Option("--prices", help="Your prices, over ours; RLAIF_PRICES if left out."),
]

"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MaxUsd = Annotated[
    float | None, typer.Option(min=0, help="Stop asking when so many US dollars are spent.")
]
MaxCalls = Annotated[int | None, typer.Option(min=1, help="Stop asking after so many calls.")]
MaxMinutes = Annotated[float | None, typer.Option(min=0, help="Stop asking after so many minutes.")]
PriceFile = Annotated[
    Path | None,
    typer.Option("--prices", help="Your prices, over ours; RLAIF_PRICES if left out."),
]

"""`rlaif score` and `rlaif best-of-n`: arguments to functions. No logic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlaif.cli.stopping import stoppable

if TYPE_CHECKING:
    from rlaif.stages.scoring import ScoringConfig

Model = Annotated[
    str, typer.Argument(metavar="RM", help="A reward model's folder, or its name on the hub.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="A .jsonl or .parquet file, or a folder for `datasets`; beside FILE if left out."
    ),
]
How = Annotated[str, typer.Option(help="Of an ensemble: mean, worst or uncertain.")]
Penalty = Annotated[
    float, typer.Option(help="With --how uncertain: the mean less so many times the variance.")
]
MaxLength = Annotated[
    int | None,
    typer.Option(help="Most tokens of prompt and response; a longer response has no score."),
]
Dtype = Annotated[str, typer.Option(help="Of the forward pass: float32 or bfloat16.")]
Prefix = Annotated[str, typer.Option(help="Begins the names of the new columns.")]

LEFT = "nothing is written, this starts again"


def score(
    model: Model,
    rows: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help=".jsonl, .parquet, a dataset's folder or hub:ORG/NAME (@SPLIT)."
        ),
    ],
    out: Out = None,
    how: How = "mean",
    penalty: Penalty = 1.0,
    max_length: MaxLength = None,
    dtype: Dtype = "float32",
    prefix: Prefix = "",
) -> None:
    """Add a reward model's scores to rows of prompt and response, prompt and responses, chosen and
    rejected, or messages."""
    from rlaif.stages.scoring import run_score

    config = _config(how, penalty, max_length, dtype, prefix)
    with stoppable(LEFT):
        _tell(run_score(model, rows, out, config))


def best_of_n(
    model: Model,
    rows: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Rows of prompt and responses, as `rlaif score` takes them, or a run's folder.",
        ),
    ],
    n: Annotated[int | None, typer.Option(min=1, help="Choose among the first n.")] = None,
    out: Out = None,
    how: How = "mean",
    penalty: Penalty = 1.0,
    max_length: MaxLength = None,
    dtype: Dtype = "float32",
    prefix: Prefix = "",
) -> None:
    """Keep the response that a reward model likes best, with its score, n and KL."""
    from rlaif.stages.scoring import run_best_of_n

    config = _config(how, penalty, max_length, dtype, prefix)
    with stoppable(LEFT):
        _tell(run_best_of_n(model, rows, out, n, config))


def _config(
    how: str, penalty: float, max_length: int | None, dtype: str, prefix: str
) -> ScoringConfig:
    from rlaif.config import COMMAND_LINE
    from rlaif.stages.scoring import ScoringConfig
    from rlaif.yamlfile import validate

    given: dict[str, Any] = {
        "how": how,
        "penalty": penalty,
        "max_length": max_length,
        "dtype": dtype,
        "prefix": prefix,
    }
    return validate(ScoringConfig, given, None, COMMAND_LINE)


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        typer.echo(line)

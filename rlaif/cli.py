"""The command line: arguments to stages, errors to exit codes. No logic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from rlaif import __version__
from rlaif.errors import RlaifError
from rlaif.stages import ORDER

Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="A recipe's name (see `rlaif recipes`) or a YAML file; left out, the run in --out.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FIELD=VALUE]...", help="Changes to the recipe's fields."),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run directory; outputs/<recipe> if left out.")
]
Reconfigure = Annotated[
    bool,
    typer.Option("--reconfigure", help="Use a run directory that was made with another config."),
]


class FieldsInHelp(typer.core.TyperCommand):
    """A command whose --help ends with the recipe's fields and what they mean."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from rlaif.config import describe
        from rlaif.recipe import RunConfig

        typer.echo("\nFields of a recipe, with their defaults:\n")
        for name, default, text in describe(RunConfig):
            typer.echo(f"  {name} = {default}\n      {text}")


app = typer.Typer(
    name="rlaif",
    help="From a constitution file to a preference dataset, a reward model, a DPO policy and a "
    "report that compares them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(cls=FieldsInHelp)
def run(
    recipe: Recipe = None,
    overrides: Overrides = None,
    out: Out = None,
    reconfigure: Reconfigure = False,
) -> None:
    """Run a recipe from the prompts to the report. Running it again asks nothing twice."""
    _execute(tuple(ORDER), recipe, overrides, out, reconfigure)


@app.command()
def recipes() -> None:
    """List the recipes that come with rlaif."""
    from rlaif import recipe

    for name, description in recipe.recipes().items():
        typer.echo(f"{name:12} {description}")


def _add_stage(name: str, does: str) -> None:
    def stage(
        recipe: Recipe = None,
        overrides: Overrides = None,
        out: Out = None,
        reconfigure: Reconfigure = False,
    ) -> None:
        _execute((name,), recipe, overrides, out, reconfigure)

    app.command(name, help=does, cls=FieldsInHelp)(stage)


for _name, _does in ORDER.items():
    _add_stage(_name, _does)


def _execute(
    stages: tuple[str, ...],
    name: str | None,
    overrides: list[str] | None,
    out: Path | None,
    reconfigure: bool,
) -> None:
    from rlaif import recipe

    changes = list(overrides or [])
    if name is not None and "=" in name:
        changes.insert(0, name)
        name = None
    config, directory = recipe.load_run(name, changes, out)
    try:
        report = recipe.execute(config, directory, stages, reconfigure=reconfigure)
    except KeyboardInterrupt:
        # Caught here because typer would end in silence.
        typer.echo(
            "rlaif: stopped; every answer so far is stored, the same command goes on", err=True
        )
        raise typer.Exit(130) from None
    for sentence in recipe.summary(directory):
        typer.echo(sentence)
    typer.echo(f"report: {report}")


def main() -> None:
    """Entry point: exit code 2 for a wrong setup, 3 for too many failed calls, 130 for Ctrl-C."""
    try:
        app()
    except RlaifError as e:
        typer.echo(f"rlaif: {e}", err=True)
        sys.exit(e.exit_code)


if __name__ == "__main__":
    main()

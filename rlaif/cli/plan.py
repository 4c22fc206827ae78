"""`rlaif plan`: what a run, a study or tables would take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlaif.cli.options import MaxCalls, MaxMinutes, MaxUsd, PriceFile
from rlaif.cli.stopping import stoppable


def register(app: typer.Typer) -> None:
    """Adds the command to the app."""
    app.command("plan")(plan)


def plan(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="A recipe's name or a YAML file; left out, the run in --out.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Changes to the recipe's fields."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run directory; outputs/<recipe> if left out.")
    ] = None,
    pilot: Annotated[
        int | None,
        typer.Option(
            "--pilot",
            min=1,
            help="Of a run: ask about the first so many prompts for real, and plan by that. Costs "
            "what they cost; the answers are kept and the run uses them.",
        ),
    ] = None,
    max_usd: MaxUsd = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
    prices: PriceFile = None,
    batch: Annotated[
        bool,
        typer.Option("--batch", help="Plan as if judge.batch and policy.batch were {}."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """What a recipe would take: calls, tokens, money, time and disk, before anything is asked. The
    limits are those of the pilot."""
    from rlaif.errors import SetupError
    from rlaif.models.gate import Gate
    from rlaif.models.prices import Prices
    from rlaif.plan.estimate import Config, estimate
    from rlaif.plan.history import beside
    from rlaif.plan.pilot import run_pilot
    from rlaif.plan.table import lines, plain
    from rlaif.recipe import kind_of, load_as, load_run

    changes = list(overrides or [])
    if recipe is not None and "=" in recipe:
        changes.insert(0, recipe)
        recipe = None
    known = Prices.load(prices)
    config: Config
    if kind := kind_of(recipe, out):
        if pilot is not None:
            raise SetupError(
                "asks about the first prompts of a run, and this recipe is of another kind",
                field="--pilot",
                fix="leave it out",
            )
        config, directory = load_as(kind, recipe, changes, out)
    else:
        run, directory = load_run(recipe, changes, out)
        config = run
        if pilot is not None:
            gate = Gate.of(max_usd, max_calls, max_minutes, prices)
            with stoppable():
                run_pilot(run, directory, pilot, gate)
    found = estimate(config, directory, known, beside(directory), batch=batch)
    if as_json:
        typer.echo(json.dumps(plain(found), indent=1))
        return
    for line in lines(found):
        typer.echo(line)

"""The command line: arguments to stages, errors to exit codes. No logic."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import typer.core

from rlaif import __version__
from rlaif.cli import calls, constitution, plan, scoring, store
from rlaif.cli.options import MaxCalls, MaxMinutes, MaxUsd, PriceFile
from rlaif.cli.stopping import stoppable
from rlaif.errors import RlaifError, SetupError
from rlaif.progress import json_logs, say, use_json_logs
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


UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])
"""What all mistakes in arguments have in common; typer exports just this one of them."""

RECIPE = "rlaif.recipe"
"""Where the parsing of a command keeps the recipe's name for its help."""


class FieldsInHelp(typer.core.TyperCommand):
    """A command whose --help ends with the recipe's fields and what they mean."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from rlaif.config import describe
        from rlaif.recipe import RunConfig

        _write_fields(formatter, "Fields of a recipe, with their defaults", describe(RunConfig))


class EveryFieldInHelp(FieldsInHelp):
    """The same, with the fields of recipes of other kinds that no run has; where a recipe is named,
    the fields of its kind alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # --help is printed before any other argument is kept.
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[RECIPE] = given.get("recipe")
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from rlaif.config import describe
        from rlaif.recipe import KINDS, RunConfig
        from rlaif.recipe.config import KINDS as MEANT
        from rlaif.recipe.config import kind_in, path_of

        name = ctx.meta[RECIPE]
        named = isinstance(name, str) and "=" not in name
        only = kind_in(path_of(name, None)) if named else None
        if only is not None:
            heading = f"Fields of a recipe that {MEANT[only]}, with their defaults"
            _write_fields(formatter, heading, describe(KINDS[only].config))
            return
        super().format_epilog(ctx, formatter)
        told = set(describe(RunConfig))
        for key, kind in KINDS.items() if not named else ():
            new = (field for field in describe(kind.config) if field not in told)
            _write_fields(formatter, f"With `{key}`, the recipe {MEANT[key]}", new)


def _write_fields(formatter: Any, heading: str, fields: Iterable[tuple[str, str, str]]) -> None:
    formatter.write(f"\n{heading}:\n\n")
    for name, default, text in fields:
        formatter.write(f"  {name} = {default}\n      {text}\n")


app = typer.Typer(
    name="rlaif",
    help="From a constitution file to a preference dataset, a reward model, a DPO policy and a "
    "report that compares them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _log_as_json(wanted: bool) -> None:
    if wanted:
        use_json_logs()


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    _: Annotated[
        bool,
        typer.Option(
            "--json-logs",
            envvar="RLAIF_JSON_LOGS",
            help="Write standard error as JSON, one object a line.",
            # Before a command is looked for, so that one which is not there is told in JSON too.
            is_eager=True,
            callback=_log_as_json,
        ),
    ] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _add_stages(name: str, does: str, stages: tuple[str, ...] | None) -> None:
    """A command that runs stages of a recipe; None: all of them."""

    def run(
        recipe: Recipe = None,
        overrides: Overrides = None,
        out: Out = None,
        reconfigure: Reconfigure = False,
        max_usd: MaxUsd = None,
        max_calls: MaxCalls = None,
        max_minutes: MaxMinutes = None,
        prices: PriceFile = None,
    ) -> None:
        budget = (max_usd, max_calls, max_minutes, prices)
        _execute(stages, recipe, overrides, out, reconfigure, budget)

    shown = EveryFieldInHelp if stages is None else FieldsInHelp
    app.command(name, help=does, cls=shown)(run)


_add_stages(
    "run", "Run a recipe from the prompts to the report. Running it again asks nothing twice.", None
)


@app.command()
def recipes() -> None:
    """List the recipes that come with rlaif."""
    from rlaif import recipe

    for name, description in recipe.recipes().items():
        typer.echo(f"{name:14} {description}")


@app.command(cls=FieldsInHelp)
def certify(
    recipe: Recipe = None,
    overrides: Overrides = None,
    judge: Annotated[str | None, typer.Option(help="The judge's model.")] = None,
    constitution: Annotated[str | None, typer.Option(help="File, or a name of ours.")] = None,
    gold: Annotated[
        list[str] | None,
        typer.Option(help="Pairs that people have judged: a file, a name of ours, hub:ORG/NAME."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Most pairs of each gold set.")] = None,
    part: Annotated[
        str | None, typer.Option(help="all, dev or test: a half of the pairs, by prompt.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Try every way of asking and print one table.")
    ] = False,
    template: Annotated[
        list[str] | None, typer.Option(help="With --sweep: another template to try.")
    ] = None,
    out: Out = None,
    max_usd: MaxUsd = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
    prices: PriceFile = None,
) -> None:
    """Hold a judge against pairs that people have judged, and write a certificate."""
    from rlaif import recipe as recipes
    from rlaif.models.gate import Gate

    changes = list(overrides or [])
    if recipe is not None and "=" in recipe:
        changes.insert(0, recipe)
        recipe = None
    if template and not sweep:
        raise SetupError("goes with --sweep", field="--template", fix="or set judge.template=…")
    given = {
        "judge.model": judge,
        "judge.constitution": constitution,
        "judge.gate.gold": gold,
        "judge.gate.limit": limit,
        "judge.gate.part": part or ("dev" if sweep else None),
    }
    changes += [
        f"{field}={json.dumps(value, ensure_ascii=False)}"
        for field, value in given.items()
        if value is not None
    ]
    config, directory = recipes.load_certify(recipe, changes, out)
    gate = Gate.of(max_usd, max_calls, max_minutes, prices)
    with stoppable():
        told = recipes.run_certify(config, directory, template or [] if sweep else None, gate)
    for line in told:
        typer.echo(line)


for _name, _does in ORDER.items():
    if _name != "certify":
        # No label without the gate that the config sets; without a gate, certify does nothing.
        _add_stages(_name, _does, ("certify", _name) if _name == "judge" else (_name,))


@app.command()
def overoptimize(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run with a reward model.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="gold.judge=MODEL, gold.reward_model=DIR or gold.function=package.module:function "
            "(one of them); samples=64, limit=N, penalty=1.0.",
        ),
    ] = None,
    max_usd: MaxUsd = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
    prices: PriceFile = None,
) -> None:
    """Push a reward model by best-of-n until it breaks, by a gold that it has not seen."""
    from rlaif import recipe
    from rlaif.models.gate import Gate

    gate = Gate.of(max_usd, max_calls, max_minutes, prices)
    with stoppable():
        told = recipe.run_overoptimize(run, overrides or [], gate)
    for line in told:
        typer.echo(line)


@app.command()
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    prices: PriceFile = None,
) -> None:
    """Tell where a run stands, by its files: stages, stored calls and money, failures."""
    from rlaif import recipe
    from rlaif.models.prices import Prices

    for line in recipe.status(run, Prices.load(prices)):
        typer.echo(line)


app.add_typer(constitution.app)
app.add_typer(store.app)
app.command("calls")(calls.calls)
app.command("score")(scoring.score)
app.command("best-of-n")(scoring.best_of_n)
plan.register(app)


def _execute(
    stages: tuple[str, ...] | None,
    name: str | None,
    overrides: list[str] | None,
    out: Path | None,
    reconfigure: bool,
    budget: tuple[float | None, int | None, float | None, Path | None],
) -> None:
    from rlaif import recipe
    from rlaif.models.gate import Gate

    changes = list(overrides or [])
    if name is not None and "=" in name:
        changes.insert(0, name)
        name = None
    gate = Gate.of(*budget)
    with stoppable():
        kind = recipe.kind_of(name, out) if stages is None else None
        if kind is not None:
            other, directory = recipe.load_as(kind, name, changes, out)
            told = kind.execute(other, directory, reconfigure=reconfigure, gate=gate)
        else:
            config, directory = recipe.load_run(name, changes, out)
            told = recipe.execute(
                config, directory, stages or config.stages(), reconfigure=reconfigure, gate=gate
            )
    for line in told:
        typer.echo(line)


def main() -> None:
    """Entry point. Exit codes: 1 for a constitution that does not pass, 2 for a wrong setup, 3 for
    too many failed calls, 4 for a budget that is spent, 130 for Ctrl-C."""
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as e:
        if json_logs():
            say(f"rlaif: {e.format_message()}", "error")
        else:
            e.show()
        sys.exit(e.exit_code)
    except RlaifError as e:
        say(f"rlaif: {e}", "error")
        sys.exit(e.exit_code)
    except Exception as e:
        if _was_interrupted(e):
            say("rlaif: stopped before anything was asked", "stopped")
            sys.exit(130)
        # A bug of ours: its traceback may quote what a provider said.
        say(traceback.format_exc().rstrip(), "error")
        sys.exit(1)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what it comes from: an import that it hits may raise anything."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None

"""`rlaif store …`: look into the answered calls of a run, and mend them. No logic."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from rlaif.cli.options import PriceFile
from rlaif.errors import SetupError

app = typer.Typer(
    name="store",
    help="Check, count, export and clear out the answered calls of a run.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its calls.sqlite.")]


@app.command()
def verify(
    run: Run,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Save what can be read into a new file; the old is kept."),
    ] = False,
) -> None:
    """Check the file and every row of it. Exit code 2 if something is wrong."""
    from rlaif import workspace
    from rlaif.callstore import tools

    path = tools.store_of(run)
    found = tools.verify(path)
    if found.sound:
        typer.echo(f"{path}: {found.rows:,} answered calls, all sound")
        return
    for line in found.damage[:5]:
        typer.echo(f"{path}: {line}")
    for key, fault in list(found.faults.items())[:5]:
        typer.echo(f"{path}: row {key} {fault}")
    if not repair:
        raise SetupError(
            f"{len(found.faults)} rows are wrong, {found.rows} sound"
            if not found.damage
            else "the file is damaged",
            file=path,
            fix="rlaif store verify --repair saves what can be read",
        )
    done = workspace.repair(path)
    typer.echo(
        f"{path}: {done.rows:,} answered calls are saved; what could not be read is asked again "
        f"when it is needed. The damaged file is {done.old}"
    )
    if not done.batches:
        typer.echo(
            "which batches are on their way could not be read: look at the provider's list of them "
            "and cancel those that still run, or their calls are paid for again"
        )


@app.command()
def stats(run: Run, prices: PriceFile = None) -> None:
    """Calls, tokens, money by the prices of now, and time by model."""
    from rlaif.callstore import tools
    from rlaif.models.prices import Prices

    path = tools.store_of(run)
    found = tools.stats(path, Prices.load(prices).stored)
    wide = max((len(model) for model in found), default=5)
    typer.echo(
        f"{'model':{wide}} {'calls':>9} {'prompt':>12} {'cached':>12} {'completion':>12}"
        f" {'USD':>10} {'s a call':>9}  first .. last"
    )
    for model, usage in found.items():
        usd = "unknown" if usage.usd is None else f"{usage.usd:.4f}"
        typer.echo(
            f"{model:{wide}} {usage.calls:9,} {usage.prompt_tokens:12,} {usage.cached_tokens:12,}"
            f" {usage.completion_tokens:12,} {usd:>10} {usage.seconds / usage.calls:9.2f}"
            f"  {usage.first[:16]} .. {usage.last[:16]}"
        )
    typer.echo(f"{tools.size_mb(path):.1f} MB")


@app.command()
def export(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .jsonl or .parquet to write.")],
) -> None:
    """Write every request and reply into one file."""
    from rlaif.callstore import tools

    typer.echo(f"{tools.export(tools.store_of(run), file):,} calls in {file}")


@app.command()
def prune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    model: Annotated[str | None, typer.Option(help="Only calls of this model.")] = None,
    before: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="Only calls from before this day.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only count.")] = False,
) -> None:
    """Delete calls that no file of the run names: their answers would have to be paid again."""
    from rlaif import workspace
    from rlaif.callstore import tools

    # Compared as text: anything but a date could sort behind every row, and delete them all.
    try:
        before = None if before is None else date.fromisoformat(before).isoformat()
    except ValueError as e:
        raise SetupError(f"{before!r} is no day", field="--before", fix="write YYYY-MM-DD") from e
    keys, left = workspace.prune(run, model, before, delete=yes)
    if yes:
        path = tools.store_of(run)
        typer.echo(f"{keys:,} calls deleted, {left:,} left, {tools.size_mb(path):.1f} MB")
    else:
        typer.echo(f"{keys:,} calls are named by no file of the run, {left:,} are; --yes deletes")

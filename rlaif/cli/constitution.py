"""`rlaif constitution …`: arguments to functions, findings to exit codes. No logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli.options import MaxCalls, MaxMinutes, MaxUsd, PriceFile
from rlaif.cli.stopping import stoppable
from rlaif.errors import ConstitutionFails, SetupError

if TYPE_CHECKING:
    from rlaif.evaluate.test_table import CaseRun
    from rlaif.models.gate import Gate

app = typer.Typer(
    name="constitution",
    help="Write, check, test, exchange and compare constitutions, and see what each principle did.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A file, or a constitution of ours.")]
JudgeModel = Annotated[str, typer.Option("--judge", help="The judge's model.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FIELD=VALUE]...", help="How it is asked: judge.mode=…"),
]
FORMATS = (
    "cai-critique-revision, cai-comparison, llm-swarm, nemo-aligner, open-character, icai or rlaif"
)
Out = Annotated[
    Path | None, typer.Option(help="Folder of the calls; outputs/constitution/… if left out.")
]


@app.command()
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, NAME.yaml.")],
) -> None:
    """Write a short constitution to start from, and the schema that editors complete it by."""
    from rlaif.constitution.showing import write_starter

    for path in write_starter(file):
        typer.echo(f"wrote {path}")


@app.command()
def show(
    name: Name,
    as_json: Annotated[bool, typer.Option("--json", help="The whole content as JSON.")] = False,
) -> None:
    """Show a constitution as the judge gets it: with what it extends and includes, every wording
    filled in."""
    from rlaif.constitution import read_constitution
    from rlaif.constitution.showing import shown

    found = read_constitution(name)
    if as_json:
        plain = {**found.constitution.model_dump(mode="json"), "hash": found.constitution.hash}
        typer.echo(json.dumps(plain, ensure_ascii=False, indent=2))
    else:
        typer.echo(shown(found))


@app.command()
def lint(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Files, or ours.")],
    judge: Annotated[
        str | None,
        typer.Option(help="A judge's model: finds principles that contradict each other."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="How the judge is asked: judge.mode=…"),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="A prompt set: finds principles that none of it meets.")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens that the judge can read.")] = 4096,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail as well.")] = False,
    out: Out = None,
    max_usd: MaxUsd = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
    prices: PriceFile = None,
) -> None:
    """Find what is wrong with a constitution without asking a model (with --judge: asking one)."""
    from rlaif.constitution.lint import lint_path
    from rlaif.datasets import load_prompts
    from rlaif.models.gate import Gate

    meant = load_prompts(prompts) if prompts else ()
    levels = []
    for name in names:
        for finding in lint_path(name, context_tokens=context, prompts=meant):
            typer.echo(str(finding))
            levels.append(finding.level)
    errors, warnings = levels.count("error"), levels.count("warning")
    if judge is not None and not errors:
        gate = Gate.of(max_usd, max_calls, max_minutes, prices)
        for name in names:
            run = _asked(name, judge, overrides or [], out, [], gate, contradictions=True)
            for contradiction in run.contradictions:
                typer.echo(f"{name}: warning: {contradiction}")
            warnings += len(run.contradictions)
            typer.echo(f"{name}: {run.decided} of {run.votes} votes on its tests name a winner")
            if not run.decided:
                typer.echo(f"{name}: warning: this judge decides nothing and can find nothing")
                warnings += 1
    typer.echo(f"{errors} errors, {warnings} warnings in {len(names)} files")
    if errors or (strict and warnings):
        raise ConstitutionFails("the constitution does not lint")


@app.command("test")
def run_tests(
    name: Name,
    judge: JudgeModel,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only the tests of this principle.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the results as JUnit XML.")] = None,
    out: Out = None,
    max_usd: MaxUsd = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
    prices: PriceFile = None,
) -> None:
    """Run the constitution's own tests on a judge. Exit code 1 when one fails or is unscored."""
    from rlaif.evaluate.test_table import junit_xml, table
    from rlaif.files import disk_errors, write_text
    from rlaif.models.gate import Gate

    if junit is not None:
        # What it says must be of this run.
        with disk_errors(junit):
            junit.unlink(missing_ok=True)
    gate = Gate.of(max_usd, max_calls, max_minutes, prices)
    run = _asked(name, judge, overrides or [], out, only or [], gate, contradictions=False)
    typer.echo(table(run))
    if junit is not None:
        write_text(junit, junit_xml(run))
        typer.echo(f"junit: {junit}")
    if run.failed:
        raise ConstitutionFails(f"{run.failed} of {len(run.results)} tests did not pass")


def _asked(
    name: str,
    model: str,
    overrides: list[str],
    out: Path | None,
    only: list[str],
    gate: Gate,
    *,
    contradictions: bool,
) -> CaseRun:
    from rlaif.config import from_overrides
    from rlaif.constitution.file import slug
    from rlaif.stages.certify import CertifyConfig
    from rlaif.stages.constitution_test import run_constitution_test

    given = {"judge.model": model, "judge.constitution": name}
    for field in given:
        if any(change.startswith(f"{field}=") for change in overrides):
            raise SetupError("stands twice", field=field, fix="give it as NAME and --judge alone")
    named = [f"{field}={json.dumps(value)}" for field, value in given.items()]
    config = from_overrides([*named, *overrides], CertifyConfig)
    folder = out or Path("outputs") / "constitution" / f"{slug(name)}-{slug(model)}"
    with stoppable():
        return run_constitution_test(
            name,
            config.judge,
            folder,
            config.seed,
            only=only,
            find_contradictions=contradictions,
            gate=gate,
        )


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A constitution in another form.")],
    source: Annotated[
        str | None, typer.Option("--format", help=f"{FORMATS}; told by its content if left out.")
    ] = None,
    name: Annotated[str | None, typer.Option("--id", help="What to call it.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; NAME.yaml.")] = None,
) -> None:
    """Turn another tool's constitution into ours, and say what could not be kept."""
    from rlaif.constitution.formats import import_constitution, prompt_rows
    from rlaif.constitution.showing import write_with_schema
    from rlaif.constitution.writing import to_yaml
    from rlaif.files import absent, write_new

    found = import_constitution(file, format=source, id=name)
    constitution = found.constitution
    target = out or Path(f"{constitution.id}.yaml")
    beside = target.with_name(f"{target.stem}.prompts.jsonl")
    absent(target)
    if found.prompts:
        write_new(beside, prompt_rows(found.prompts))
    write_with_schema(target, to_yaml(constitution))
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{len(constitution.principles)} principles from {found.format}: {target}")
    if found.prompts:
        typer.echo(f"{len(found.prompts)} prompts: {beside}")


@app.command()
def export(
    name: Name,
    to: Annotated[str, typer.Option(help=f"{FORMATS}.")],
    prompts: Annotated[
        str | None, typer.Option(help="A prompt set that goes with it (open-character).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; NAME.FORMAT.")] = None,
) -> None:
    """Write a constitution in another tool's format; refuses what that format cannot hold."""
    from rlaif.constitution import load_constitution
    from rlaif.constitution.formats import export_constitution
    from rlaif.datasets import load_prompts
    from rlaif.files import write_new

    constitution, _ = load_constitution(name)
    text = export_constitution(constitution, to, load_prompts(prompts) if prompts else ())
    target = out or Path(f"{constitution.id}.{to}")
    write_new(target, text)
    typer.echo(f"{len(constitution.principles)} principles as {to}: {target}")


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A file, or a constitution of ours.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    run: Annotated[
        Path | None, typer.Option(help="A run's folder: which of its labels would change.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Most changed pairs to show.")] = 5,
) -> None:
    """Say what differs between two constitutions and, for a run, which labels would change and
    what asking for the rest would cost."""
    from rlaif.stages.attribution import diff_constitutions

    for line in diff_constitutions(a, b, run, pairs):
        typer.echo(line)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    human: Annotated[
        Path | None,
        typer.Option(
            help="People's labels of its comparisons: JSONL of comparison_id (or first and second) "
            "and p_first, 1 where the first response is better."
        ),
    ] = None,
) -> None:
    """Say what each principle did in a run, from its stored votes: no model is asked."""
    from rlaif.stages.attribution import report_run

    for line in report_run(run, human):
        typer.echo(line)


@app.command()
def schema() -> None:
    """Print the JSON schema of constitution files."""
    from rlaif.constitution import json_schema

    typer.echo(json.dumps(json_schema(), ensure_ascii=False, indent=2))

"""A certificate by itself, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlaif import interrupts
from rlaif.config import from_overrides
from rlaif.constitution import load_constitution
from rlaif.constitution.file import slug
from rlaif.errors import JudgeFallsShort, SetupError
from rlaif.evaluate.certificate_page import sweep_table
from rlaif.evaluate.certificate_words import sentences
from rlaif.files import full_disk, need_space, packaged
from rlaif.models.gate import Gate
from rlaif.models.pool import (
    check_model,
)
from rlaif.progress import say
from rlaif.recipe.checks import NEEDED_MB, check_judges
from rlaif.recipe.config import load_run
from rlaif.stages import (
    certify,
)
from rlaif.stages.certify import CertifyConfig, read_certificate
from rlaif.workspace import Workspace


def load_certify(
    recipe: str | None, overrides: Sequence[str], out: Path | None
) -> tuple[CertifyConfig, Path]:
    """The judge to certify: that of a recipe or a run, or one given by overrides alone; and the
    folder. A judge without a gate is held against our gold set of its constitution's name.

    Raises SetupError.
    """
    if recipe is None and out is not None and (out / "config.yaml").is_file():
        recipe = str(out / "config.yaml")
    names_gold = ("judge.gate=", "judge.gate.gold=", "judge.gate.certificate=")
    if not any(o.startswith(names_gold) for o in overrides):
        rest = [o for o in overrides if not o.startswith("judge.gate.")]
        judge = _certified_judge(recipe, rest).judge
        if judge.gate is None:
            ours = _own_gold(load_constitution(judge.constitution)[0].id)
            overrides = [*overrides, f"judge.gate.gold=[{ours}]"]
    config = _certified_judge(recipe, overrides)
    gate = config.judge.gate
    if gate is None or gate.certificate is not None:
        raise SetupError(
            "a certificate is what this command makes, from gold",
            field="judge.gate",
            fix="name gold sets: --gold FILE",
        )
    constitution, _ = load_constitution(config.judge.constitution)
    name = f"{constitution.id}-{slug(config.judge.model)}"
    return config, out or Path("outputs") / "certify" / name


def _certified_judge(recipe: str | None, overrides: Sequence[str]) -> CertifyConfig:
    if recipe is None:
        return from_overrides(overrides, CertifyConfig)
    run, _ = load_run(recipe, overrides, None)
    return CertifyConfig(seed=run.seed, judge=run.judge)


def _own_gold(constitution: str) -> str:
    if not (packaged("prompts/gold") / f"{constitution}.jsonl").is_file():
        raise SetupError(
            f"there is no gold set of ours for the constitution {constitution!r}",
            field="judge.gate.gold",
            fix="name pairs that people have judged: --gold FILE",
        )
    return constitution


def run_certify(
    config: CertifyConfig, out: Path, sweep: Sequence[str] | None, spending: Gate | None = None
) -> list[str]:
    """Certifies the judge in `out`, or with `sweep` (templates to try beside ours) tries all ways
    of asking it. `spending`: what may be spent. Returns what to tell. Raises RlaifError; answered
    calls are kept."""
    check_judges(config.judge)
    for field, asked in config.judge.judges():
        check_model(asked.model, field)
    need_space(out, NEEDED_MB)
    with full_disk(out):
        return interrupts.run(_certify(config, out, sweep, spending))


async def _certify(
    config: CertifyConfig, out: Path, templates: Sequence[str] | None, spending: Gate | None
) -> list[str]:
    gate = config.judge.gate
    assert gate is not None, "load_certify puts one there"
    work = Workspace(out, config.seed, {}, spending)
    try:
        if templates is not None:
            rows = await certify.sweep(config.judge, templates, gate, work)
            return [*sweep_table(rows).splitlines(), f"sweep: {out / 'sweep.html'}"]
        try:
            await certify.run(config.judge, work)
        except JudgeFallsShort:
            for line in _told(out):
                say(line)
            raise
    finally:
        await work.close()
    return [*_told(out), f"certificate: {out / 'certificate.html'}"]


def _told(out: Path) -> list[str]:
    found = read_certificate(out / "certificate.json")
    return [*(f"warning: {warning}" for warning in found.warnings), *sentences(found)]

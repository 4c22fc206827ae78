"""A few prompts of a run, asked for real: the answers are the run's own and are kept."""

from __future__ import annotations

from pathlib import Path

from rlaif import interrupts
from rlaif.constitution import load_constitution
from rlaif.datasets import load_prompts
from rlaif.errors import TooManyFailures
from rlaif.files import full_disk
from rlaif.judge.design import groups_of
from rlaif.judge.panel import Kept, Panel
from rlaif.models.client import Bill
from rlaif.models.gate import Gate
from rlaif.models.pool import check_model
from rlaif.progress import progress, say
from rlaif.recipe import RunConfig, check_judges
from rlaif.sample import sample
from rlaif.stages import revise
from rlaif.types import Prompt
from rlaif.workspace import Workspace, say_failures


def run_pilot(config: RunConfig, out: Path, n: int, gate: Gate) -> None:
    """Asks about the first `n` prompts what the stages would ask: originals and revisions, K
    answers, comparisons. Only the call store is written. `gate`: what may be spent. Raises
    RlaifError; TooManyFailures where no prompt is answered."""
    check_judges(config.judge)
    check_model(config.policy.model, "policy.model")
    for field, asked in config.judge.judges():
        check_model(asked.model, field)
    say(f"pilot: {n} prompts are asked about now; the answers stay in {out} and the run uses them")
    with full_disk(out):
        interrupts.run(_run(config, out, n, gate))


async def _run(config: RunConfig, out: Path, n: int, gate: Gate) -> None:
    prompts = load_prompts(config.sample.prompts, config.sample.limit)
    work = Workspace(out, config.seed, {}, gate)
    try:
        if config.revise is not None:
            await _revise(config, config.revise, prompts, n, work)
        if config.start == "sft":
            say("pilot: what train-sft makes is not there yet; its answers are not asked for")
            return
        await _label(config, prompts[:n], work)
    finally:
        await work.close()


async def _revise(
    config: RunConfig,
    section: revise.ReviseConfig,
    sampled: tuple[Prompt, ...],
    n: int,
    work: Workspace,
) -> None:
    prepared = revise.prepare(section, config.policy, config.judge, sampled, config.seed)
    prepared = prepared._replace(prompts=prepared.prompts[:n])
    sampling, bill = config.sample.sampling(config.seed), Bill()
    await revise.ask(section, prepared, config.policy, sampling, work, bill)
    say_failures(bill)


async def _label(config: RunConfig, prompts: tuple[Prompt, ...], work: Workspace) -> None:
    bill, by_id = Bill(), {p.id: p for p in prompts}
    async with work.pool.open(config.policy, "policy.model", bill) as client:
        with progress("pilot", len(prompts), "prompts") as advance:
            sampling = config.sample.sampling(config.seed)
            found = await sample(prompts, config.sample.k, sampling, client, advance)
    if not found.responses:
        say_failures(bill)
        raise TooManyFailures(f"none of the pilot's {len(prompts)} prompts was answered")
    constitution, _ = load_constitution(config.judge.constitution)
    panel = Panel(
        config.judge,
        constitution,
        config.seed,
        lambda asked, field: work.pool.open(asked, field, bill),
    )
    groups = groups_of(by_id, found.responses)
    await panel.judge_groups(groups, len(groups), progress, Kept())
    say_failures(bill)

"""Pushes a run's reward model until it breaks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlaif import interrupts
from rlaif.config import from_overrides
from rlaif.files import full_disk, need_space
from rlaif.models.gate import Gate
from rlaif.models.pool import check_model
from rlaif.recipe.checks import NEEDED_MB
from rlaif.recipe.config import load_run
from rlaif.recipe.running import open_transformers
from rlaif.stages import overoptimize
from rlaif.workspace import Workspace


def run_overoptimize(out: Path, overrides: Sequence[str], gate: Gate) -> list[str]:
    """`rlaif.stages.overoptimize` on the run in `out`. `gate`: what may be spent. Returns what to
    tell. Raises RlaifError; answered calls are kept."""
    run, _ = load_run(None, [], out)
    config = from_overrides(overrides, overoptimize.OveroptimizeConfig)
    asked = run.after_sft(out)
    check_model(asked.policy.model, "policy.model")
    if config.gold.judge is not None:
        check_model(config.gold.judge, "gold.judge")
    need_space(out, NEEDED_MB)

    async def main() -> list[str]:
        work = Workspace(out, run.seed, {"transformers": open_transformers}, gate)
        try:
            return await overoptimize.run(
                config,
                asked.policy,
                asked.judge,
                asked.sample.sampling(run.seed),
                asked.reward_model.max_length,
                work,
            )
        finally:
            await work.close()

    with full_disk(out):
        return interrupts.run(main())

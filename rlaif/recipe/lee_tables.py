"""Tables on labeler alignment in the form of Lee et al. (2023), arXiv 2309.00267."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from rlaif import interrupts
from rlaif.evaluate.lee_page import NOT_ASKED, failed, lines_of, tables_of
from rlaif.evaluate.lee_tables import Style
from rlaif.files import full_disk, need_space
from rlaif.models.gate import Gate
from rlaif.models.pool import ModelConfig, check_model
from rlaif.recipe.checks import NEEDED_MB, check_judges
from rlaif.recipe.config import RunName
from rlaif.recipe.running import claim
from rlaif.stages import lee_tables
from rlaif.stages.lee_tables import WAYS, LabelersConfig, PeopleConfig
from rlaif.types import Record
from rlaif.workspace import Workspace


class LeeConfig(Record):
    """Judges held against people's pairs, by style of prompt."""

    name: RunName | None = None
    """What the tables are called; none: the recipe's file name. It is a folder's name, too."""
    description: str = ""
    """One line for `rlaif recipes`."""
    seed: int = 0
    """Seeds the bootstrap, the choice of examples, and principles that are drawn."""
    human: PeopleConfig
    judge: LabelersConfig
    styles: tuple[Style, ...] = Field(
        default=("plain", "detailed", "chain_of_thought"), min_length=1
    )
    """How the judges are asked. plain: the question alone (Lee et al.'s Base); detailed: with the
    principle and what a fair comparison is; chain_of_thought: as detailed, with a rationale first.
    The first is what the others are held against."""
    shots: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """How many examples are shown before the pair; every style is asked with each number, but for
    chain_of_thought, which is asked without."""
    self_consistency: int = Field(default=0, ge=0)
    """Verdicts with a rationale that are sampled at temperature 1 and held against a single one at
    temperature 0; 0: not asked."""

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Self:
        for field in ("styles", "shots"):
            if len(set(self.__dict__[field])) < len(self.__dict__[field]):
                raise ValueError(f"{field} names one twice")
        if self.self_consistency == 1:
            raise ValueError("self_consistency of 1 is a single verdict; sample 2 or more, or 0")
        return self


def execute_lee(
    config: LeeConfig, out: Path, *, reconfigure: bool, gate: Gate | None = None
) -> list[str]:
    """Makes the tables. Returns what to tell. Running it again asks nothing. Raises RlaifError;
    answered calls are kept."""
    for i, model in enumerate(config.judge.models):
        check_model(model.model, f"judge.models[{i}].model")
        check_styles(config, model)
    lee_tables.prepare(config.human, max(config.shots), config.seed)
    need_space(out, NEEDED_MB)
    with full_disk(out):
        return interrupts.run(_execute(config, out, gate, reconfigure=reconfigure))


def check_styles(config: LeeConfig, model: ModelConfig) -> None:
    """Finds what is wrong with how a judge is asked, whatever keys are there. Raises SetupError."""
    for style in config.styles:
        check_judges(config.judge.asked_in(model, *WAYS[style]))


async def _execute(
    config: LeeConfig, out: Path, gate: Gate | None, *, reconfigure: bool
) -> list[str]:
    work = Workspace(out, config.seed, {}, gate)
    try:
        claim(config, out, reconfigure)
        found = await lee_tables.run(
            config.human, config.judge, config.styles, config.shots, config.self_consistency, work
        )
    finally:
        await work.close()
    lost = [f"{NOT_ASKED}: {line}" for line in failed(found)]
    return [*lines_of(tables_of(found)[0]), *lost, f"tables: {out / 'lee.html'}"]

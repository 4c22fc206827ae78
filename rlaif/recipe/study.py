"""A study: people's pairs labelled again by a judge, and what comes of both kinds of label."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rlaif import interrupts
from rlaif.arms import ArmName, asked_about
from rlaif.datasets import load_prompts
from rlaif.errors import SetupError, TooManyFailures
from rlaif.evaluate.study.data import StudySettings, read_study
from rlaif.evaluate.study.figures import study_report
from rlaif.evaluate.study.records import HumanSection
from rlaif.evaluate.study.summary import headline
from rlaif.evaluate.study.words import planned_words
from rlaif.files import full_disk, need_space, read_jsonl
from rlaif.judge.config import JudgeConfig
from rlaif.models.gate import Gate
from rlaif.models.pool import ModelConfig, check_model, check_weights
from rlaif.models.prices import Price
from rlaif.progress import say
from rlaif.recipe.checks import NEEDED_MB, check_judges, check_way
from rlaif.recipe.config import RunName
from rlaif.recipe.running import claim, open_transformers
from rlaif.stages import arms, certify, head_to_head, human, judge, lengths
from rlaif.stages.arms import AnswersConfig
from rlaif.stages.human import HumanConfig
from rlaif.stages.train_dpo import DPOConfig
from rlaif.stages.train_rm import RewardModelConfig
from rlaif.train.settings import require_torch, require_trackers
from rlaif.types import PreferenceGroup, Record
from rlaif.workspace import Workspace


class EvaluationConfig(Record):
    """How the arms are held against each other."""

    judge: str | None = None
    """The model that compares the policies' answers, of a family that labelled nothing: a judge
    likes what it was asked to prefer. Asked as `judge` is, in both orders; none: the labelling
    judge itself, and the report says so in red."""
    margin: float = Field(default=0.05, gt=0, lt=0.5)
    """Two arms whose difference (of win rates or accuracies) lies within this are equivalent; to be
    chosen before a figure is seen."""
    examples: int = Field(default=3, ge=0)
    """Disagreements of judge and people that the report shows in full, those of which the judge was
    surest; 0 where the data may not be passed on."""


class StudyConfig(Record):
    """Human labels against AI labels on the same pairs, from the data to the report."""

    name: RunName | None = None
    """What the study is called; none: the recipe's file name. It is a folder's name, too."""
    description: str = ""
    """One line for `rlaif recipes`."""
    seed: int = 0
    """Seeds the split, the flips, training and sampling; arm seed s trains with this + s."""
    human: HumanConfig
    policy: ModelConfig
    """The policy that all arms start from, and the reward models, too."""
    judge: JudgeConfig
    """Gives the AI labels."""
    evaluation: EvaluationConfig = EvaluationConfig()
    arms: tuple[ArmName, ...] = ("human", "ai_soft", "ai_hard", "mixed", "noise_matched")
    """human: people's labels; ai_soft: the judge's probabilities; ai_hard: its winners; mixed: half
    of the prompts from each; noise_matched: people's labels with as many flipped at random as the
    judge labels otherwise."""
    seeds: int = Field(default=3, ge=1)
    """Trainings of each arm. Under three, nothing is known of how much they differ by chance."""
    learning_curve: tuple[float, ...] = (0.25, 0.5)
    """Shares of the pairs on which reward models of human and ai_soft are trained as well; two or
    more give the exchange rate of the labels, none leaves it out."""
    reward_model: RewardModelConfig = RewardModelConfig()
    dpo: DPOConfig = DPOConfig()
    answers: AnswersConfig = AnswersConfig()
    keep_weights: bool = False
    """Keep every arm's models (two a seed); false: their scores and answers are kept."""

    @model_validator(mode="after")
    def _can_be_compared(self) -> Self:
        if len(set(self.arms)) < len(self.arms):
            raise ValueError("an arm is named twice in arms")
        if "human" not in self.arms or not {"ai_soft", "ai_hard"} & set(self.arms):
            raise ValueError("arms needs human, and ai_soft or ai_hard")
        shares = self.learning_curve
        if any(not 0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
            raise ValueError("learning_curve is shares between 0 and 1, rising")
        if self.judge.comparisons != "all":
            raise ValueError("the judge is asked about people's pairs; leave judge.comparisons out")
        if len(shares) == 1:
            raise ValueError("a learning curve needs two shares besides all pairs; or none")
        return self

    def evaluating(self) -> JudgeConfig:
        """The judge of the policies."""
        if self.evaluation.judge is None:
            return self.judge
        return self.judge.of(self.evaluation.judge)


async def _human(config: StudyConfig, work: Workspace) -> None:
    """Also says, before anything is asked, which pairs are too long to be trained on, and what the
    held-out prompts can show."""
    await human.run(config.human, work)
    most = {
        "reward_model.max_length": config.reward_model.max_length,
        "dpo.max_length": config.dpo.max_length,
    }
    lengths.run(most, config.policy, config.dpo.base, work)
    data = HumanSection.model_validate(work.part("human"))
    held_out = data.groups["test"]
    say(planned_words(held_out, config.evaluation.margin, sum(data.pairs.values())))
    if config.answers.limit is not None and config.answers.limit < held_out:
        say(f"study: {config.answers.limit} of them are answered by the policies (answers.limit)")


async def _judge(config: StudyConfig, work: Workspace) -> None:
    only = asked_about(read_jsonl(work.human, PreferenceGroup))
    await judge.run(config.judge, work, only=only)


Run = Callable[[StudyConfig, Workspace], Awaitable[None]]
STAGES: Mapping[str, Run] = {
    "human": _human,
    "certify": lambda c, w: certify.run(c.judge, w),
    "judge": _judge,
    "arms": lambda c, w: arms.run(
        c.arms,
        c.seeds,
        c.learning_curve,
        c.reward_model,
        c.dpo,
        c.answers,
        c.policy,
        c.dpo.base,
        w,
        keep_weights=c.keep_weights,
    ),
    "head-to-head": lambda c, w: head_to_head.run(c.arms, c.seeds, c.evaluating(), w),
}
"""A study's stages, in order."""


def execute_study(
    config: StudyConfig, out: Path, *, reconfigure: bool, gate: Gate | None = None
) -> list[str]:
    """Runs the study and writes its report. Returns what to tell. Running it again asks and trains
    nothing twice. Raises RlaifError; what was done before stays."""
    check_study(config)
    need_space(out, NEEDED_MB)
    with full_disk(out):
        return interrupts.run(_execute(config, out, gate, reconfigure=reconfigure))


def check_study(config: StudyConfig) -> None:
    """Finds what is wrong before anything is asked or loaded. Raises SetupError."""
    require_torch()
    check_config(config)
    for field, asked in config.judge.judges():
        check_model(asked.model, field)
    if config.evaluation.judge is not None:
        check_model(config.evaluation.judge, "evaluation.judge")
    for section in ("reward_model", "dpo"):
        require_trackers(config.__dict__[section], section)
    check_model(config.policy.model, "policy.model")


def check_config(config: StudyConfig) -> None:
    """What of `check_study` needs neither keys nor torch. Raises SetupError."""
    check_judges(config.judge)
    if config.evaluation.judge is not None:
        check_way(config.evaluating().first, "evaluation.judge")
    for section in ("reward_model", "dpo"):
        base = config.__dict__[section].base
        model, field = (
            (config.policy.model, "policy.model") if base is None else (base, f"{section}.base")
        )
        check_weights(model, field)
    if config.reward_model.base != config.dpo.base:
        raise SetupError(
            "differs from dpo.base, and all arms start from one model",
            field="reward_model.base",
            fix="leave both out, or name the same",
        )
    if config.answers.refusal_prompts:
        harmless, harmful = (
            {p.id for p in load_prompts(name, config.answers.refusal_prompts)}
            for name in (config.answers.harmless, config.answers.harmful)
        )
        if both := harmless & harmful:
            raise SetupError(
                f"holds the prompt {min(both)!r}, as answers.harmless does: which answers should "
                "refuse could not be told",
                field="answers.harmful",
                fix="give the two sets prompts with ids of their own",
            )


async def _execute(
    config: StudyConfig, out: Path, gate: Gate | None, *, reconfigure: bool
) -> list[str]:
    work = Workspace(out, config.seed, {"transformers": open_transformers}, gate)
    try:
        claim(config, out, reconfigure)
        for stage, run in STAGES.items():
            if stage == "arms":
                # Training needs the memory that the servers hold.
                await work.pool.close_servers()
            try:
                await run(config, work)
            except TooManyFailures:
                # All that a report needs is there after the last stage, and after no other.
                if stage == "head-to-head":
                    _report(config, work, gate or Gate())
                raise
        told = _report(config, work, gate or Gate())
        return [*told, f"report: {out / 'study.html'}"]
    finally:
        await work.close()


def _report(config: StudyConfig, work: Workspace, gate: Gate) -> list[str]:
    """Writes the study's report from what the stages have left. Returns its main sentences."""

    def prices(judge: JudgeConfig) -> list[Price | None]:
        return [
            gate.price_of(asked.model, asked.usd_per_million_tokens, field)
            for field, asked in judge.judges()
        ]

    settings = StudySettings(
        name=work.directory.name if config.name is None else config.name,
        description=config.description,
        seed=config.seed,
        policy=config.policy.model if config.dpo.base is None else config.dpo.base,
        arms=config.arms,
        seeds=config.seeds,
        shares=config.learning_curve,
        margin=config.evaluation.margin,
        tie_margin=config.judge.tie_margin,
        examples=config.evaluation.examples,
        usd_per_human_label=config.human.usd_per_label,
        labelling=prices(config.judge),
        evaluating=prices(config.evaluating()),
    )
    report = study_report(read_study(work.directory, settings, work.store))
    from rlaif.evaluate.study.page import write_study  # matplotlib only where there is a plot

    write_study(report, work.directory)
    return headline(report)

"""What is wrong with a run is found before anything is asked or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rlaif.constitution import load_constitution, read_constitution
from rlaif.datasets import open_prompts
from rlaif.errors import SetupError
from rlaif.judge.config import AskConfig, JudgeConfig
from rlaif.judge.forms import Asked, Form
from rlaif.models.names import parse_model
from rlaif.models.pool import (
    check_model,
    check_weights,
    gives_logprobs,
)
from rlaif.recipe.config import OPTIONAL, SFT, RunConfig
from rlaif.stages import (
    certify,
    revise,
    train_rl,
)
from rlaif.train.settings import TrainSettings, require_torch, require_trackers

NEEDED_MB = 50
"""Free on the disk before a run starts. For calls and datasets; a stage that needs more says so
itself."""
TRAINED = {"train-sft", "train-rm", "train-dpo", "train-rl", "compare"}
"""Stages that need the training half."""
TRACKED = {"train-sft": "sft", "train-rm": "reward_model", "train-dpo": "dpo"}
"""Stages whose steps are told to trackers, and their sections."""

S = TypeVar("S")


def section_of(section: S | None, field: str) -> S:
    """A section that the run's stage needs. Raises SetupError where the config has none."""
    if section is None:
        raise SetupError(
            "the recipe has no such section", field=field, fix=f"add it, or write {field}={{}}"
        )
    return section


def check(config: RunConfig, stages: Sequence[str], out: Path) -> None:
    """Finds what is wrong before anything is asked or loaded."""
    policy = config.policy.model
    check_judges(config.judge)
    prompts = open_prompts(config.sample.prompts, config.sample.limit)
    read_constitution(config.judge.constitution).check_wordings(prompts)
    parse_model(policy, "policy.model")
    for stage, field in OPTIONAL.items():
        if stage in stages:
            section_of(config.__dict__[field], field)
    if "revise" in stages and config.revise is not None:
        revise.check(config.revise, config.policy, config.judge, tuple(prompts), config.seed)
    if TRAINED & set(stages):
        require_torch()
    for stage, field in TRACKED.items():
        settings: TrainSettings | None = config.__dict__[field]
        if stage in stages and settings is not None:
            require_trackers(settings, field)
    if "train-rl" in stages:
        rl = section_of(config.rl, "rl")
        train_rl.check(rl)
        if rl.judge is not None:
            check_model(rl.judge, "rl.judge")
            check_way(config.judge.of(rl.judge).first, "rl.judge")
    if {"sample", "revise"} & set(stages):
        check_model(policy, "policy.model")
    if {"certify", "judge", "compare"} & set(stages):
        for field, asked in config.judge.judges():
            check_model(asked.model, field)
    bases = {
        "train-sft": ("sft", config.sft.base if config.sft else None),
        "train-rm": ("reward_model", config.reward_model.base),
        "train-dpo": ("dpo", config.dpo.base),
        "train-rl": ("dpo", config.dpo.base),
    }
    for stage, (section, base) in bases.items():
        if stage not in stages:
            continue
        from_sft = base == SFT or (base is None and config.start == "sft" and section != "sft")
        if not from_sft:
            model, field = (policy, "policy.model") if base is None else (base, f"{section}.base")
            check_weights(model, field)
    tuned = out / "sft"
    if config.from_sft() & set(stages) and "train-sft" not in stages and not tuned.is_dir():
        raise SetupError(
            "is where this starts from, and has not been made",
            file=tuned,
            fix="run `rlaif revise` and `rlaif train-sft` first",
        )


def check_judges(config: JudgeConfig) -> None:
    """Finds what is wrong with the constitution, the templates, the gold sets and the ways to ask,
    before anything is asked. Raises SetupError."""
    load_constitution(config.constitution)
    for field, asked in config.judges():
        check_way(asked, field)
    if config.gate is not None:
        certify.check_gate(config.gate)


def check_way(asked: AskConfig, field: str) -> None:
    """Finds what is wrong with how one judge is asked. Raises SetupError."""
    parse_model(asked.model, field)
    form = Form(asked, Asked(asked.model, gives_logprobs(asked.model, field), 1))
    form.check(field)

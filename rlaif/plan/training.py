"""What the trainings of a run would take, as far as earlier ones tell."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.datasets import load_prompts
from rlaif.models import embedded
from rlaif.models.names import parse_model
from rlaif.models.pool import identity_of, weights_identity
from rlaif.plan.figures import Figure, exactly
from rlaif.plan.history import TOKENS_A_CHARACTER
from rlaif.preferences import split_by_prompt
from rlaif.recipe import SFT, RunConfig
from rlaif.stages.train_dpo import DPOConfig
from rlaif.stages.train_rl import RLConfig
from rlaif.stages.train_rm import RewardModelConfig
from rlaif.stages.train_sft import SFTConfig
from rlaif.train.memory import Work, needs
from rlaif.train.rl_memory import rl_needs
from rlaif.train.shapes import Model, read_model

Section = SFTConfig | RewardModelConfig | DPOConfig | RLConfig
PARTS = {"train-sft": "sft", "train-rm": "reward_model", "train-dpo": "dpo", "train-rl": "rl"}
"""Stage -> the report's part that tells how long it took."""
SPREAD = Figure(0.5, 1.0, 2.0)
"""How far a step may be from one of an earlier run: other lengths, another load of the machine."""
ADAPTERS = "members/*/adapter_config.json"
"""In the folder of a reward model: its members but the first, each a body."""
COPY = Figure(0.9, 1.0, 2.2)
"""Bytes of trained weights for a byte of those it starts from: they are saved in float32."""


def training(
    stage: str, config: RunConfig, out: Path, beside: Sequence[Path]
) -> tuple[Figure | None, Figure | None] | None:
    """Seconds and bytes of a training stage, each None where nothing tells; None for a stage that
    trains nothing. A step is taken to last as long as in runs from the same weights, here or
    beside."""
    section = _section(stage, config)
    if section is None:
        return None
    identity, folder = _start(config, stage, section, out)
    paces = []
    for directory in (out, *beside):
        part, cost = _part(directory, PARTS[stage]), _part(directory, "cost")
        if part is None or part["base"] != identity or not part["steps"]:
            continue
        # The stage scores as well; run again over what is made already, it took next to nothing.
        stage_s = cost[stage]["seconds"] if cost and stage in cost else 0.0
        paces.append(max(part["seconds"], stage_s) / part["steps"])
    seconds = None
    if paces:
        pace = sum(paces) / len(paces)
        seconds = SPREAD.times(exactly(pace * _steps(config, stage, section)))
    size = None
    if folder is not None and (folder / "config.json").is_file():
        weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
        size = COPY.times(exactly(sum(file.stat().st_size for file in weights)))
    return seconds, size


def memory(stage: str, config: RunConfig, out: Path) -> float | None:
    """Bytes that a training stage takes at most; None where that is unknown, as it is of the
    processes that a launch file starts."""
    section = _section(stage, config)
    if section is None:
        return None
    model = _start_model(config, stage, section, out)
    if model is None:
        return None
    if isinstance(section, RLConfig):
        found = rl_needs(model, _scorers(config, section, out), section, _longest(config))
    elif section.launch is not None:
        return None
    else:
        tokens = section.tokens_at_once
        members = section.members if isinstance(section, RewardModelConfig) else 1
        work = Work(tokens, min(tokens, config.sample.k * section.max_length), section.max_length)
        found = needs(model, section, work, reward=stage == "train-rm", members=members)
    return None if found.step is None else found.most


def _start_model(config: RunConfig, stage: str, section: Section, out: Path) -> Model | None:
    _, folder = _start(config, stage, section, out)
    return None if folder is None else read_model(folder)


def _scorers(config: RunConfig, rl: RLConfig, out: Path) -> list[tuple[Model, int]]:
    """Reward models as far as they are known, each with how many bodies it has."""
    of = config.reward_model
    found = [(_start_model(config, "train-rm", of, out), of.members if of.lora else 1)]
    if rl.held_out is not None:
        folder = Path(rl.held_out)
        found.append((read_model(folder), 1 + len(list(folder.glob(ADAPTERS)))))
    return [(model, bodies) for model, bodies in found if model is not None]


def _longest(config: RunConfig) -> int:
    """Tokens of the longest prompt, as many as its characters may make."""
    prompts = load_prompts(config.sample.prompts, config.sample.limit)
    longest = max(sum(len(m.content) for m in p.messages) for p in prompts)
    return math.ceil(TOKENS_A_CHARACTER.high * longest)


def _section(stage: str, config: RunConfig) -> Section | None:
    of_stage: dict[str, Section | None] = {
        "train-sft": config.sft,
        "train-rm": config.reward_model,
        "train-dpo": config.dpo,
        "train-rl": config.rl,
    }
    return of_stage.get(stage)


def _start(config: RunConfig, stage: str, section: Section, out: Path) -> tuple[str, Path | None]:
    """Identity of the weights that it starts from, and their folder where there is one."""
    base = config.dpo.base if isinstance(section, RLConfig) else section.base
    if base == SFT or (base is None and config.start == "sft" and stage != "train-sft"):
        folder = out / "sft"
        made = (folder / "config.json").is_file()
        return weights_identity(folder) if made else "", folder
    name = parse_model(base or config.policy.model, "base")
    if name.scheme == "embedded":
        return identity_of(name, "base"), embedded.kept(name.rest)
    return identity_of(name, "base"), name.directory


def _steps(config: RunConfig, stage: str, section: Section) -> float:
    """Optimiser steps, where no group is dropped and every prompt gives one, and no KL budget ends
    them."""
    if isinstance(section, RLConfig):
        return float(section.steps)
    prompts = load_prompts(config.sample.prompts, config.sample.limit)
    if stage == "train-sft" and config.revise is not None:
        if config.revise.prompts is not None:
            prompts = load_prompts(config.revise.prompts)
        prompts = prompts[: config.revise.limit]
    splits = split_by_prompt((p.id for p in prompts), config.pairs.test_fraction, config.seed)
    train = sum(side == "train" for side in splits.values())
    batches = math.ceil(train / section.batch_groups)
    return float(max(math.ceil(batches * section.epochs), 1))


def _part(directory: Path, name: str) -> dict[str, Any] | None:
    """What an earlier run said of a training, whatever has changed there since."""
    path = directory / "parts" / f"{name}.json"
    if not path.is_file():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["value"]
    return value

"""What the trainings of a run would take, as far as earlier ones tell."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlaif.arms import Trained
from rlaif.datasets import load_prompts
from rlaif.errors import SetupError
from rlaif.models import embedded
from rlaif.models.names import parse_model
from rlaif.models.pool import identity_of, weights_identity
from rlaif.plan.figures import Figure, exactly
from rlaif.plan.history import TOKENS_A_CHARACTER
from rlaif.preferences import split_by_prompt
from rlaif.progress import say
from rlaif.recipe import KINDS as RECIPES
from rlaif.recipe import SFT, RunConfig, StudyConfig, load_as
from rlaif.stages.train_dpo import DPOConfig
from rlaif.stages.train_rl import RLConfig
from rlaif.stages.train_rm import RewardModelConfig
from rlaif.stages.train_sft import SFTConfig
from rlaif.train.memory import Work, needs
from rlaif.train.rl_memory import rl_needs
from rlaif.train.shapes import Model, read_model

Fitting = SFTConfig | RewardModelConfig | DPOConfig
Section = Fitting | RLConfig
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
    seconds = seconds_of(stage, identity, _steps(config, stage, section), (out, *beside))
    return seconds, size_of(folder)


def seconds_of(
    stage: str, identity: str, steps: float, directories: Sequence[Path]
) -> Figure | None:
    """How long so many steps take from the weights of that identity, by what the runs and studies
    in `directories` took; None where none of them tells."""
    found = [pace for directory in directories for pace in _paces(stage, identity, directory)]
    if not found:
        return None
    return SPREAD.times(exactly(sum(found) / len(found) * steps))


def _paces(stage: str, identity: str, directory: Path) -> list[float]:
    """Seconds a step of the trainings in a folder that start from the same weights."""
    part, cost = _part(directory, PARTS[stage]), _part(directory, "cost")
    if part is None:
        return _paces_of_arms(PARTS[stage], identity, directory)
    if part["base"] != identity or not part["steps"]:
        return []
    # The stage scores as well; run again over what is made already, it took next to nothing.
    stage_s = cost[stage]["seconds"] if cost and stage in cost else 0.0
    return [max(part["seconds"], stage_s) / part["steps"]]


def _paces_of_arms(kind: str, identity: str, directory: Path) -> list[float]:
    """Seconds a step of a study's trainings; scoring is not in it."""
    files = sorted(directory.glob(f"arms/*/{kind}/trained.json"))
    if not files:
        return []
    try:
        config, _ = load_as(RECIPES["human"], None, [], directory)
        assert isinstance(config, StudyConfig)
        start, _ = weights_at(config.dpo.base or config.policy.model)
    except SetupError as e:
        say(f"left out: {e}")
        return []
    try:
        made = [Trained.model_validate_json(file.read_text(encoding="utf-8")) for file in files]
    except ValidationError as e:
        say(f"left out: {directory}: {str(e).splitlines()[0]}")
        return []
    return [of.seconds / of.steps for of in made if start == identity and of.steps]


def size_of(folder: Path | None) -> Figure | None:
    """Bytes of weights that are trained from those in a folder; None where there are none."""
    if folder is None or not (folder / "config.json").is_file():
        return None
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return COPY.times(exactly(sum(file.stat().st_size for file in weights)))


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
        return None if found.step is None else found.most
    return most_of(model, section, config.sample.k)


def most_of(model: Model, section: Fitting, k: int) -> float | None:
    """Bytes that fitting a model to groups of up to `k` responses takes at most; None as in
    `memory`."""
    if section.launch is not None:
        return None
    tokens = section.tokens_at_once
    reward = isinstance(section, RewardModelConfig)
    members = section.members if isinstance(section, RewardModelConfig) else 1
    work = Work(tokens, min(tokens, k * section.max_length), section.max_length)
    found = needs(model, section, work, reward=reward, members=members)
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
    return weights_at(base or config.policy.model)


def weights_at(model: str) -> tuple[str, Path | None]:
    """Identity of the weights that a model string names, and their folder where there is one; it
    may not be unpacked yet. Raises SetupError."""
    name = parse_model(model, "base")
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
    return steps_of(sum(side == "train" for side in splits.values()), section)


def steps_of(groups: int, section: Fitting) -> float:
    """Optimiser steps over so many groups, where none is dropped."""
    batches = math.ceil(groups / section.batch_groups)
    return float(max(math.ceil(batches * section.epochs), 1))


def _part(directory: Path, name: str) -> dict[str, Any] | None:
    """What an earlier run said of a training, whatever has changed there since."""
    path = directory / "parts" / f"{name}.json"
    if not path.is_file():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["value"]
    return value

"""The config of a whole run, and where it stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from rlaif.config import load_config
from rlaif.errors import SetupError
from rlaif.files import find, packaged
from rlaif.judge.config import JudgeConfig
from rlaif.models.pool import (
    ModelConfig,
)
from rlaif.stages import (
    ORDER,
)
from rlaif.stages.compare import CompareConfig
from rlaif.stages.pairs import PairsConfig
from rlaif.stages.revise import ReviseConfig
from rlaif.stages.sample import SampleConfig
from rlaif.stages.train_dpo import DPOConfig
from rlaif.stages.train_rl import RLConfig
from rlaif.stages.train_rm import RewardModelConfig
from rlaif.stages.train_sft import SFTConfig
from rlaif.types import Record
from rlaif.yamlfile import YamlFile

SFT = "run/sft"
"""As a `base`: the policy that train-sft has made in the same run."""
OPTIONAL = {"revise": "revise", "train-sft": "sft", "train-rl": "rl"}
"""Stages that a run has only where its config has their section."""
KINDS = {
    "shots": "makes tables of labeler alignment",
    "human": "is a study of human against AI labels",
}
"""A field that no run has -> what a config with it is for; the first that is there tells."""
TUNING = ("revise", "train-sft")
"""Stages before sampling, which start from the policy as it is named."""


def _one_folder(name: str) -> str:
    # `outputs/<name>` is written to: it must not lead anywhere else.
    if not re.fullmatch(r"[^./\\\0][^/\\\0]*", name):
        raise ValueError(f"found {name!r}; a run's name is one folder's name, without / or \\")
    return name


RunName = Annotated[str, AfterValidator(_one_folder)]
"""Names one folder."""


class RunConfig(Record):
    """A run from the constitution to the report."""

    name: RunName | None = None
    """What the run is called; none: the recipe's file name. It is a folder's name, too."""
    description: str = ""
    """One line for `rlaif recipes`."""
    seed: int = 0
    """Seeds sampling, the split, training and the bootstrap."""
    policy: ModelConfig
    """The model that answers the prompts."""
    revise: ReviseConfig | None = None
    """Have the policy criticise and revise answers by the constitution (SL-CAI); none: do not."""
    sft: SFTConfig | None = None
    """Fine-tune the policy on the final revisions; none: do not."""
    start: Literal["policy", "sft"] = "policy"
    """Where preference learning starts. sft: the answers that are compared are sampled from what
    train-sft made of the policy, and the reward model and DPO start from it where they name no
    base; a base of `run/sft` names it as well."""
    sample: SampleConfig
    judge: JudgeConfig
    pairs: PairsConfig = PairsConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    dpo: DPOConfig = DPOConfig()
    rl: RLConfig | None = None
    """Train another policy by RL against the reward model, from where DPO starts; none: do not."""
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _sft_has_revisions(self) -> Self:
        if self.sft is not None and self.revise is None:
            raise ValueError("sft learns from revisions; add a revise section")
        named = (self.start, self.reward_model.base, self.dpo.base)
        if self.sft is None and ("sft" in named or SFT in named):
            raise ValueError("the run starts from sft, and has no sft section; add one")
        return self

    @model_serializer(mode="wrap")
    def _without_rl(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The config of a run that has no RL, and its hash, are what they were before there was any.
        dumped: dict[str, Any] = plain(self)
        if self.rl is None:
            dumped.pop("rl", None)
        return dumped

    def stages(self) -> tuple[str, ...]:
        """The stages of a whole run."""
        left_out = {s for s, section in OPTIONAL.items() if self.__dict__[section] is None}
        return tuple(stage for stage in ORDER if stage not in left_out)

    def after_sft(self, out: Path) -> Self:
        """The config with the model that train-sft makes in `out` named by its folder."""
        weights = (out / "sft").resolve()
        served = "transformers" if self.compare.engine == "transformers" else "vllm"
        changed: dict[str, Any] = {}
        if self.start == "sft":
            changed["policy"] = self.policy.model_copy(update={"model": f"{served}/{weights}"})
        for section in ("reward_model", "dpo"):
            base = self.__dict__[section].base
            if base == SFT or (base is None and self.start == "sft"):
                update = {"base": f"vllm/{weights}"}
                changed[section] = self.__dict__[section].model_copy(update=update)
        return self.model_copy(update=changed)

    def from_sft(self) -> set[str]:
        """The stages that use the model that train-sft makes."""
        if self.start == "sft":
            return {"sample", "train-rm", "train-dpo", "train-rl", "compare"}
        bases = {
            "train-rm": self.reward_model.base,
            "train-dpo": self.dpo.base,
            "train-rl": self.dpo.base,
        }
        return {stage for stage, base in bases.items() if base == SFT}


def recipes() -> dict[str, str]:
    """Name -> description of the recipes that come with the package."""
    return {
        path.stem: str(YamlFile(path).value.get("description", ""))
        for path in sorted(packaged("recipes").glob("*.yaml"))
    }


def path_of(recipe: str | None, out: Path | None) -> Path:
    """The config file of a recipe, or without one that of the run in `out`. Raises SetupError."""
    if recipe is not None:
        return find("recipes", recipe, ".yaml")
    if out is None:
        raise SetupError("no recipe and no run", fix="name a recipe, or give --out DIR of a run")
    path = out / "config.yaml"
    if not path.is_file():
        raise SetupError("holds no run (no config.yaml)", file=out, fix="name a recipe as well")
    return path


def kind_in(path: Path) -> str | None:
    """The key of KINDS that the config file has; None: it is a run's."""
    value = YamlFile(path).value
    return next((key for key in KINDS if key in value), None)


N = TypeVar("N", bound=Record)


def named(config: N, path: Path, out: Path | None) -> tuple[N, Path]:
    """The config with its file's name where it has none of its own, and its folder."""
    name = config.__dict__["name"] or path.stem
    return config.model_copy(update={"name": name}), out or Path("outputs") / name


def load_run(
    recipe: str | None, overrides: Sequence[str], out: Path | None
) -> tuple[RunConfig, Path]:
    """The config and its run directory (`out`, or `outputs/<name>`).

    Without a recipe the config is that of the run in `out`. Raises SetupError.
    """
    path = path_of(recipe, out)
    if (key := kind_in(path)) is not None:
        raise SetupError(f"{KINDS[key]}, which `rlaif run` and `rlaif plan` alone take", file=path)
    return named(load_config(path, overrides, RunConfig), path, out)

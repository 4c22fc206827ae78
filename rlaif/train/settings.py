"""How to train. Free of torch, so that a config can be read without it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rlaif.errors import SetupError
from rlaif.files import find
from rlaif.train.scale import How
from rlaif.types import Record

Precision = Literal["float32", "bfloat16"]


class LoraSettings(Record):
    """Train low-rank adapters instead of all weights (Hu et al. 2021)."""

    rank: int = Field(default=16, gt=0)
    """Rank of each adapter."""
    alpha: int = Field(default=32, gt=0)
    """An adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the layers that get one; all-linear: every linear layer but the head."""


class TrainSettings(Record):
    """How to train; the same for the reward model, DPO and SFT."""

    learning_rate: float = Field(gt=0.0)
    """Peak learning rate of AdamW; warms up linearly, then falls linearly to zero."""
    epochs: float = Field(gt=0.0)
    """Passes over the groups; a fraction stops inside a pass."""
    batch_groups: int = Field(gt=0)
    """Groups of one optimiser step."""
    tokens_at_once: int = Field(default=4096, gt=0)
    """Tokens computed at once, padding included: memory grows with it, and the result does not
    change. A step of more is taken in parts; a single group of more in two passes."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens that prompt and response may have together; a longer response is dropped, not cut."""
    warmup_ratio: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's decay, of matrices only."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """The gradient's norm is clipped to this."""
    dtype: Precision = "float32"
    """Precision of the forward pass; weights and optimiser stay in float32."""
    gradient_checkpointing: bool = False
    """Keeps less in memory and computes the forward pass twice."""
    lora: LoraSettings | None = None
    """Train adapters on frozen weights; none: train all weights."""
    launch: str | None = None
    """A config file of `accelerate launch`, or `ddp` or `fsdp`, ours: training runs in the
    processes that it starts, to the losses of a single one; none: in this process."""
    checkpoint_minutes: float = Field(default=10.0, gt=0.0)
    """How often to keep what a killed training goes on from."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """What else is told of each step, a run for each training. TensorBoard's files go to
    tensorboard/ in the run, wandb's to wandb/ where rlaif runs, Trackio's to its own cache."""

    @field_validator("launch")
    @classmethod
    def _launch_is_there(cls, name: str | None) -> str | None:
        # Labels are made before it is needed.
        if name is not None:
            try:
                find("launch", name, ".yaml")
            except SetupError as e:
                raise ValueError(str(e)) from e
        return name


class PreferenceSettings(TrainSettings):
    """How to train on preferences; the same for the reward model and DPO."""

    vote: Literal["prompt", "comparison"] = "prompt"
    """What weighs the same: every prompt, however many of its responses were compared (Ouyang et
    al. 2022, eq. 1), or every comparison, as in training on a list of pairs."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Chance that a label is taken to be the wrong way round."""
    margin: float = Field(default=0.0, ge=0.0)
    """Nats that the winner should be ahead by for a certain label, in proportion for a less certain
    one (Touvron et al. 2023, Llama 2, eq. 2)."""
    length_penalty: float = 0.0
    """Nats a token that training credits to length, so that the scores need not learn to (R-DPO,
    Park et al. 2024); 0: none."""


class RewardSettings(PreferenceSettings):
    """How to train a reward model."""

    centring: float = Field(default=0.0, ge=0.0)
    """Weight of the squared sum of two compared scores, which pulls scores around zero (Eisenstein
    et al. 2023, eq. 2); 0.01 is usual."""
    members: int = Field(default=1, ge=1)
    """Reward models in an ensemble (Coste et al. 2023); 1: none. With lora each is an adapter with
    a seed and an order of the data of its own, one after the other; else a head on the one body,
    with groups drawn for it, all at once."""


class DPOSettings(PreferenceSettings):
    """How to train a policy on preferences."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference (Rafailov et al. 2023, eq. 7)."""
    loss: Literal["sigmoid", "ipo", "robust"] = "sigmoid"
    """sigmoid: DPO's own; with label_smoothing the conservative one. ipo: a squared loss, for
    labels that are all but certain, where sigmoid's margins grow without bound (Azar et al. 2023,
    eq. 17). robust: unbiased where labels are flipped at the rate label_smoothing (rDPO, Chowdhury
    et al. 2024)."""
    reference: bool = True
    """false: scores are log-probabilities themselves, as in SimPO; set length_normalised and margin
    with it (Meng et al. 2024, eq. 6)."""
    length_normalised: bool = False
    """Scores are means over tokens instead of sums, so that length by itself moves none."""

    @model_validator(mode="after")
    def _losses_agree(self) -> Self:
        if self.loss == "robust" and self.label_smoothing == 0:
            raise ValueError("loss robust corrects for label_smoothing, which is 0; set it")
        if self.loss == "ipo" and (self.margin or self.label_smoothing):
            raise ValueError("loss ipo has a target of its own; leave margin and label_smoothing 0")
        return self


class ScoringSettings(Record):
    """How a reward model is asked for scores."""

    how: How = "mean"
    """What an ensemble's members make together: their mean, the worst of them, or uncertain: the
    mean less `penalty` times their variance."""
    penalty: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Lambda of `uncertain`, in normalised scores."""
    max_length: int | None = Field(default=None, gt=1)
    """Tokens that prompt and response may have together; none: what the model takes. A longer
    response has no score."""
    dtype: Precision = "float32"
    """Precision of the forward pass; weights stay in float32."""


def check_directory(name: str) -> None:
    """Raises SetupError where `name` is a folder's (it begins with `.`, `/` or `~`, has more than
    one slash, is here, or would lie in a run or beside one) and holds no model: a hub would be
    asked for it in vain."""
    path = Path(name).expanduser()
    local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if not (local or path.exists() or _among_runs(path)) or (path / "config.json").is_file():
        return
    inside = path / "reward_model"
    raise SetupError(
        "is no model directory: it has no config.json" if path.is_dir() else "is not there",
        file=name,
        fix=f"do you mean {inside}?"
        if (inside / "config.json").is_file()
        else "give a directory that save_pretrained wrote, or a hub name",
    )


def _among_runs(path: Path) -> bool:
    # Not any folder: one may be called as an organisation of a hub is.
    folder = path.parent
    return len(path.parts) > 1 and any(
        next(folder.glob(config), None) for config in ("config.yaml", "*/config.yaml")
    )


def require_trackers(settings: TrainSettings, section: str = "") -> None:
    """Raises SetupError for a tracker that is not installed. `section`: where they are set."""
    for name in settings.trackers:
        if importlib.util.find_spec(name) is None:
            raise SetupError(
                f"{name} is not installed",
                field=f"{section}.trackers".lstrip("."),
                fix=f"pip install {name}",
            )


def require_torch() -> None:
    """Raises SetupError that names the extra when the training half is not installed."""
    for module in ("torch", "transformers", "accelerate", "peft"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(
                f"training needs {module}, which is not installed",
                fix="pip install 'rlaif[train]'",
            )

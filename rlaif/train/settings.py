"""How to train. Free of torch, so that a config can be read without it."""

from __future__ import annotations

import importlib.util
from typing import Literal

from pydantic import Field

from rlaif.errors import SetupError
from rlaif.types import Record


class TrainSettings(Record):
    """How to train; the same for the reward model, DPO and SFT."""

    learning_rate: float = Field(gt=0.0)
    """Peak learning rate of AdamW; warms up linearly, then falls linearly to zero."""
    epochs: float = Field(gt=0.0)
    """Passes over the groups; a fraction stops inside a pass."""
    batch_groups: int = Field(gt=0)
    """Groups scored at once; memory grows with it."""
    accumulation: int = Field(default=1, gt=0)
    """Batches that make one optimiser step."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens that prompt and response may have together; a longer response is dropped, not cut."""
    warmup_ratio: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's decay, of matrices only."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """The gradient's norm is clipped to this."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; weights and optimiser stay in float32."""
    gradient_checkpointing: bool = False
    """Keeps less in memory and computes the forward pass twice."""


def require_torch() -> None:
    """Raises SetupError that names the extra when the training half is not installed."""
    for module in ("torch", "transformers", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(
                f"training needs {module}, which is not installed",
                fix="pip install 'rlaif[train]'",
            )

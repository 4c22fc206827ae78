"""rlaif: from a constitution file to preferences, a reward model, a DPO policy and a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.train.reward_model import RewardModel

__version__ = "0.1.0"
__all__ = ["RewardModel", "__version__"]


def __getattr__(name: str) -> Any:
    # torch is imported when somebody scores, not when somebody asks for help.
    if name == "RewardModel":
        from rlaif.train.reward_model import RewardModel

        return RewardModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

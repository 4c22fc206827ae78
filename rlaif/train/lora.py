"""Low-rank adapters (Hu et al. 2021) in place of all weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from rlaif.errors import SetupError
from rlaif.train.settings import LoraSettings

HEAD = "score"


class Adapted:
    """A model with adapters in its linear layers, its own weights frozen.

    `model` is the plain model that they were put into: all that reads its body or its head goes on
    doing so. Adapters begin at zero, so it begins as the base, which is the reference of DPO.
    """

    def __init__(self, base: PreTrainedModel, settings: LoraSettings) -> None:
        reward = HEAD in dict(base.named_children())
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            # A group in two passes is scored twice, and must be scored alike.
            lora_dropout=0.0,
            target_modules=(
                "all-linear" if settings.targets == ("all-linear",) else list(settings.targets)
            ),
            task_type=TaskType.SEQ_CLS if reward else TaskType.CAUSAL_LM,
        )
        try:
            self._peft: Any = get_peft_model(base, config)
        except ValueError as e:
            raise SetupError(
                str(e).splitlines()[0],
                field="lora.targets",
                fix="name linear layers of the model, or leave it at all-linear",
            ) from e
        model: Any = self._peft.get_base_model()
        self.model: PreTrainedModel = model

    def merged(self) -> PreTrainedModel:
        """The base with the adapters added to its weights: a plain model."""
        model: PreTrainedModel = self._peft.merge_and_unload()
        return model

    def save(self, folder: Path) -> None:
        """Writes the adapters alone, as `peft` reads them."""
        peft: PeftModel = self._peft
        peft.save_pretrained(str(folder))

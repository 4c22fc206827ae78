"""How many tokens a local model's own tokenizer makes of a prompt. Loads no weights, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from rlaif.types import Message


def token_counter(folder: Path) -> Callable[[Sequence[Message]], int] | None:
    """Counts the tokens of a conversation as the model would read it, chat template and all; None
    where the tokenizer has no chat template."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if tokenizer.chat_template is None:
        return None

    def count(messages: Sequence[Message]) -> int:
        text = tokenizer.apply_chat_template(
            [message.model_dump() for message in messages],
            add_generation_prompt=True,
            tokenize=False,
        )
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count

"""What supervised fine-tuning reads and measures. Free of torch, so that a stage can make it."""

from __future__ import annotations

from typing import NamedTuple

from rlaif.types import Prompt


class SFTExample(NamedTuple):
    """A prompt and the answer to imitate."""

    prompt: Prompt
    text: str
    ended: bool
    """Whether the answer ended by itself, rather than at the token limit."""


class SFTLoss(NamedTuple):
    """How unlikely a model finds one example's answer."""

    nll: float
    """-log pi(answer | prompt) in nats, summed over the answer's tokens."""
    tokens: int
    """Tokens of the answer."""

"""What every provider of a chat model must give."""

from __future__ import annotations

from abc import ABC, abstractmethod

from rlaif.types import ChatReply, ChatRequest


class ChatModel(ABC):
    """A model that answers chat requests. One instance belongs to one event loop."""

    identity: str
    """What the call store knows the model by: it changes when the answers' distribution would
    (another name, other weights) and only then (not with an address or a port)."""

    gives_logprobs: bool
    """Whether answers can carry the first token's alternatives."""

    max_n: int
    """Most answers that one request may ask for."""

    async def check(self) -> None:  # noqa: B027  optional: most have nothing to ask
        """Asks for something free before paid work starts. Raises SetupError when the model
        cannot be used as it is set up. The default has nothing to ask."""

    @abstractmethod
    async def ask(self, request: ChatRequest) -> ChatReply:
        """Answer one request with `request.sampling.n` choices.

        Raises CallRejected, CallTransient or CallRateLimited. It never retries: one client does.
        """

    async def aclose(self) -> None:  # noqa: B027  optional
        """Give connections back. The default has none."""


def retry_after_s(header: str | None) -> float | None:
    """Seconds from a Retry-After header; None if it is absent or a date."""
    try:
        return float(header) if header is not None else None
    except ValueError:
        return None

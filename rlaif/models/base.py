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

    @abstractmethod
    async def ask(self, request: ChatRequest) -> ChatReply:
        """Answer one request with `request.sampling.n` choices.

        Raises CallRejected, CallTransient or CallRateLimited. It never retries: one client does.
        """

    async def aclose(self) -> None:
        """Give connections back. The default has none."""

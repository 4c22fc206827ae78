"""What every provider of a chat model must give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from rlaif.models.buckets import provider_time
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

    window: int | None = None
    """How many calls the model wants in flight at once, where it is not the user's choice."""

    outlives: bool = False
    """Whether a call that is in flight goes on without this process, and can be taken up again."""

    heard: Callable[[Mapping[str, str]], None] = staticmethod(lambda headers: None)
    """Told the headers (names in lower case) of every response, of refusals too: a limiter reads
    the provider's rate limits there."""

    async def check(self) -> None:  # noqa: B027  optional: most have nothing to ask
        """Asks for something free before paid work starts. Raises SetupError when the model
        cannot be used as it is set up. The default has nothing to ask."""

    async def settle(self) -> None:  # noqa: B027  optional: most keep nothing back
        """No call comes any more: ends at once what can be taken up another time, and returns when
        the calls that cannot have their answers. The default keeps nothing back."""

    async def first_tokens(self, texts: Sequence[str]) -> list[int] | None:
        """The id of the first token that the model's own tokenizer makes of each text, without
        special tokens; None: unknown (the default). Asked after `check`; never raises a
        CallError."""
        return None

    async def probe_logprobs(self) -> bool | None:
        """Whether answers really come with the first token's alternatives; None: cannot tell.

        May ask the model for one token, which is neither stored nor billed. Asked after `check`.
        The default takes `gives_logprobs` at its word.
        """
        return self.gives_logprobs

    @abstractmethod
    async def ask(self, request: ChatRequest) -> ChatReply:
        """Answer one request with `request.sampling.n` choices. With a `request.menu` each is the
        JSON object `{"verdict": X}`, or whatever the model said instead: the reader decides.

        Raises CallRejected, CallTransient or CallRateLimited. It never retries: one client does.
        """

    async def aclose(self) -> None:  # noqa: B027  optional
        """Give connections back. The default has none."""


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the Retry-After of a response says (names in lower case), as a number or as a
    time (RFC 9110, section 10.2.3); None: nothing that can be read."""
    said = headers.get("retry-after")
    if said is None:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            then = parsedate_to_datetime(said).astimezone(UTC)
        except ValueError:
            return None
        return max(0.0, (then - provider_time(headers)).total_seconds())
    return seconds if 0 <= seconds < float("inf") else None


def lower_names(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers as `ChatModel.heard` is told them."""
    return {name.lower(): value for name, value in headers.items()}


def verdict_schema(menu: Sequence[str]) -> dict[str, Any]:
    """JSON Schema of `{"verdict": X}` with X on the menu, as strict as providers want it."""
    return {
        "type": "object",
        "properties": {"verdict": {"type": "string", "enum": list(menu)}},
        "required": ["verdict"],
        "additionalProperties": False,
    }

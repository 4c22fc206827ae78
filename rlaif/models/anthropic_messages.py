"""Anthropic's Messages API (and servers that speak it: ANTHROPIC_BASE_URL)."""

from __future__ import annotations

from typing import cast

import anthropic
from anthropic.types import MessageParam

from rlaif.errors import CallRateLimited, CallRejected, CallTransient, SetupError
from rlaif.models.base import ChatModel, retry_after_s
from rlaif.types import ChatReply, ChatRequest, Choice

FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}


class AnthropicModel(ChatModel):
    """One answer a request; no log-probabilities, so verdicts are read from text.

    The API has no seed: `sampling.seed` only tells calls apart in the store. Models that refuse a
    temperature are asked with `temperature=1.0`, which sends none.
    """

    gives_logprobs = False
    max_n = 1

    def __init__(self, name: str, *, identity: str, api_key: str, timeout_s: float) -> None:
        self.identity = identity
        self._name = name
        self._sdk = anthropic.AsyncAnthropic(api_key=api_key, timeout=timeout_s, max_retries=0)

    async def ask(self, request: ChatRequest) -> ChatReply:
        system = "\n\n".join(m.content for m in request.messages if m.role == "system")
        turns = [
            cast(MessageParam, {"role": m.role, "content": m.content})
            for m in request.messages
            if m.role != "system"
        ]
        sampling = request.sampling
        # Newer models refuse these two and the SDK no longer types them; older ones need them.
        # So they travel as extra fields, and only where they differ from the API's own default.
        extra: dict[str, float] = {}
        if sampling.temperature != 1.0:
            extra["temperature"] = sampling.temperature
        if sampling.top_p != 1.0:
            extra["top_p"] = sampling.top_p
        try:
            reply = await self._sdk.messages.create(
                model=self._name,
                max_tokens=sampling.max_tokens,
                messages=turns,
                system=system or anthropic.omit,
                extra_body=extra,
            )
        except anthropic.APIError as e:
            raise _classify(e) from e
        text = "".join(block.text for block in reply.content if block.type == "text")
        stop = reply.stop_reason or "stop"
        return ChatReply(
            choices=(Choice(text=text, finish_reason=FINISH.get(stop, stop)),),
            prompt_tokens=reply.usage.input_tokens,
            completion_tokens=reply.usage.output_tokens,
        )

    async def aclose(self) -> None:
        await self._sdk.close()


def _classify(error: anthropic.APIError) -> Exception:
    if isinstance(error, anthropic.APITimeoutError | anthropic.APIConnectionError):
        return CallTransient(f"{type(error).__name__}: {error}")
    if isinstance(error, anthropic.AuthenticationError | anthropic.PermissionDeniedError):
        return SetupError("the provider refuses the API key", fix="check ANTHROPIC_API_KEY")
    if isinstance(error, anthropic.NotFoundError):
        return SetupError(f"the provider does not know this model: {error.message}")
    if isinstance(error, anthropic.RateLimitError):
        return CallRateLimited(str(error), retry_after_s(error.response.headers.get("retry-after")))
    if isinstance(error, anthropic.APIStatusError) and error.status_code < 500:
        return CallRejected(f"{error.status_code}: {error.message}")
    return CallTransient(str(error))

"""OpenAI's own API, through the openai SDK. (Servers that only speak it: `served`.)"""

from __future__ import annotations

import json
from collections.abc import Mapping
from json import JSONDecodeError

import openai

from rlaif.errors import CallRateLimited, CallRejected, CallTransient, SetupError
from rlaif.models.base import ChatModel, retry_after_s
from rlaif.models.names import is_final, quoted
from rlaif.models.openai_wire import (
    body_of,
    gave_logprobs,
    probe_body,
    refuses_logprobs,
    reply_of,
)
from rlaif.types import ChatReply, ChatRequest


class OpenAIModel(ChatModel):
    """Chat completions of OpenAI, or of OPENAI_BASE_URL; the SDK's own retries are turned off.

    A reasoning model of OpenAI's refuses another temperature than 1. As a judge it is asked with
    `judge.temperature=1`, `judge.mode=structured` and more `judge.menu_tokens` (where a verdict is
    read from text: `judge.text_verdict_tokens`), since its reasoning counts into them.
    """

    gives_logprobs = True
    max_n = 128

    def __init__(self, name: str, *, identity: str, api_key: str, timeout_s: float) -> None:
        self.identity = identity
        self._name = name
        self._secret = api_key
        self._sdk = openai.AsyncOpenAI(api_key=api_key, timeout=timeout_s, max_retries=0)

    async def ask(self, request: ChatRequest) -> ChatReply:
        body = body_of(request, self._name, official=True)
        try:
            raw = await self._sdk.chat.completions.with_raw_response.create(**body)
            completion = json.loads(raw.text)
        except openai.APIError as e:
            if isinstance(e, openai.APIStatusError):
                self.heard(_lower(e.response.headers))
            raise _classify(e, self._secret) from e
        except (JSONDecodeError, UnicodeDecodeError) as e:
            raise CallTransient("the answer is not JSON") from e
        self.heard(_lower(raw.headers))
        return reply_of(completion, request)

    async def probe_logprobs(self) -> bool | None:
        """Asks for one token, neither stored nor billed. False too where the request is refused in
        words about log-probabilities."""
        try:
            raw = await self._sdk.chat.completions.with_raw_response.create(
                **probe_body(self._name, official=True)
            )
            return gave_logprobs(json.loads(raw.text))
        except openai.APIStatusError as e:
            return refuses_logprobs(e.status_code, e.message)
        except (openai.APIError, JSONDecodeError, UnicodeDecodeError):
            return None

    async def aclose(self) -> None:
        await self._sdk.close()


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _classify(error: openai.APIError, secret: str) -> Exception:
    said = quoted(error.message, secret)
    if isinstance(error, openai.APITimeoutError | openai.APIConnectionError):
        return CallTransient(f"{type(error).__name__}: {said}")
    if isinstance(error, openai.AuthenticationError):
        return SetupError("the provider refuses the API key", fix="check the key's value and scope")
    if isinstance(error, openai.NotFoundError):
        return SetupError(f"the provider does not know this model: {said}")
    if isinstance(error, openai.RateLimitError):
        if error.code == "insufficient_quota":
            return SetupError("the provider's account has no quota left", fix="top it up")
        return CallRateLimited(said, retry_after_s(error.response.headers.get("retry-after")))
    if isinstance(error, openai.APIStatusError) and is_final(error.status_code):
        return CallRejected(said)
    return CallTransient(said)

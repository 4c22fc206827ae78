"""Anthropic's Messages API (and servers that speak it: ANTHROPIC_BASE_URL), live and in batches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Set
from json import JSONDecodeError

import anthropic

from rlaif.callstore.journal import Batch
from rlaif.errors import CallError, CallRateLimited, CallRejected, CallTransient, SetupError
from rlaif.models.anthropic_wire import body_of, reply_of, shared_until
from rlaif.models.base import ChatModel, lower_names, retry_after_s
from rlaif.models.batch import CLOCKS_S, BatchGone, BatchProvider, Raw
from rlaif.models.names import is_final, quoted
from rlaif.types import ChatReply, ChatRequest

KEY, TOKEN = "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"
LEAST_CACHED = 3000
"""Characters: a shorter prefix is under the 1,024 tokens that a cache takes, so no call waits for
another one to write it."""


class AnthropicModel(ChatModel, BatchProvider):
    """One answer a request; no log-probabilities, so verdicts are read from text.

    The API has no seed: `sampling.seed` only tells calls apart in the store. Models that refuse a
    temperature are asked with `temperature=1.0`, which sends none.

    A request with a menu makes the model call a tool whose input is the verdict. A vLLM server
    takes a forced tool only if it was started with `--tool-call-parser`.

    What a request shares with others ends at a cache breakpoint. The first call with a prefix goes
    ahead and writes the cache; the others wait for it and read.
    """

    gives_logprobs = False
    max_n = 1
    most = 100_000

    def __init__(
        self,
        name: str,
        *,
        identity: str,
        timeout_s: float,
        api_key: str | None = None,
        auth_token: str | None = None,
    ) -> None:
        """One of `api_key` and `auth_token`; the token always travels as `Authorization: Bearer`,
        which is what a vLLM server wants."""
        self.identity = identity
        self._name = name
        self._secret = api_key or auth_token or ""
        self._sdk = anthropic.AsyncAnthropic(
            api_key=api_key, auth_token=auth_token, timeout=timeout_s, max_retries=0
        )
        self._writing: dict[str, asyncio.Event] = {}

    async def ask(self, request: ChatRequest) -> ChatReply:
        prefix = _prefix(request)
        if not prefix:
            return await self._ask(request)
        if (written := self._writing.get(prefix)) is not None:
            await written.wait()
            return await self._ask(request)
        self._writing[prefix] = written = asyncio.Event()
        try:
            return await self._ask(request)
        finally:
            written.set()
            if len(self._writing) > 1000:
                self._writing = {p: e for p, e in self._writing.items() if not e.is_set()}

    async def _ask(self, request: ChatRequest) -> ChatReply:
        body = body_of(request, self._name)
        # The SDK no longer types what newer models refuse.
        extra = {name: body.pop(name) for name in ("temperature", "top_p") if name in body}
        try:
            raw = await self._sdk.messages.with_raw_response.create(**body, extra_body=extra)
            message = json.loads(raw.http_response.text)
        except anthropic.APIError as e:
            if isinstance(e, anthropic.APIStatusError):
                self.heard(lower_names(e.response.headers))
            raise _classify(e, self._secret) from e
        except (JSONDecodeError, UnicodeDecodeError) as e:
            raise CallTransient("the answer is not JSON") from e
        self.heard(lower_names(raw.headers))
        return reply_of(message)

    async def submit(self, requests: Mapping[str, ChatRequest], token: str) -> str:
        try:
            batch = await self._sdk.messages.batches.create(
                requests=[
                    {"custom_id": key, "params": body_of(r, self._name)}  # type: ignore[typeddict-item]
                    for key, r in requests.items()
                ]
            )
        except anthropic.APIError as e:
            raise _classify(e, self._secret) from e
        return batch.id

    async def find(self, batch: Batch, known: Set[str]) -> str | None:
        """The API keeps no token: a batch of as many calls, made since then, that is not known.
        Whose it is shows when its results come, by their keys."""
        try:
            async for held in self._sdk.messages.batches.list(limit=100):
                if held.created_at.timestamp() < batch.created - CLOCKS_S:
                    break
                counts = held.request_counts
                total = (
                    counts.processing + counts.succeeded + counts.errored + counts.canceled
                ) + counts.expired
                if total == len(batch.keys) and held.id not in known:
                    return held.id
        except anthropic.APIError as e:
            raise _classify(e, self._secret) from e
        return None

    async def has_ended(self, batch: str) -> bool:
        try:
            found = await self._sdk.messages.batches.retrieve(batch)
        except anthropic.NotFoundError as e:
            raise BatchGone from e
        except anthropic.APIError as e:
            raise _classify(e, self._secret) from e
        return found.processing_status == "ended"

    async def results(self, batch: str) -> AsyncIterator[tuple[str, Raw | CallError]]:
        try:
            async for one in await self._sdk.messages.batches.results(batch):
                yield one.custom_id, _result(one.result.to_dict())
        except anthropic.NotFoundError as e:
            raise BatchGone from e
        except anthropic.APIError as e:
            raise _classify(e, self._secret) from e

    def read(self, raw: Raw, request: ChatRequest) -> ChatReply:
        return reply_of(raw)

    async def aclose(self) -> None:
        await self._sdk.close()


def _prefix(request: ChatRequest) -> str:
    """What other calls say, too, up to the breakpoint; empty if it is too short for a cache."""
    last, shared = shared_until(request)
    if last < 0:
        return ""
    before = "".join(f"{m.role}\0{m.content}\0" for m in request.messages[:last])
    text = before + request.messages[last].content[:shared]
    return text if len(text) >= LEAST_CACHED else ""


def _result(result: Raw) -> Raw | CallError:
    match result:
        case {"type": "succeeded", "message": dict(message)}:
            return message
        case {"type": "errored", "error": {"error": {"type": str(kind), "message": str(said)}}}:
            final = kind in ("invalid_request_error", "request_too_large", "not_found_error")
            text = quoted(f"{kind}: {said}", "")
            return CallRejected(text) if final else CallTransient(text)
        case {"type": str(kind)}:
            return CallTransient(f"the batch ended before this call was answered: {kind}")
    return CallTransient("the batch says nothing of this call")


def _classify(error: anthropic.APIError, secret: str) -> Exception:
    said = quoted(error.message, secret)
    if isinstance(error, anthropic.APITimeoutError | anthropic.APIConnectionError):
        return CallTransient(f"{type(error).__name__}: {said}")
    if isinstance(error, anthropic.AuthenticationError):
        return SetupError("the provider refuses the API key", fix=f"check {KEY} or {TOKEN}")
    if isinstance(error, anthropic.NotFoundError):
        return SetupError(f"the provider does not know this model: {said}")
    if isinstance(error, anthropic.RateLimitError):
        return CallRateLimited(said, retry_after_s(lower_names(error.response.headers)))
    if not isinstance(error, anthropic.APIStatusError):
        return CallTransient(said)
    if is_final(error.status_code):
        return CallRejected(said)
    return CallTransient(said, retry_after_s(lower_names(error.response.headers)))

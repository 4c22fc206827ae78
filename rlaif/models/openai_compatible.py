"""OpenAI's own API, through the openai SDK. (Servers that only speak it: `served`.)"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Set
from json import JSONDecodeError
from typing import Any, Literal

import openai

from rlaif.callstore.journal import Batch
from rlaif.errors import CallError, CallRateLimited, CallRejected, CallTransient
from rlaif.models.base import lower_names
from rlaif.models.batch import BatchGone, BatchProvider, BatchRefused, Raw
from rlaif.models.names import is_final, quoted
from rlaif.models.openai_wire import SpeaksOpenAI, body_of, refusal, reply_of
from rlaif.types import ChatReply, ChatRequest

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
TOKEN = "rlaif"
"""Name of the metadata by which a batch of ours is found again."""

LOOKED_AT = 2000
"""Most batches of an account among which a lost one is looked for."""


class OpenAIModel(SpeaksOpenAI, BatchProvider):
    """Chat completions of OpenAI, or of OPENAI_BASE_URL; the SDK's own retries are turned off.

    A reasoning model of OpenAI's refuses another temperature than 1. As a judge it is asked with
    `judge.temperature=1`, `judge.mode=structured` and more `judge.menu_tokens` (where a verdict is
    read from text: `judge.text_verdict_tokens`), since its reasoning counts into them.
    """

    official = True
    most = 50_000

    def __init__(self, name: str, *, identity: str, api_key: str, timeout_s: float) -> None:
        super().__init__(name, identity, api_key)
        self._sdk = openai.AsyncOpenAI(api_key=api_key, timeout=timeout_s, max_retries=0)

    async def complete(self, body: Mapping[str, Any]) -> Any:
        try:
            raw = await self._sdk.chat.completions.with_raw_response.create(**body)
            completion = json.loads(raw.text)
        except openai.APIError as e:
            if isinstance(e, openai.APIStatusError):
                self.heard(lower_names(e.response.headers))
            raise _classify(e, self._secret) from e
        except (JSONDecodeError, UnicodeDecodeError) as e:
            raise CallTransient("the answer is not JSON") from e
        self.heard(lower_names(raw.headers))
        return completion

    async def submit(self, requests: Mapping[str, ChatRequest], token: str) -> str:
        lines = [
            json.dumps(
                {
                    "custom_id": key,
                    "method": "POST",
                    "url": ENDPOINT,
                    "body": body_of(request, self._name, official=True),
                }
            )
            for key, request in requests.items()
        ]
        try:
            file = await self._sdk.files.create(
                file=("calls.jsonl", "\n".join(lines).encode()), purpose="batch"
            )
            batch = await self._sdk.batches.create(
                input_file_id=file.id,
                endpoint=ENDPOINT,
                completion_window="24h",
                metadata={TOKEN: token},
            )
        except openai.APIError as e:
            raise _classify(e, self._secret) from e
        return batch.id

    async def find(self, batch: Batch, known: Set[str]) -> str | None:
        # Newest first, and by our token alone: a clock that is wrong must not hide it.
        looked = 0
        try:
            async for held in self._sdk.batches.list(limit=100):
                if held.metadata and held.metadata.get(TOKEN) == batch.token:
                    return held.id
                looked += 1
                if looked == LOOKED_AT:
                    break
        except openai.APIError as e:
            raise _classify(e, self._secret) from e
        return None

    async def has_ended(self, batch: str) -> bool:
        try:
            found = await self._sdk.batches.retrieve(batch)
        except openai.NotFoundError as e:
            raise BatchGone from e
        except openai.APIError as e:
            raise _classify(e, self._secret) from e
        if found.status == "failed":
            errors = (found.errors.data if found.errors else None) or []
            said = quoted("; ".join(e.message or "" for e in errors), self._secret)
            if any(e.code == "token_limit_exceeded" for e in errors):
                raise BatchRefused(CallRateLimited(said))
            raise BatchRefused(CallRejected(said or "the batch was refused"))
        return found.status in ("completed", "expired", "cancelled")

    async def results(self, batch: str) -> AsyncIterator[tuple[str, Raw | CallError]]:
        try:
            found = await self._sdk.batches.retrieve(batch)
            for file in (found.output_file_id, found.error_file_id):
                if file is not None:
                    content = await self._sdk.files.content(file)
                    for line in content.text.splitlines():
                        if line.strip():
                            row = json.loads(line)
                            yield row["custom_id"], _result(row)
        except openai.NotFoundError as e:
            raise BatchGone from e
        except openai.APIError as e:
            raise _classify(e, self._secret) from e
        except (JSONDecodeError, LookupError) as e:
            raise CallTransient("the batch's results cannot be read") from e

    def read(self, raw: Raw, request: ChatRequest) -> ChatReply:
        return reply_of(raw, request)

    async def aclose(self) -> None:
        await self._sdk.close()


def _result(row: Raw) -> Raw | CallError:
    """One line of a batch's output or error file."""
    response, error = row.get("response"), row.get("error")
    if response is not None and response["status_code"] == 200:
        body: Raw = response["body"]
        return body
    said = error["message"] if error else str((response or {}).get("body", "no answer"))
    status = (response or {}).get("status_code", 500)
    text = quoted(f"{error['code'] if error else status}: {said}", "")
    final = error is None and is_final(status) and status != 429
    return CallRejected(text) if final else CallTransient(text)


def _classify(error: openai.APIError, secret: str) -> Exception:
    said = quoted(error.message, secret)
    if isinstance(error, openai.APITimeoutError | openai.APIConnectionError):
        return CallTransient(f"{type(error).__name__}: {said}")
    if not isinstance(error, openai.APIStatusError):
        return CallTransient(said)
    return refusal(
        error.status_code,
        said,
        error.code,
        lower_names(error.response.headers),
        who="the provider",
        key="OPENAI_API_KEY, its value and scope",
    )

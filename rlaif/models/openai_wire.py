"""OpenAI's chat completions, whoever serves them: what goes out for a request, and what an answer
or a refusal says."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ValidationError

from rlaif.errors import CallError, CallRateLimited, CallRejected, CallTransient, SetupError
from rlaif.models.base import ChatModel, retry_after_s, verdict_schema
from rlaif.models.names import is_final
from rlaif.types import ChatReply, ChatRequest, Choice, TokenLogprob

MOST_ALTERNATIVES = 20
PROBE = "Answer with one letter: A or B."


class SpeaksOpenAI(ChatModel):
    """A model behind chat completions."""

    gives_logprobs = True
    max_n = 128
    official: ClassVar[bool]
    """Whether it is OpenAI itself that answers."""

    def __init__(self, name: str, identity: str, secret: str) -> None:
        """`secret`: the key, which no message quotes."""
        self.identity = identity
        self._name = name
        self._secret = secret

    @abstractmethod
    async def complete(self, body: Mapping[str, Any]) -> Any:
        """The JSON of a good answer. Raises as `ask` does, SetupError too."""

    async def ask(self, request: ChatRequest) -> ChatReply:
        body = body_of(request, self._name, official=self.official)
        return reply_of(await self.complete(body), request)

    async def probe_logprobs(self) -> bool | None:
        """Asks for one token, neither stored nor billed. False too where the request is refused in
        words about log-probabilities."""
        try:
            return gave_logprobs(
                await self.complete(probe_body(self._name, official=self.official))
            )
        except CallRejected as e:
            in_words = re.search("log_?prob", str(e), re.IGNORECASE)
            return False if e.status in (400, 422) and in_words else None
        except (CallError, SetupError):
            return None


def refusal(
    status: int, said: str, code: str | None, headers: Mapping[str, str], *, who: str, key: str
) -> Exception:
    """What an answer other than 200 means. `who` refuses, and `key` is what to check where it
    refuses the key; `headers` in lower case."""
    if status == 401:
        return SetupError(f"{who} refuses the API key", fix=f"check {key}")
    if status == 404:
        return SetupError(f"the provider does not know this model: {said}")
    if status == 429:
        if code == "insufficient_quota":
            return SetupError("the provider's account has no quota left", fix="top it up")
        return CallRateLimited(said, retry_after_s(headers))
    if is_final(status):
        return CallRejected(said, status=status)
    return CallTransient(said, retry_after_s(headers))


def body_of(request: ChatRequest, name: str, *, official: bool) -> dict[str, Any]:
    """The body of `POST /chat/completions`; `official`: as OpenAI itself wants it."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": name,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        limit_field(official=official): sampling.max_tokens,
    }
    # Reasoning models of OpenAI's refuse what differs from 1, and top_p even at 1. On other
    # servers the default need not be 1.
    if sampling.temperature != 1 or not official:
        body["temperature"] = sampling.temperature
    if sampling.top_p != 1 or not official:
        body["top_p"] = sampling.top_p
    if sampling.n != 1 or not official:
        body["n"] = sampling.n
    # Other servers keep the seed out: vLLM 0.32 on a CPU dies of a request with a seed ("CPU
    # Generator does not use offset"). There it only tells calls apart in the store.
    if official and sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    if sampling.token_ids:
        body["return_token_ids"] = True  # vLLM's own
    if request.menu:
        schema = verdict_schema(request.menu)
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": schema},
        }
    return body


def probe_body(name: str, *, official: bool) -> dict[str, Any]:
    """Asks for one token with its alternatives."""
    return {
        "model": name,
        "messages": [{"role": "user", "content": PROBE}],
        "logprobs": True,
        "top_logprobs": MOST_ALTERNATIVES,
        limit_field(official=official): 1,
    }


def gave_logprobs(completion: Any) -> bool | None:
    """Whether the answer to `probe_body` has alternatives; None: it is no answer."""
    try:
        return bool(read_completion(completion, structured=False).choices[0].first_token)
    except CallError:
        return None


def limit_field(*, official: bool) -> str:
    # Servers older than OpenAI's rename only know max_tokens; OpenAI's newest models refuse it.
    return "max_completion_tokens" if official else "max_tokens"


def reply_of(completion: Any, request: ChatRequest) -> ChatReply:
    """The answer to `request` in a chat completion. Raises CallTransient for what is none, and
    CallRejected for one without usage, or with another number of choices than was asked for."""
    reply = read_completion(completion, structured=bool(request.menu))
    if len(reply.choices) != request.sampling.n:
        raise CallRejected(
            f"asked for {request.sampling.n} answers in one request, got {len(reply.choices)}",
            paid=True,
        )
    return reply


def read_completion(completion: Any, *, structured: bool) -> ChatReply:
    """`structured`: a refusal comes in a field of its own, and is what the model said."""
    given = bool(isinstance(completion, dict) and completion.get("choices"))
    try:
        choices = tuple(_choice(c, structured=structured) for c in completion["choices"])
    except (LookupError, AttributeError, TypeError, ValidationError) as e:
        raise CallTransient("the answer is not a chat completion", paid=given) from e
    if not given:
        raise CallTransient("the answer has no choices")
    try:
        usage = completion["usage"]
        details = usage.get("prompt_tokens_details") or {}
        return ChatReply(
            choices=choices,
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            cached_tokens=details.get("cached_tokens") or 0,
        )
    except (LookupError, AttributeError, TypeError, ValidationError) as e:
        # A server that leaves it out once leaves it out always.
        raise CallRejected("the answer does not say what it used (usage)", paid=True) from e


def _choice(choice: Mapping[str, Any], *, structured: bool) -> Choice:
    message = choice["message"]
    return Choice(
        text=(structured and message.get("refusal")) or message.get("content") or "",
        finish_reason=choice["finish_reason"],
        first_token=_first_token(choice.get("logprobs")),
        token_ids=tuple(choice.get("token_ids") or ()),
    )


def _first_token(logprobs: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    if not logprobs or not logprobs.get("content"):
        return ()
    return tuple(
        TokenLogprob(token=t["token"], logprob=t["logprob"])
        for t in logprobs["content"][0]["top_logprobs"]
    )

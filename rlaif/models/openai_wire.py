"""The JSON of OpenAI's chat completions: what goes out for a request, and what an answer says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rlaif.errors import CallError, CallRejected, CallTransient
from rlaif.models.base import verdict_schema
from rlaif.types import ChatReply, ChatRequest, Choice, TokenLogprob

MOST_ALTERNATIVES = 20
PROBE = "Answer with one letter: A or B."


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


def refuses_logprobs(status: int, said: str) -> bool | None:
    """What a refusal of `probe_body` tells: False where it is in words about log-probabilities."""
    in_words = re.search("log_?prob", said, re.IGNORECASE)
    return False if status in (400, 422) and in_words else None


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

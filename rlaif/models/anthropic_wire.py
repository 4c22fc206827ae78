"""The JSON of Anthropic's Messages API: what goes out for a request, and what an answer says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.errors import CallRejected, CallTransient
from rlaif.files import canonical
from rlaif.models.base import verdict_schema
from rlaif.types import ChatReply, ChatRequest, Choice, SharedMessage

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "stop",
    "max_tokens": "length",
}
VERDICT = "verdict"
CACHE = {"type": "ephemeral"}


def body_of(request: ChatRequest, name: str) -> dict[str, Any]:
    """The body of `POST /v1/messages`."""
    sampling = request.sampling
    border = shared_until(request)
    turns = [
        {"role": m.role, "content": _content(m.content, border[1] if i == border[0] else 0)}
        for i, m in enumerate(request.messages)
        if m.role != "system"
    ]
    body: dict[str, Any] = {"model": name, "max_tokens": sampling.max_tokens, "messages": turns}
    system = "\n\n".join(m.content for m in request.messages if m.role == "system")
    if system:
        body["system"] = system
    # Newer models refuse these two; older ones need them. So they are sent only where they differ
    # from the API's own default.
    if sampling.temperature != 1.0:
        body["temperature"] = sampling.temperature
    if sampling.top_p != 1.0:
        body["top_p"] = sampling.top_p
    if request.menu:
        body["tools"] = [
            {
                "name": VERDICT,
                "description": "Gives your verdict.",
                "input_schema": verdict_schema(request.menu),
            }
        ]
        body["tool_choice"] = {"type": "tool", "name": VERDICT}
    return body


def shared_until(request: ChatRequest) -> tuple[int, int]:
    """Message and character up to which other calls say the same; (-1, 0) where nothing is known
    to be shared."""
    for i in range(len(request.messages) - 1, -1, -1):
        if isinstance(message := request.messages[i], SharedMessage):
            return i, message.shared
    return -1, 0


def _content(text: str, shared: int) -> str | list[dict[str, Any]]:
    """Text, or two blocks with a cache breakpoint between them. What is too short for a cache
    (1,024 tokens and more, by model) is neither cached nor billed for it."""
    if not shared:
        return text
    return [
        {"type": "text", "text": text[:shared], "cache_control": CACHE},
        {"type": "text", "text": text[shared:]},
    ]


def reply_of(message: Any) -> ChatReply:
    """The answer in a message. Raises CallTransient for what is none, and CallRejected for one
    without usage."""
    given = bool(isinstance(message, dict) and message.get("content"))
    try:
        blocks = message["content"]
        # Two verdicts stand on two lines, which is no JSON object: neither counts.
        text = "\n".join(
            canonical(block["input"])
            for block in blocks
            if block["type"] == "tool_use" and block["name"] == VERDICT
        ) or "".join(block["text"] for block in blocks if block["type"] == "text")
        stop = message["stop_reason"] or "stop"
        choice = Choice(text=text, finish_reason=FINISH.get(stop, stop))
    except (LookupError, AttributeError, TypeError, ValueError) as e:
        raise CallTransient("the answer is not a message of the Messages API", paid=given) from e
    try:
        usage: Mapping[str, Any] = message["usage"]
        read = usage.get("cache_read_input_tokens") or 0
        written = usage.get("cache_creation_input_tokens") or 0
        return ChatReply(
            choices=(choice,),
            # The API leaves what a cache served or took out of its input_tokens.
            prompt_tokens=usage["input_tokens"] + read + written,
            completion_tokens=usage["output_tokens"],
            cached_tokens=read,
            cache_write_tokens=written,
        )
    except (LookupError, AttributeError, TypeError, ValueError) as e:
        raise CallRejected("the answer does not say what it used (usage)", paid=True) from e

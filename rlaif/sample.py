"""K answers of the policy to every prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rlaif.callstore import call_key
from rlaif.errors import CallError
from rlaif.models.client import Client
from rlaif.types import ChatRequest, Choice, Prompt, Response, Sampling


class Sampled(NamedTuple):
    responses: list[Response]
    """In the order of the prompts; `<prompt id>/<index>`."""
    failed: list[CallError]
    """The calls that gave nothing."""
    unusable: dict[str, int]
    """Reason -> answers that came but are none: filtered, refused by the API, or without text."""


async def sample(
    prompts: Sequence[Prompt],
    k: int,
    sampling: Sampling,
    client: Client,
    advance: Callable[[int, str], None],
) -> Sampled:
    """Asks for `k` answers a prompt, as many in one request as the model allows (`sampling.n` is
    set here)."""
    per_call = min(k, client.model.max_n)
    requests = [
        (
            prompt,
            ChatRequest(
                model=client.model.identity,
                messages=prompt.messages,
                sampling=sampling.model_copy(update={"n": min(per_call, k - start)}),
                repeat=start // per_call,
            ),
        )
        for prompt in prompts
        for start in range(0, k, per_call)
    ]
    answers = await client.ask_all([request for _, request in requests], advance)
    responses: list[Response] = []
    failed: list[CallError] = []
    unusable: Counter[str] = Counter()
    for (prompt, request), answer in zip(requests, answers, strict=True):
        if isinstance(answer, CallError):
            failed.append(answer)
            continue
        start = request.repeat * per_call
        for i, choice in enumerate(answer.choices):
            if reason := _unusable(choice):
                unusable[reason] += 1
                continue
            responses.append(
                Response(
                    id=f"{prompt.id}/{start + i}",
                    prompt_id=prompt.id,
                    text=choice.text.strip(),
                    finish_reason=choice.finish_reason,
                    model=client.model.identity,
                    call=call_key(request),
                )
            )
    return Sampled(responses, failed, dict(sorted(unusable.items())))


def _unusable(choice: Choice) -> str:
    """Why a choice is no answer of the policy; empty if it is one."""
    if choice.finish_reason not in ("stop", "length"):
        return f"finish_reason {choice.finish_reason}"
    return "" if choice.text.strip() else "no text"

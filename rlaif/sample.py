"""K answers of the policy to every prompt."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from rlaif.callstore import call_key
from rlaif.errors import CallError
from rlaif.models.client import Answer, Client
from rlaif.models.flow import Stream, flow
from rlaif.progress import Spent
from rlaif.types import ChatRequest, Choice, Prompt, Response, Sampling


class Drawn(NamedTuple):
    """An answer's tokens, as the policy drew them."""

    prompt: Prompt
    token_ids: tuple[int, ...]


class Answered(NamedTuple):
    """What came of one prompt."""

    prompt: Prompt
    responses: list[Response]
    """In the order of their index; `<prompt id>/<index>`."""
    failed: list[CallError]
    """The calls that gave nothing."""
    unusable: list[str]
    """Why answers that came are none: filtered, refused by the API, or without text."""
    drawn: list[Drawn]
    """Each answer, those without text as well, where the sampling asks for tokens: a mean over the
    policy's draws leaves none out."""


class Sampled(NamedTuple):
    responses: list[Response]
    """In the order of the prompts."""
    failed: list[CallError]
    unusable: dict[str, int]
    """Reason -> answers."""
    drawn: list[Drawn]
    """As in `Answered`."""


def calls_a_prompt(k: int, max_n: int) -> int:
    """How many calls bring `k` answers, `max_n` a call at most."""
    return -(-k // min(k, max_n))


async def sample_each(
    prompts: Stream[Prompt],
    k: int,
    sampling: Sampling,
    client: Client,
    hand_over: Callable[[Answered], Awaitable[None] | None],
) -> None:
    """Hands over the `k` answers to each prompt, in the order of the prompts; as many are asked for
    in one request as the model allows (`sampling.n` is set here)."""
    per_call = min(k, client.model.max_n)

    async def answer(prompt: Prompt) -> Answered:
        requests = [
            ChatRequest(
                model=client.model.identity,
                messages=prompt.messages,
                sampling=sampling.model_copy(update={"n": min(per_call, k - start)}),
                repeat=start // per_call,
            )
            for start in range(0, k, per_call)
        ]
        if len(requests) == 1:
            answers = [await client.ask(requests[0])]
        else:
            answers = await asyncio.gather(*(client.ask(r) for r in requests))
        return _read(prompt, requests, answers, per_call)

    await flow(prompts, answer, hand_over, window=client.window)


async def sample(
    prompts: Sequence[Prompt],
    k: int,
    sampling: Sampling,
    client: Client,
    advance: Callable[[int, Spent], None],
) -> Sampled:
    """All answers to all prompts; see `sample_each`. `advance` counts prompts."""
    responses: list[Response] = []
    failed: list[CallError] = []
    unusable: Counter[str] = Counter()
    drawn: list[Drawn] = []
    prompts_done = 0

    def told(found: Answered) -> None:
        nonlocal prompts_done
        prompts_done += 1
        responses.extend(found.responses)
        failed.extend(found.failed)
        unusable.update(found.unusable)
        drawn.extend(found.drawn)
        advance(prompts_done, client.note)

    await sample_each(prompts, k, sampling, client, told)
    return Sampled(responses, failed, dict(sorted(unusable.items())), drawn)


def _read(
    prompt: Prompt, requests: Sequence[ChatRequest], answers: Sequence[Answer], per_call: int
) -> Answered:
    found = Answered(prompt, [], [], [], [])
    for request, answer in zip(requests, answers, strict=True):
        if isinstance(answer, CallError):
            found.failed.append(answer)
            continue
        key = call_key(request)
        for i, choice in enumerate(answer.choices, request.repeat * per_call):
            if choice.token_ids:
                found.drawn.append(Drawn(prompt, choice.token_ids))
            if reason := _unusable(choice):
                found.unusable.append(reason)
                continue
            found.responses.append(
                Response(
                    id=f"{prompt.id}/{i}",
                    prompt_id=prompt.id,
                    text=choice.text.strip(),
                    finish_reason=choice.finish_reason,
                    model=request.model,
                    call=key,
                )
            )
    return found


def _unusable(choice: Choice) -> str:
    """Why a choice is no answer of the policy; empty if it is one."""
    if choice.finish_reason not in ("stop", "length"):
        return f"finish_reason {choice.finish_reason}"
    return "" if choice.text.strip() else "no text"

"""OpenAI's API and every server that speaks it (our managed vLLM among them)."""

from __future__ import annotations

from typing import Any

import openai
from openai.types.chat import ChatCompletion

from rlaif.errors import CallRateLimited, CallRejected, CallTransient, SetupError
from rlaif.models.base import ChatModel, retry_after_s
from rlaif.types import ChatReply, ChatRequest, Choice, TokenLogprob


class OpenAIModel(ChatModel):
    """Chat completions through the openai SDK, with its own retries turned off."""

    gives_logprobs = True
    max_n = 128

    def __init__(
        self,
        name: str,
        *,
        identity: str,
        api_key: str,
        base_url: str | None,
        timeout_s: float,
    ) -> None:
        """`base_url` None is OpenAI itself (or OPENAI_BASE_URL)."""
        self.identity = identity
        self._name = name
        self._official = base_url is None
        self._sdk = openai.AsyncOpenAI(
            api_key=api_key, base_url=base_url, timeout=timeout_s, max_retries=0
        )

    async def check(self) -> None:
        if self._official:
            return
        where = str(self._sdk.base_url)
        try:
            served = [model.id async for model in self._sdk.models.list()]
        except openai.APIConnectionError as e:
            raise SetupError(
                f"no server answers at {where}", fix="start it, or mend the address in model"
            ) from e
        except openai.AuthenticationError as e:
            raise SetupError(
                f"the server at {where} refuses the key", fix="set RLAIF_HTTP_API_KEY"
            ) from e
        except openai.APIStatusError:
            return  # not every compatible server lists its models
        if served and self._name not in served:
            raise SetupError(
                f"the server at {where} does not serve {self._name!r}",
                fix=f"it serves: {', '.join(served)}",
            )

    async def ask(self, request: ChatRequest) -> ChatReply:
        sampling = request.sampling
        # Servers older than OpenAI's rename only know max_tokens; OpenAI's newest models refuse it.
        limit = "max_completion_tokens" if self._official else "max_tokens"
        options: dict[str, Any] = {
            limit: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "n": sampling.n,
        }
        # Other servers keep the seed out: vLLM 0.32 on a CPU dies of a request with a seed ("CPU
        # Generator does not use offset"). There it only tells calls apart in the store.
        if self._official and sampling.seed is not None:
            options["seed"] = sampling.seed
        if sampling.top_logprobs:
            options |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        try:
            completion: ChatCompletion = await self._sdk.chat.completions.create(
                model=self._name,
                messages=[m.model_dump() for m in request.messages],  # type: ignore[misc]
                **options,
            )
        except openai.APIError as e:
            raise _classify(e) from e
        return _reply(completion)

    async def aclose(self) -> None:
        await self._sdk.close()


def _reply(completion: ChatCompletion) -> ChatReply:
    choices = []
    for choice in completion.choices:
        first: tuple[TokenLogprob, ...] = ()
        if choice.logprobs is not None and choice.logprobs.content:
            first = tuple(
                TokenLogprob(token=t.token, logprob=t.logprob)
                for t in choice.logprobs.content[0].top_logprobs
            )
        choices.append(
            Choice(
                text=choice.message.content or "",
                finish_reason=choice.finish_reason,
                first_token=first,
            )
        )
    if not choices or completion.usage is None:
        raise CallTransient("the server answered without choices or without usage")
    return ChatReply(
        choices=tuple(choices),
        prompt_tokens=completion.usage.prompt_tokens,
        completion_tokens=completion.usage.completion_tokens,
    )


def _classify(error: openai.APIError) -> Exception:
    if isinstance(error, openai.APITimeoutError | openai.APIConnectionError):
        return CallTransient(f"{type(error).__name__}: {error}")
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return SetupError("the provider refuses the API key", fix="check the key's value and scope")
    if isinstance(error, openai.NotFoundError):
        return SetupError(f"the provider does not know this model: {error.message}")
    if isinstance(error, openai.RateLimitError):
        if error.code == "insufficient_quota":
            return SetupError("the provider's account has no quota left", fix="top it up")
        return CallRateLimited(str(error), retry_after_s(error.response.headers.get("retry-after")))
    if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return CallRejected(f"{error.status_code}: {error.message}")
    return CallTransient(str(error))

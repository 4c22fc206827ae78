"""OpenAI's API and every server that speaks it (our managed vLLM among them)."""

from __future__ import annotations

from json import JSONDecodeError
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import ChoiceLogprobs
from pydantic import ValidationError

from rlaif.errors import CallRateLimited, CallRejected, CallTransient, SetupError
from rlaif.models.base import ChatModel, retry_after_s
from rlaif.models.names import is_final, quoted
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
        self._secret = api_key
        # A proxy from the environment stands between us and the world, not between us and us.
        local = base_url is not None and urlsplit(base_url).hostname in ("127.0.0.1", "localhost")
        self._sdk = openai.AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            timeout=timeout_s,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if local else None,
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
        except (openai.APIError, JSONDecodeError, AttributeError, TypeError):
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
            raise _classify(e, self._secret) from e
        except (JSONDecodeError, UnicodeDecodeError) as e:
            raise CallTransient("the answer is not JSON") from e
        reply = _reply(completion)
        if len(reply.choices) != sampling.n:
            raise CallRejected(
                f"asked for {sampling.n} answers in one request, got {len(reply.choices)}"
            )
        return reply

    async def aclose(self) -> None:
        await self._sdk.close()


def _reply(completion: ChatCompletion) -> ChatReply:
    try:
        return ChatReply(
            choices=tuple(
                Choice(
                    text=choice.message.content or "",
                    finish_reason=choice.finish_reason,
                    first_token=_first_token(choice.logprobs),
                )
                for choice in completion.choices
            ),
            prompt_tokens=completion.usage.prompt_tokens,  # type: ignore[union-attr]
            completion_tokens=completion.usage.completion_tokens,  # type: ignore[union-attr]
        )
    except (AttributeError, TypeError, ValidationError) as e:
        # The SDK hands on what a server sends, whatever it is.
        raise CallTransient("the answer is not a chat completion with choices and usage") from e


def _first_token(logprobs: ChoiceLogprobs | None) -> tuple[TokenLogprob, ...]:
    if logprobs is None or not logprobs.content:
        return ()
    return tuple(
        TokenLogprob(token=t.token, logprob=t.logprob) for t in logprobs.content[0].top_logprobs
    )


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

"""The real SDKs against a small server of ours: what goes out, and what each answer becomes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import chat_request
from local_server import Script, Server, completion, credentials, error, message

from rlaif.errors import CallError, CallRateLimited, CallRejected, CallTransient, SetupError
from rlaif.models.anthropic_messages import AnthropicModel
from rlaif.models.base import ChatModel
from rlaif.models.openai_compatible import OpenAIModel
from rlaif.types import ChatReply, ChatRequest, Message, TokenLogprob

KEY = "sk-planted-0123456789"


def openai_model(server: Server, timeout_s: float = 10.0, key: str = KEY) -> OpenAIModel:
    return OpenAIModel(
        "m", identity="served/m", api_key=key, base_url=server.url + "/v1", timeout_s=timeout_s
    )


def anthropic_model(
    server: Server, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 10.0
) -> AnthropicModel:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    return AnthropicModel("m", identity="anthropic/m", timeout_s=timeout_s, api_key=KEY)


def answer(model: ChatModel, request: ChatRequest) -> ChatReply:
    async def main() -> ChatReply:
        try:
            return await model.ask(request)
        finally:
            await model.aclose()

    return asyncio.run(main())


TALK = chat_request().model_copy(
    update={
        "messages": (
            Message(role="system", content="Be brief."),
            Message(role="user", content="Hello?"),
            Message(role="assistant", content="Hi."),
            Message(role="user", content="Again?"),
        )
    }
)

# OpenAI's API.


def test_openai_sends_exactly_what_the_request_says(server: Server) -> None:
    server.script = [Script(body=completion("Hi", "Ho"))]
    sampling = {"temperature": 0.5, "top_p": 0.9, "n": 2, "top_logprobs": 4}
    # A compatible server gets no seed: vLLM on a CPU dies of one.
    request = TALK.model_copy(update={"sampling": chat_request(seed=3, **sampling).sampling})
    reply = answer(openai_model(server), request)
    (seen,) = server.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.body == {
        "model": "m",
        "messages": [{"role": m.role, "content": m.content} for m in TALK.messages],
        "max_tokens": 8,
        "logprobs": True,
        **sampling,
    }
    assert [c.text for c in reply.choices] == ["Hi", "Ho"]
    assert (reply.prompt_tokens, reply.completion_tokens) == (5, 7)


def test_openai_itself_is_asked_for_max_completion_tokens_with_the_seed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
    server.script = [Script(body=completion("Hi"))]
    model = OpenAIModel("m", identity="openai/m", api_key=KEY, base_url=None, timeout_s=10)
    answer(model, chat_request(seed=3))
    assert server.seen[0].body["max_completion_tokens"] == 8
    assert server.seen[0].body["seed"] == 3
    assert not {"max_tokens", "logprobs", "top_logprobs"} & set(server.seen[0].body)


def test_openai_log_probabilities_of_the_first_token_are_kept(server: Server) -> None:
    body = completion("A B")
    tokens = [("A", [("A", -0.2), (" B", -1.7)]), (" B", [(" B", -0.1)])]
    body["choices"][0]["logprobs"] = {
        "content": [
            {
                "token": token,
                "logprob": top[0][1],
                "bytes": None,
                "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in top],
            }
            for token, top in tokens
        ]
    }
    server.script = [Script(body=body)]
    reply = answer(openai_model(server), chat_request(top_logprobs=2))
    assert reply.choices[0].first_token == (
        TokenLogprob(token="A", logprob=-0.2),
        TokenLogprob(token=" B", logprob=-1.7),
    )


@pytest.mark.parametrize("logprobs", [None, {"content": None}, {"content": []}])
def test_openai_without_log_probabilities_has_none(server: Server, logprobs: Any) -> None:
    body = completion("A")
    body["choices"][0]["logprobs"] = logprobs
    server.script = [Script(body=body)]
    assert answer(openai_model(server), chat_request()).choices[0].first_token == ()


def test_openai_reads_an_answer_that_was_cut_or_is_null(server: Server) -> None:
    body = completion("")
    body["choices"][0] |= {
        "finish_reason": "length",
        "message": {"role": "assistant", "content": None},
    }
    server.script = [Script(body=body)]
    (choice,) = answer(openai_model(server), chat_request()).choices
    assert (choice.text, choice.finish_reason) == ("", "length")


def test_openai_fewer_answers_than_asked_for_are_not_taken_for_all(server: Server) -> None:
    server.script = [Script(body=completion("Hi"))]
    with pytest.raises(CallRejected, match="asked for 3 answers in one request, got 1"):
        answer(openai_model(server), chat_request(n=3))


FAILURES = [
    (Script(400, error("invalid_request_error")), CallRejected),
    (Script(401, error("authentication_error")), SetupError),
    # A gateway's 403 is about this prompt (moderation) more often than about the key.
    (Script(403, error("permission_error")), CallRejected),
    (Script(404, error("not_found_error")), SetupError),
    (Script(408, error("timeout")), CallTransient),
    (Script(409, error("conflict")), CallTransient),
    (Script(413, error("request_too_large")), CallRejected),
    (Script(422, error("unprocessable")), CallRejected),
    (Script(429, error("rate_limit_error")), CallRateLimited),
    (Script(500, error("api_error")), CallTransient),
    (Script(503, "<html>\n  <b>busy</b>\n</html>"), CallTransient),
    (Script(529, error("overloaded_error")), CallTransient),
    (Script(200, completion("Hi"), cut=True), CallTransient),
    (Script(200, "no JSON at all"), CallTransient),
    (Script(200, {"object": "something else"}), CallTransient),
    (Script(200, []), CallTransient),
    (Script(200, completion("Hi", usage=None)), CallTransient),
    (Script(200, message("Hi", usage=None, content=None)), CallTransient),
]
NAMES = [f"{script.status}-{i}" for i, (script, _) in enumerate(FAILURES)]


def failure(model: ChatModel) -> Exception:
    with pytest.raises((SetupError, CallError)) as caught:
        answer(model, chat_request())
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(("script", "kind"), FAILURES, ids=NAMES)
def test_openai_every_failure_is_of_its_kind(
    server: Server, script: Script, kind: type[Exception]
) -> None:
    server.script = [script]
    assert type(failure(openai_model(server))) is kind
    assert len(server.seen) == 1, "the SDK must not retry: the client does"


@pytest.mark.parametrize(("script", "kind"), FAILURES, ids=NAMES)
def test_anthropic_every_failure_is_of_its_kind(
    server: Server, monkeypatch: pytest.MonkeyPatch, script: Script, kind: type[Exception]
) -> None:
    server.script = [script]
    assert type(failure(anthropic_model(server, monkeypatch))) is kind
    assert len(server.seen) == 1, "the SDK must not retry: the client does"


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("header", "wait_s"), [("3", 3.0), ("0.5", 0.5), (None, None), ("Wed, 21 Oct 2026", None)]
)
def test_a_rate_limit_carries_the_wait_that_the_provider_names(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
    header: str | None,
    wait_s: float | None,
) -> None:
    headers = {} if header is None else {"retry-after": header}
    server.script = [Script(429, error("rate_limit_error"), headers)]
    model = openai_model(server) if provider == "openai" else anthropic_model(server, monkeypatch)
    found = failure(model)
    assert isinstance(found, CallRateLimited)
    assert found.wait_s == wait_s


def test_openai_an_empty_account_is_a_setup_error_and_not_a_rate_limit(server: Server) -> None:
    server.script = [Script(429, error("insufficient_quota", "insufficient_quota"))]
    assert "no quota left" in str(failure(openai_model(server)))


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_an_answer_that_takes_too_long_is_transient(
    server: Server, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    server.script = [Script(body=completion("Hi"), delay_s=0.6)]
    model = (
        openai_model(server, timeout_s=0.2)
        if provider == "openai"
        else anthropic_model(server, monkeypatch, timeout_s=0.2)
    )
    assert type(failure(model)) is CallTransient


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_server_that_is_gone_is_transient(
    server: Server, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    gone = Server()
    gone.server_close()
    model = openai_model(gone) if provider == "openai" else anthropic_model(gone, monkeypatch)
    assert type(failure(model)) is CallTransient


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("status", [400, 401, 404, 413, 429, 500])
def test_a_server_that_repeats_the_key_does_not_make_us_repeat_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, provider: str, status: int
) -> None:
    server.script = [Script(status, error("bad", text=f"the key\n{KEY} is bad" + "!" * 2000))]
    model = openai_model(server) if provider == "openai" else anthropic_model(server, monkeypatch)
    assert len(str(failure(model))) < 500


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (Script(401, error("authentication_error")), "refuses the key (set RLAIF_HTTP_API_KEY)"),
        (
            Script(body={"object": "list", "data": [{"id": "x", "object": "model"}]}),
            "does not serve 'm' (it serves: x)",
        ),
    ],
)
def test_a_compatible_server_is_checked_before_paid_work(
    server: Server, script: Script, said: str
) -> None:
    server.script = [script]
    with pytest.raises(SetupError) as caught:
        asyncio.run(openai_model(server).check())
    assert said in str(caught.value)
    assert server.seen[0].path == "/v1/models"


@pytest.mark.parametrize(
    "script",
    [
        Script(404, error("not_found")),
        Script(200, {"object": "list", "data": [{"id": "m", "object": "model"}]}),
        Script(200, {"object": "list", "data": []}),
        Script(200, {}),
        Script(200, "hello"),
    ],
)
def test_a_compatible_server_that_serves_the_model_or_lists_none_is_accepted(
    server: Server, script: Script
) -> None:
    server.script = [script]
    asyncio.run(openai_model(server).check())


def test_no_server_at_the_address_is_said_before_paid_work(server: Server) -> None:
    gone = Server()
    gone.server_close()
    with pytest.raises(SetupError, match=rf"no server answers at {gone.url}/v1/ \(start it"):
        asyncio.run(openai_model(gone).check())


def test_a_proxy_in_the_environment_is_not_asked_for_a_local_server(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server.script = [Script(body=completion("Hi"))]
    assert answer(openai_model(server), chat_request()).choices[0].text == "Hi"


# Anthropic's API.


def test_anthropic_sends_system_apart_and_only_what_differs_from_its_default(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [Script(body=message("Hi", " there")), Script(body=message("Hi"))]
    cool = TALK.model_copy(update={"sampling": chat_request(top_p=0.9).sampling})
    reply = answer(anthropic_model(server, monkeypatch), cool)
    warm = chat_request(temperature=1.0, seed=3)
    answer(anthropic_model(server, monkeypatch), warm)
    first, second = server.seen
    assert first.path == "/v1/messages"
    assert credentials(first) == {KEY}
    assert first.body == {
        "model": "m",
        "max_tokens": 8,
        "system": "Be brief.",
        "messages": [{"role": m.role, "content": m.content} for m in TALK.messages[1:]],
        "temperature": 0.0,
        "top_p": 0.9,
    }
    assert set(second.body) == {"model", "max_tokens", "messages"}
    assert [c.text for c in reply.choices] == ["Hi there"]
    assert (reply.prompt_tokens, reply.completion_tokens) == (5, 7)


@pytest.mark.parametrize(
    ("stop", "finish"),
    [("end_turn", "stop"), ("max_tokens", "length"), ("refusal", "refusal"), (None, "stop")],
)
def test_anthropic_stop_reasons_are_read(
    server: Server, monkeypatch: pytest.MonkeyPatch, stop: str | None, finish: str
) -> None:
    server.script = [Script(body=message("Hi", stop_reason=stop))]
    reply = answer(anthropic_model(server, monkeypatch), chat_request())
    assert reply.choices[0].finish_reason == finish

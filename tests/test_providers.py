"""The real SDKs against a small server of ours: what goes out, and what each answer becomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import pytest
from conftest import chat_request
from local_server import (
    Script,
    Server,
    alternatives,
    completion,
    credentials,
    error,
    message,
    tool_call,
)

from rlaif.errors import CallError, CallRateLimited, CallRejected, CallTransient, SetupError
from rlaif.models.anthropic_messages import AnthropicModel
from rlaif.models.base import ChatModel
from rlaif.models.openai_compatible import OpenAIModel
from rlaif.models.pool import ManagedModel
from rlaif.models.served import ServedModel
from rlaif.models.server import VLLMServer
from rlaif.types import ChatReply, ChatRequest, Message, TokenLogprob

Found = TypeVar("Found")
KEY = "sk-planted-0123456789"


def openai_model(server: Server, timeout_s: float = 10.0, key: str = KEY) -> ServedModel:
    """A server that speaks OpenAI's API."""
    return ServedModel(
        "m", identity="served/m", api_key=key, base_url=server.url + "/v1", timeout_s=timeout_s
    )


def anthropic_model(
    server: Server, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 10.0
) -> AnthropicModel:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    return AnthropicModel("m", identity="anthropic/m", timeout_s=timeout_s, api_key=KEY)


def official(
    server: Server, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 10.0
) -> OpenAIModel:
    """What stands for OpenAI itself."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
    return OpenAIModel("m", identity="openai/m", api_key=KEY, timeout_s=timeout_s)


PROVIDERS = ("openai", "served", "anthropic")


def model_of(
    provider: str, server: Server, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 10.0
) -> ChatModel:
    match provider:
        case "openai":
            return official(server, monkeypatch, timeout_s)
        case "served":
            return openai_model(server, timeout_s)
        case _:
            return anthropic_model(server, monkeypatch, timeout_s)


def with_model(model: ChatModel, use: Callable[[ChatModel], Awaitable[Found]]) -> Found:
    async def main() -> Found:
        try:
            return await use(model)
        finally:
            await model.aclose()

    return asyncio.run(main())


def answer(model: ChatModel, request: ChatRequest) -> ChatReply:
    return with_model(model, lambda m: m.ask(request))


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


def test_openai_itself_is_sent_no_sampling_that_a_reasoning_model_refuses(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [Script(body=completion("Hi"))]
    answer(official(server, monkeypatch), chat_request(temperature=1.0))
    assert set(server.seen[0].body) == {"model", "messages", "max_completion_tokens"}


SAMPLING = {"temperature": 0.0, "top_p": 0.9, "n": 2}


@pytest.mark.parametrize("name", SAMPLING)
def test_openai_itself_is_sent_what_differs_from_one_and_another_server_all(
    server: Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ones = {"temperature": 1.0, "top_p": 1.0, "n": 1}
    sampling = ones | {name: SAMPLING[name]}
    said = ["Hi"] * int(sampling["n"])
    server.script = [Script(body=completion(*said)), Script(body=completion(*said))]
    answer(official(server, monkeypatch), chat_request(**sampling))
    answer(openai_model(server), chat_request(**sampling))
    itself, other = [{k: s.body[k] for k in ones if k in s.body} for s in server.seen]
    assert itself == {name: SAMPLING[name]}
    assert other == sampling


def test_another_server_is_sent_the_ones_too_since_its_defaults_may_differ(server: Server) -> None:
    server.script = [Script(body=completion("Hi"))]
    answer(openai_model(server), chat_request(temperature=1.0))
    body = server.seen[0].body
    assert (body["temperature"], body["top_p"], body["n"]) == (1.0, 1.0, 1)


def test_openai_itself_is_asked_for_max_completion_tokens_with_the_seed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [Script(body=completion("Hi"))]
    answer(official(server, monkeypatch), chat_request(seed=3))
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
    (Script(200, message("Hi", usage=None, content=None)), CallTransient),
]
NAMES = [f"{script.status}-{i}" for i, (script, _) in enumerate(FAILURES)]


def failure(model: ChatModel) -> Exception:
    with pytest.raises((SetupError, CallError)) as caught:
        answer(model, chat_request())
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("script", "kind"), FAILURES, ids=NAMES)
def test_every_failure_is_of_its_kind(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
    script: Script,
    kind: type[Exception],
) -> None:
    server.script = [script]
    assert type(failure(model_of(provider, server, monkeypatch))) is kind
    assert len(server.seen) == 1, "the SDK must not retry: the client does"


OPENAI_UNREAD = [
    (completion("Hi", usage=None), CallRejected, True),
    (completion("Hi", usage={"prompt_tokens": 3}), CallRejected, True),
    (completion("Hi", "Ho"), CallRejected, True),
    (completion("Hi", choices=[{"message": None}]), CallTransient, True),
    (completion(), CallTransient, False),
    (error("upstream_error"), CallTransient, False),
]


@pytest.mark.parametrize("provider", ["openai", "served"])
@pytest.mark.parametrize(("body", "kind", "paid"), OPENAI_UNREAD)
def test_openai_an_answer_that_cannot_be_read_is_paid_for_all_the_same(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
    body: Any,
    kind: type[CallError],
    paid: bool,
) -> None:
    server.script = [Script(body=body)]
    found = failure(model_of(provider, server, monkeypatch))
    assert type(found) is kind
    assert cast(CallError, found).paid is paid


ANTHROPIC_UNREAD = [
    (message("Hi", usage=None), CallRejected, True),
    (tool_call({"verdict": float("nan")}), CallTransient, True),
    (message("Hi", content=None), CallTransient, False),
    (error("upstream_error"), CallTransient, False),
]


@pytest.mark.parametrize(("body", "kind", "paid"), ANTHROPIC_UNREAD)
def test_anthropic_an_answer_that_cannot_be_read_is_paid_for_all_the_same(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    body: Any,
    kind: type[CallError],
    paid: bool,
) -> None:
    server.script = [Script(body=body)]
    found = failure(anthropic_model(server, monkeypatch))
    assert type(found) is kind
    assert cast(CallError, found).paid is paid


WAITS = [
    ("3", 3.0),
    ("0.5", 0.5),
    (None, None),
    ("Wed, 21 Oct 2026", None),
    ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
    ("Wed, 21 Oct 2026 07:27:30 GMT", 0.0),
    ("-3", None),
    ("nan", None),
    ("soon", None),
]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("header", "wait_s"), WAITS)
def test_a_refusal_carries_the_wait_that_the_provider_names(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
    status: int,
    header: str | None,
    wait_s: float | None,
) -> None:
    server.date = "Wed, 21 Oct 2026 07:28:00 GMT"
    headers = {} if header is None else {"retry-after": header}
    server.script = [Script(status, error("busy"), headers)]
    model = model_of(provider, server, monkeypatch)
    found = failure(model)
    assert isinstance(found, CallRateLimited) == (status == 429)
    assert cast(CallTransient, found).wait_s == wait_s


@pytest.mark.parametrize("provider", ["openai", "served"])
def test_an_empty_account_is_a_setup_error_and_not_a_rate_limit(
    server: Server, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    server.script = [Script(429, error("insufficient_quota", "insufficient_quota"))]
    assert "no quota left" in str(failure(model_of(provider, server, monkeypatch)))


@pytest.mark.parametrize("provider", ["openai", "served"])
def test_the_headers_of_every_response_are_heard(
    server: Server, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    headers = {"X-RateLimit-Remaining-Requests": "7"}
    server.script = [
        Script(429, error("rate_limit_error"), headers),
        Script(body=completion("Hi"), headers=headers),
    ]
    model, heard = model_of(provider, server, monkeypatch), []
    model.heard = lambda found: heard.append(found["x-ratelimit-remaining-requests"])

    async def twice(model: ChatModel) -> None:
        with pytest.raises(CallRateLimited):
            await model.ask(chat_request())
        await model.ask(chat_request())

    with_model(model, twice)
    assert heard == ["7", "7"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_answer_that_takes_too_long_is_transient(
    server: Server, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    server.script = [Script(body=completion("Hi"), delay_s=0.6)]
    model = model_of(provider, server, monkeypatch, timeout_s=0.2)
    assert type(failure(model)) is CallTransient


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_server_that_is_gone_is_transient(
    server: Server, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    gone = Server()
    gone.server_close()
    model = model_of(provider, gone, monkeypatch)
    assert type(failure(model)) is CallTransient


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", [400, 401, 404, 413, 429, 500])
def test_a_server_that_repeats_the_key_does_not_make_us_repeat_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, provider: str, status: int
) -> None:
    server.script = [Script(status, error("bad", text=f"the key\n{KEY} is bad" + "!" * 2000))]
    model = model_of(provider, server, monkeypatch)
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
        with_model(openai_model(server), lambda m: m.check())
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
    with_model(openai_model(server), lambda m: m.check())


def test_no_server_at_the_address_is_said_before_paid_work(server: Server) -> None:
    gone = Server()
    gone.server_close()
    with pytest.raises(SetupError, match=rf"no server answers at {gone.url}/v1 \(start it"):
        with_model(openai_model(gone), lambda m: m.check())


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


# Verdicts as JSON.

MENU = chat_request().model_copy(update={"menu": ("A", "B")})
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": ["A", "B"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("itself", [True, False])
def test_openai_is_held_to_the_menu_by_a_strict_schema(
    server: Server, monkeypatch: pytest.MonkeyPatch, itself: bool
) -> None:
    server.script = [Script(body=completion('{"verdict": "B"}'))]
    model = official(server, monkeypatch) if itself else openai_model(server)
    (choice,) = answer(model, MENU).choices
    assert json.loads(choice.text) == {"verdict": "B"}
    assert server.seen[0].body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
    }


def test_no_menu_sends_no_schema_and_no_tool(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [Script(body=completion("Hi")), Script(body=message("Hi"))]
    answer(openai_model(server), chat_request())
    answer(anthropic_model(server, monkeypatch), chat_request())
    assert not any({"response_format", "tools", "tool_choice"} & set(s.body) for s in server.seen)


def refused(content: str | None, **fields: Any) -> dict[str, Any]:
    body = completion("")
    said = {"role": "assistant", "content": content, "refusal": "I cannot compare these."}
    body["choices"][0] |= {"message": said, **fields}
    return body


def test_openai_a_refusal_to_choose_is_what_the_judge_said(server: Server) -> None:
    server.script = [
        Script(body=refused(None)),
        Script(body=refused('{"verdict": "A"}', finish_reason="content_filter")),
    ]
    (choice,) = answer(openai_model(server), MENU).choices
    assert (choice.text, choice.finish_reason) == ("I cannot compare these.", "stop")
    # Whatever came along with the refusal is no verdict.
    (choice,) = answer(openai_model(server), MENU).choices
    assert (choice.text, choice.finish_reason) == ("I cannot compare these.", "content_filter")


def test_openai_a_refused_answer_of_a_policy_is_no_text(server: Server) -> None:
    server.script = [Script(body=refused(None))]
    assert answer(openai_model(server), chat_request()).choices[0].text == ""


def test_openai_a_verdict_that_was_cut_says_so(server: Server) -> None:
    body = completion('{"verdict": "')
    body["choices"][0]["finish_reason"] = "length"
    server.script = [Script(body=body)]
    (choice,) = answer(openai_model(server), MENU).choices
    assert (choice.text, choice.finish_reason) == ('{"verdict": "', "length")


def test_anthropic_is_held_to_the_menu_by_a_forced_tool(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [Script(body=tool_call({"verdict": "B"}))]
    (choice,) = answer(anthropic_model(server, monkeypatch), MENU).choices
    assert (choice.text, choice.finish_reason) == ('{"verdict":"B"}', "stop")
    sent = server.seen[0].body
    assert sent["tool_choice"] == {"type": "tool", "name": "verdict"}
    (tool,) = sent["tools"]
    assert (tool["name"], tool["input_schema"]) == ("verdict", SCHEMA)


CUT = tool_call({}, stop_reason="max_tokens")
TALK_FIRST = [{"type": "text", "text": "B."}, *tool_call({"verdict": "A"})["content"]]
TOOL_ANSWERS = [
    pytest.param(tool_call({"verdict": "Z"}), '{"verdict":"Z"}', "stop", id="off the menu"),
    pytest.param(tool_call({"b": 1, "a": "é"}), '{"a":"é","b":1}', "stop", id="other fields"),
    pytest.param(tool_call(["A"]), '["A"]', "stop", id="a list"),
    pytest.param(tool_call("A"), '"A"', "stop", id="a string"),
    pytest.param(tool_call(None), "null", "stop", id="nothing"),
    pytest.param(message("I think A."), "I think A.", "stop", id="no tool call"),
    pytest.param(tool_call({"verdict": "A"}, name="other"), "", "stop", id="another tool"),
    pytest.param(message("No.", stop_reason="refusal"), "No.", "refusal", id="refusal"),
    pytest.param(CUT, "{}", "length", id="truncated"),
    pytest.param(message(content=TALK_FIRST), '{"verdict":"A"}', "stop", id="text before it"),
    pytest.param(
        tool_call({"verdict": "A"}, {"verdict": "B"}),
        '{"verdict":"A"}\n{"verdict":"B"}',
        "stop",
        id="two calls",
    ),
]


@pytest.mark.parametrize(("body", "text", "finish"), TOOL_ANSWERS)
def test_anthropic_whatever_the_tool_was_called_with_reaches_the_reader(
    server: Server, monkeypatch: pytest.MonkeyPatch, body: Any, text: str, finish: str
) -> None:
    server.script = [Script(body=body)]
    (choice,) = answer(anthropic_model(server, monkeypatch), MENU).choices
    assert (choice.text, choice.finish_reason) == (text, finish)


def test_anthropic_a_tool_call_that_is_not_json_is_no_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [Script(body=tool_call({"verdict": float("nan")}))]
    with pytest.raises(CallTransient, match="not a message of the Messages API"):
        answer(anthropic_model(server, monkeypatch), MENU)


# The judge's tokenizer.


def first_tokens(model: ChatModel, *texts: str) -> list[int] | None:
    return with_model(model, lambda m: m.first_tokens(texts))


def test_first_tokens_are_those_of_the_servers_own_tokenizer(server: Server) -> None:
    server.script = [
        Script(body={"tokens": [7], "count": 1, "max_model_len": 99}),
        Script(body={"tokens": [3, 4], "count": 2, "max_model_len": 99, "token_strs": None}),
    ]
    assert first_tokens(openai_model(server), "A", "10") == [7, 3]
    assert [(seen.path, seen.body) for seen in server.seen] == [
        ("/tokenize", {"model": "m", "prompt": text, "add_special_tokens": False})
        for text in ("A", "10")
    ]
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "script",
    [
        Script(404, error("not_found")),
        Script(405, error("method_not_allowed")),
        Script(401, error("authentication_error")),
        Script(500, "<html></html>"),
        Script(200, "no JSON at all"),
        Script(200, []),
        Script(200, {"tokens": []}),
        Script(200, {"tokens": ["A"]}),
        Script(200, {"tokens": 7}),
        Script(200, {"tokens": [7]}, cut=True),
        Script(200, {"tokens": [7]}, delay_s=0.6),
    ],
)
def test_a_server_that_does_not_tokenize_leaves_it_unknown(server: Server, script: Script) -> None:
    server.script = [Script(body={"tokens": [7]}), script]
    assert first_tokens(openai_model(server, timeout_s=0.3), "A", "B") is None


def test_openai_and_anthropic_are_not_asked_for_tokens(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first_tokens(official(server, monkeypatch), "A") is None
    assert first_tokens(anthropic_model(server, monkeypatch), "A") is None
    assert server.seen == []


# Do log-probabilities come?


def probed(model: ChatModel) -> bool | None:
    return with_model(model, lambda m: m.probe_logprobs())


def a_letter(logprobs: Any) -> dict[str, Any]:
    body = completion("A")
    body["choices"][0]["logprobs"] = logprobs
    return body


@pytest.mark.parametrize("itself", [True, False])
def test_the_probe_asks_for_one_token_with_its_alternatives(
    server: Server, monkeypatch: pytest.MonkeyPatch, itself: bool
) -> None:
    server.script = [Script(body=a_letter(alternatives(("A", -0.2), ("B", -1.7))))]
    model = official(server, monkeypatch) if itself else openai_model(server)
    assert probed(model) is True
    assert server.seen[0].body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Answer with one letter: A or B."}],
        "max_completion_tokens" if itself else "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }


UNSUPPORTED = "'logprobs' is not supported with this model."
PROBES = [
    (Script(body=a_letter(None)), False),
    (Script(body=a_letter({"content": []})), False),
    (Script(body=a_letter(alternatives())), False),
    (Script(400, error("invalid_request_error", text=UNSUPPORTED)), False),
    (Script(422, error("bad", text="log_probs: extra inputs are not permitted")), False),
    (Script(400, error("bad", text="the context is too long")), None),
    (Script(422, error("bad", text="messages: field required")), None),
    (Script(403, error("bad", text=UNSUPPORTED)), None),
    (Script(401, error("authentication_error")), None),
    (Script(429, error("rate_limit_error")), None),
    (Script(500, error("api_error", text=UNSUPPORTED)), None),
    (Script(200, "no JSON at all"), None),
    (Script(200, completion("A", usage=None)), None),
    (Script(200, {"object": "something else"}), None),
    (Script(200, completion(), cut=True), None),
    (Script(200, completion()), None),
]


@pytest.mark.parametrize(
    ("script", "found"), PROBES, ids=[f"{s.status}-{i}" for i, (s, _) in enumerate(PROBES)]
)
def test_a_probe_says_no_only_where_the_answer_is_no(
    server: Server, script: Script, found: bool | None
) -> None:
    server.script = [script]
    assert probed(openai_model(server)) is found
    assert len(server.seen) == 1


def test_a_model_without_log_probabilities_is_not_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probed(anthropic_model(server, monkeypatch)) is False
    assert server.seen == []


# The same through a server of ours.


class Stub(NamedTuple):
    """What a managed model needs to know of its server."""

    base_url: str
    name: str = "m"
    api_key: str = KEY


def test_a_managed_model_hands_every_question_on_to_its_server(server: Server) -> None:
    async def started(before: VLLMServer | None) -> VLLMServer:
        return cast(VLLMServer, Stub(server.url + "/v1"))

    async def asked(model: ChatModel) -> Sequence[object]:
        await model.check()
        tokens = await model.first_tokens(["A"])
        probed = await model.probe_logprobs()
        reply = await model.ask(MENU)
        return tokens, probed, reply.choices[0].text

    server.script = [
        Script(body={"tokens": [7]}),
        Script(body=a_letter(None)),
        Script(body=completion('{"verdict": "A"}')),
    ]
    model = ManagedModel("embedded/m", started, timeout_s=10)
    assert with_model(model, asked) == ([7], False, '{"verdict": "A"}')
    assert [s.path for s in server.seen] == ["/tokenize", *["/v1/chat/completions"] * 2]
    assert "response_format" in server.seen[-1].body

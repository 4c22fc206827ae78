"""Keys come from the environment and go nowhere else; model strings say what they mean."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from conftest import chat_request
from local_server import Script, Server, completion, credentials, message

from rlaif.callstore import CallStore
from rlaif.errors import SetupError
from rlaif.models.anthropic_messages import AnthropicModel
from rlaif.models.client import Bill
from rlaif.models.fake import FakeModel
from rlaif.models.names import parse_model
from rlaif.models.openai_compatible import OpenAIModel
from rlaif.models.pool import ManagedModel, ModelConfig, ModelPool, gives_logprobs, max_n
from rlaif.models.served import ServedModel
from rlaif.types import ChatRequest

KEY = "sk-planted-0123456789"


def through_the_pool(folder: Path, model: str, request: ChatRequest) -> Any:
    async def main() -> Any:
        with CallStore(folder / "calls.sqlite") as store:
            pool = ModelPool(store, folder / "logs", {})
            config = ModelConfig(model=model, attempts=1, timeout_s=10)
            async with pool.open(config, "judge.model", Bill()) as client:
                return (await client.ask_all([request], lambda done, note: None))[0]

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("openai/m", "judge.model: no API key: OPENAI_API_KEY is not set"),
        (
            "anthropic/m",
            "judge.model: no API key: ANTHROPIC_API_KEY and ANTHROPIC_AUTH_TOKEN are not set",
        ),
    ],
)
def test_without_a_key_the_variable_is_named(empty_place: Path, name: str, said: str) -> None:
    with pytest.raises(SetupError) as caught:
        through_the_pool(empty_place, name, chat_request())
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "variables",
    [
        {"ANTHROPIC_API_KEY": KEY},
        {"ANTHROPIC_AUTH_TOKEN": KEY},
        {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_AUTH_TOKEN": "second"},
    ],
)
def test_anthropic_takes_a_key_or_a_token_from_the_environment(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
) -> None:
    for name, value in {**variables, "ANTHROPIC_BASE_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    server.script = [Script(body=message("Hi"))]
    reply = through_the_pool(tmp_path, "anthropic/m", chat_request())
    assert reply.choices[0].text == "Hi"
    assert credentials(server.seen[0]) == {KEY}
    if "ANTHROPIC_API_KEY" not in variables:
        assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("provider", ["openai", "anthropic", "http"])
def test_a_key_is_sent_and_written_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, provider: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    monkeypatch.setenv("RLAIF_HTTP_API_KEY", KEY)
    listed = Script(body={"object": "list", "data": []})
    name, script = {
        "openai": ("openai/m", [Script(body=completion("Hi"))]),
        "anthropic": ("anthropic/m", [Script(body=message("Hi"))]),
        "http": (f"{server.url}/v1#m", [listed, Script(body=completion("Hi"))]),
    }[provider]
    server.script = script
    reply = through_the_pool(tmp_path, name, chat_request())
    assert reply.choices[0].text == "Hi"
    assert any(KEY in value for value in server.seen[-1].headers.values())
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    assert not [p for p in files if KEY.encode() in p.read_bytes()]


# Model strings.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("opnai/gpt", "unknown model 'opnai/gpt' (did you mean openai/…?"),
        ("gpt-4", "unknown model 'gpt-4' (known forms: vllm/ORG/NAME"),
        ("openai", "unknown model 'openai'"),
        ("openai/", "unknown model 'openai/'"),
        ("", "unknown model ''"),
        ("http://h:1/v1", "does not say which model (add the served model's name: http://h:1/v1#N"),
        ("ftp://h:1/v1#m", "unknown model 'ftp://h:1/v1#m'"),
    ],
)
def test_an_unknown_model_string_names_the_known_forms(text: str, said: str) -> None:
    with pytest.raises(SetupError) as caught:
        parse_model(text, "judge.model")
    assert said in str(caught.value)
    assert caught.value.field == "judge.model"


def test_a_model_string_is_taken_apart() -> None:
    assert parse_model("https://h/v1/#org/m", "f")[:] == ("http", "org/m", ("https://h/v1",))
    assert parse_model("vllm/org/m", "f").directory is None
    assert parse_model("vllm/./m", "f").directory == Path("m")
    assert parse_model("vllm//srv/m", "f").directory == Path("/srv/m")
    assert [parse_model(f"{s}/m", "f").has_weights for s in ("vllm", "embedded", "fake")] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP", "htpp", " http"])
def test_an_address_with_a_password_is_refused_and_not_repeated(scheme: str) -> None:
    with pytest.raises(SetupError) as refused:
        parse_model(f"{scheme}://user:hunter2@127.0.0.1:1/v1#m", "judge.model")
    assert str(refused.value) == (
        "judge.model: the address of the server holds a user or password "
        "(leave it out and set RLAIF_HTTP_API_KEY)"
    )


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP", "htpp", " http"])
@pytest.mark.parametrize(
    "rest", ["v1?api-key=s3cret#m", "v1?api-key=s3cret", "v1#m?api-key=s3cret", "v1\n?s3cret#m"]
)
def test_an_address_with_a_query_is_refused_and_not_repeated(scheme: str, rest: str) -> None:
    with pytest.raises(SetupError) as refused:
        parse_model(f"{scheme}://h:1/{rest}", "judge.model")
    assert str(refused.value) == (
        "judge.model: the address of the server holds a query "
        "(leave it out; a key is read from RLAIF_HTTP_API_KEY)"
    )


def test_what_is_said_of_a_vendor_without_its_sdk_is_what_its_class_says() -> None:
    for kind, model in (
        (OpenAIModel, "openai/m"),
        (AnthropicModel, "anthropic/m"),
        (ServedModel, "http://h:1/v1#m"),
        (ManagedModel, "vllm/org/m"),
        (FakeModel, "fake/policy"),
    ):
        assert max_n(model, "f") == kind.max_n
        if kind is not FakeModel:
            assert gives_logprobs(model, "f") == kind.gives_logprobs


def test_options_of_a_fake_model_are_no_query() -> None:
    assert parse_model("fake/faulty?rate=0.5", "f").rest == "faulty?rate=0.5"

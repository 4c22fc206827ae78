"""Anthropic's prompt cache: where it is cut, who waits for whom, what it costs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from local_server import Script, Server, completion, message

from rlaif.callstore import call_key, request_json
from rlaif.constitution import load_constitution
from rlaif.judge.ask import EXAMPLE
from rlaif.judge.config import AskConfig
from rlaif.judge.forms import Ask, Asked, Form
from rlaif.models.anthropic_messages import LEAST_CACHED, AnthropicModel
from rlaif.models.anthropic_wire import reply_of
from rlaif.models.openai_wire import read_completion
from rlaif.models.prices import Price
from rlaif.templates import Template
from rlaif.types import ChatRequest, Message, Sampling, SharedMessage

LONG = "What both are asked about. " * (LEAST_CACHED // 20)


def shared(text: str, rest: str) -> ChatRequest:
    return ChatRequest(
        model="anthropic/m",
        messages=(
            Message(role="system", content="Be fair."),
            SharedMessage(role="user", content=text + rest, shared=len(text)),
        ),
        sampling=Sampling(max_tokens=8, temperature=1.0),
    )


def plain(request: ChatRequest) -> ChatRequest:
    messages = tuple(Message(role=m.role, content=m.content) for m in request.messages)
    return request.model_copy(update={"messages": messages})


def model(server: Server, monkeypatch: pytest.MonkeyPatch) -> AnthropicModel:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    return AnthropicModel("m", identity="anthropic/m", timeout_s=10, api_key="sk-of-a-test")


def asked(model: AnthropicModel, *requests: ChatRequest) -> None:
    async def main() -> None:
        await asyncio.gather(*(model.ask(r) for r in requests))
        await model.aclose()

    asyncio.run(main())


def test_the_breakpoint_stands_where_the_shared_part_ends(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [Script(body=message("A"))]
    asked(model(server, monkeypatch), shared("Two responses.", " Which is kinder?"))
    (turn,) = server.seen[0].body["messages"]
    assert turn["content"] == [
        {"type": "text", "text": "Two responses.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": " Which is kinder?"},
    ]


def test_where_a_cache_is_cut_is_no_part_of_a_call() -> None:
    request = shared("Two responses.", " Which is kinder?")
    assert call_key(request) == call_key(plain(request))
    assert request_json(request) == request_json(plain(request))
    assert "shared" not in request_json(request)


def test_the_first_call_writes_the_cache_and_the_others_wait_for_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Script(body=message("A"), delay_s=1.0)
    server.script = [slow, slow, *[Script(body=message("A"))] * 3]
    requests = [shared(LONG, f" Question {i}?") for i in range(4)]
    other = shared("Another pair. " + LONG, " Question?")

    async def main() -> None:
        found = model(server, monkeypatch)
        asking = asyncio.gather(*(found.ask(r) for r in [*requests, other]))
        while len(server.seen) < 2:  # noqa: ASYNC110  the server is no task of this loop
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        # The other pair waits for nobody; three of the four for the first.
        assert len(server.seen) == 2
        await asking
        await found.aclose()

    asyncio.run(main())
    assert len(server.seen) == 5


def test_what_is_too_short_for_a_cache_waits_for_nobody(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [Script(body=message("A"))] * 3
    found = model(server, monkeypatch)
    asked(found, *(shared("Short.", f" Question {i}?") for i in range(3)))
    assert found._writing == {}


def test_what_a_cache_served_is_counted_and_billed_as_such() -> None:
    usage = {
        "input_tokens": 50,
        "cache_read_input_tokens": 1000,
        "cache_creation_input_tokens": 200,
        "output_tokens": 10,
    }
    reply = reply_of(message("A", usage=usage))
    assert (reply.prompt_tokens, reply.cached_tokens, reply.cache_write_tokens) == (1250, 1000, 200)
    price = Price(input=10.0, output=50.0, cached_input=1.0, cache_write=12.5)
    assert price.usd(reply) == pytest.approx((50 * 10 + 1000 * 1 + 200 * 12.5 + 10 * 50) / 1e6)
    details = {"prompt_tokens_details": {"cached_tokens": 4}}
    answer = completion("A", usage={"prompt_tokens": 5, "completion_tokens": 7, **details})
    assert read_completion(answer, structured=False).cached_tokens == 4


def test_a_judges_prompts_share_all_but_the_principle() -> None:
    constitution, _ = load_constitution("hhh")
    form = Form(AskConfig(model="fake/shorter"), Asked("fake/shorter", True, 1))
    found = []
    for principle in constitution.principles:
        (request,) = form.verdict(Ask(EXAMPLE, principle, "forward"), [])
        last = request.messages[-1]
        assert isinstance(last, SharedMessage)
        found.append(last.content[: last.shared])
        assert principle.text not in found[-1]
        assert "Because." in found[-1]
        assert "It depends." in found[-1]
    assert len(set(found)) == 1


def test_one_principle_alone_pays_for_no_cache() -> None:
    constitution, _ = load_constitution("hhh")
    form = Form(AskConfig(model="fake/shorter"), Asked("fake/shorter", True, 1))
    ask = Ask(EXAMPLE, constitution.principles[0], "forward", shares=False)
    (request,) = form.verdict(ask, [])
    assert not any(isinstance(m, SharedMessage) for m in request.messages)


def test_the_tag_prints_nothing_and_changes_no_digest(tmp_path: Path) -> None:
    text = '{% message "user" %}\nOne.TAG\nTwo {{ principle }}.\n{% endmessage %}\n'
    (tmp_path / "with.j2").write_text(text.replace("TAG", "{% shared %}"))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "with.j2").write_text(text.replace("TAG", ""))
    tagged = Template(str(tmp_path / "with.j2"), {"principle"})
    untagged = Template(str(tmp_path / "x" / "with.j2"), {"principle"})
    (one,), (two,) = tagged.render({"principle": "p"}), untagged.render({"principle": "p"})
    assert one.content == two.content == "One.\nTwo p."
    assert isinstance(one, SharedMessage)
    assert one.shared == len("One.")
    assert tagged.digest == untagged.digest

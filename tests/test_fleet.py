"""Several servers behind one name."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path

import pytest
from conftest import chat_request
from local_server import Script, Server, completion

from rlaif.callstore import CallStore
from rlaif.errors import CallRateLimited, CallTransient, SetupError
from rlaif.models.base import ChatModel
from rlaif.models.client import Answer, Bill
from rlaif.models.fleet import Fleet
from rlaif.models.names import parse_model
from rlaif.models.pool import ModelConfig, ModelPool
from rlaif.types import ChatReply, ChatRequest, Choice


class Member(ChatModel):
    """Answers after `pause_s`, and fails while `down`."""

    identity = "served/m"
    gives_logprobs = True
    max_n = 8

    def __init__(self, pause_s: float = 0.001) -> None:
        self.pause_s = pause_s
        self.down: Exception | None = None
        self.asked: Counter[str] = Counter()
        self.in_flight = self.most = 0
        self.closed = False

    async def check(self) -> None:
        if isinstance(self.down, SetupError):
            raise self.down

    async def ask(self, request: ChatRequest) -> ChatReply:
        self.asked[request.messages[0].content] += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(self.pause_s)
        self.in_flight -= 1
        if self.down is not None:
            raise self.down
        return ChatReply(
            choices=(Choice(text="Hi", finish_reason="stop"),), prompt_tokens=1, completion_tokens=1
        )

    async def aclose(self) -> None:
        self.closed = True


def fleet(*members: Member, now: list[float] | None = None) -> Fleet:
    named = [(f"http://{i}/v1", member) for i, member in enumerate(members)]
    return Fleet(named, clock=lambda: (now or [0.0])[0])


def ask(model: Fleet, *texts: str) -> None:
    async def main() -> None:
        await asyncio.gather(*(model.ask(chat_request(text)) for text in texts))

    asyncio.run(main())


def test_the_load_is_shared() -> None:
    a, b, c = Member(), Member(), Member()
    ask(fleet(a, b, c), *map(str, range(120)))
    assert sum(m.asked.total() for m in (a, b, c)) == 120
    assert all(30 <= m.asked.total() <= 50 for m in (a, b, c))


def test_what_begins_the_same_goes_to_the_same_server() -> None:
    a, b = Member(), Member()
    model = fleet(a, b)
    stories = [f"{number} once upon a time " * 60 for number in range(20)]
    for story in stories:
        for end in ("Which is shorter?", "Which is kinder?", "Which is true?"):
            ask(model, story + end)
    for story in stories:
        of_story = [sum(n for t, n in m.asked.items() if t.startswith(story)) for m in (a, b)]
        assert sorted(of_story) == [0, 3]
    assert a.asked
    assert b.asked


def test_the_calls_of_a_server_that_fails_go_to_the_others_and_none_is_lost() -> None:
    a, b = Member(), Member()
    a.down = CallTransient("connection refused")
    ask(fleet(a, b), *map(str, range(20)))
    assert b.asked.total() == 20
    now = [0.0]
    model = fleet(a, b, now=now)
    ask(model, *map(str, range(20)))
    before = a.asked.total()
    ask(model, *map(str, range(20, 40)))
    assert a.asked.total() == before, "it rests"
    a.down, now[0] = None, 10.0
    ask(model, *map(str, range(40, 80)))
    assert a.asked.total() > before, "it is asked again"


def test_a_call_fails_only_when_every_server_has_failed_it() -> None:
    a, b = Member(), Member()
    a.down, b.down = CallTransient("a"), CallRateLimited("b", 3.0)
    with pytest.raises(CallTransient):
        ask(fleet(a, b), "x")
    assert (a.asked.total(), b.asked.total()) == (1, 1)


def test_one_server_that_can_be_used_is_enough_and_the_others_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    a, b = Member(), Member()
    a.down = SetupError("no server answers at http://0/v1")
    model = fleet(a, b)
    asyncio.run(model.check())
    assert "no server answers at http://0/v1; the other servers" in capsys.readouterr().err
    assert a.closed
    ask(model, *map(str, range(5)))
    assert (a.asked.total(), b.asked.total()) == (0, 5)


def test_where_no_server_can_be_used_the_first_says_why() -> None:
    a, b = Member(), Member()
    a.down, b.down = SetupError("refuses the key"), SetupError("is not there")
    with pytest.raises(SetupError, match="refuses the key"):
        asyncio.run(fleet(a, b).check())


def test_several_addresses_are_one_model() -> None:
    name = parse_model("http://a:1/v1, http://b:2/v1/#org/m", "policy.model")
    assert (name.rest, name.base_urls) == ("org/m", ("http://a:1/v1", "http://b:2/v1"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://a/v1,b:2/v1#m", "'b:2/v1' is no address of a server"),
        ("http://a/v1,http://a/v1/#m", "'http://a/v1' stands twice"),
        ("http://a/v1,http://u:p@b/v1#m", "holds a user or password"),
    ],
)
def test_addresses_that_are_none_are_refused(text: str, said: str) -> None:
    with pytest.raises(SetupError, match=said):
        parse_model(text, "policy.model")


def test_a_server_that_goes_away_in_mid_run_costs_no_call(server: Server, tmp_path: Path) -> None:
    listed, answer = Script(body={"data": [{"id": "m"}]}), Script(body=completion("Hi"))
    server.script = [listed, *[answer] * 40]
    other = Server()
    # After five answers it cuts every connection.
    other.script = [listed, *[answer] * 5]
    thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    async def main() -> list[Answer]:
        with CallStore(tmp_path / "calls.sqlite") as store:
            config = ModelConfig(
                model=f"{other.url}/v1,{server.url}/v1#m", attempts=1, concurrency=4
            )
            pool = ModelPool(store, tmp_path, {})
            async with pool.open(config, "policy.model", Bill()) as client:
                requests = [chat_request(f"Question {i}?") for i in range(40)]
                return await client.ask_all(requests, lambda done, note: None)

    answers = asyncio.run(main())
    other.shutdown()
    thread.join()
    other.server_close()
    assert all(isinstance(found, ChatReply) for found in answers)
    assert other.script == []
    assert len(other.seen) > 1 + 5, "it was asked after it had gone"
    assert len(server.seen) == 1 + 35

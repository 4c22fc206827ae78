"""The call store: what is in it was answered, and stays."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import chat_request

from rlaif.callstore import SCHEMA_VERSION, CallStore, call_key
from rlaif.errors import StoreError
from rlaif.files import digest
from rlaif.models.pool import ModelConfig
from rlaif.types import ChatReply, ChatRequest, Choice, Message, TokenLogprob

TESTS = Path(__file__).parent
REPLY = ChatReply(
    choices=(
        Choice(
            text="Hi ✓", finish_reason="stop", first_token=(TokenLogprob(token="H", logprob=-0.1),)
        ),
    ),
    prompt_tokens=3,
    completion_tokens=1,
)
WRITER = """
import sys
from pathlib import Path
from rlaif.callstore import CallStore
from conftest import chat_request
from test_callstore import REPLY

store = CallStore(Path(sys.argv[1]))
for i in range(1_000_000):
    store.put(chat_request(f"Question {i}?"), REPLY, 0.1)
    print(i, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CallStore]:
    with CallStore(tmp_path / "run" / "calls.sqlite") as opened:
        yield opened


def test_what_was_put_comes_back_whole(store: CallStore) -> None:
    store.put(chat_request(), REPLY, 0.5)
    assert store.get(call_key(chat_request())) == REPLY
    assert store.get(call_key(chat_request("Another?"))) is None
    assert len(store) == 1


def test_the_first_answer_stays(store: CallStore) -> None:
    store.put(chat_request(), REPLY, 0.5)
    store.put(chat_request(), REPLY.model_copy(update={"prompt_tokens": 99}), 0.5)
    assert store.get(call_key(chat_request())) == REPLY
    assert len(store) == 1


def test_the_same_request_has_the_same_key() -> None:
    assert call_key(chat_request()) == call_key(
        ChatRequest.model_validate(chat_request().model_dump())
    )


def test_the_key_of_a_request_stays_what_it_was() -> None:
    """A changed key would ask every paid call again."""
    assert (
        call_key(chat_request())
        == "ccbdcf3669bc01df97155f9ba0fa1621f190dde09814db6b5b89983b9ba95019"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"model": "served/other"},
        {"messages": (Message(role="user", content="Hello"),)},
        {"messages": (Message(role="system", content="Hello?"), *chat_request().messages)},
        {"messages": (Message(role="assistant", content="Hello?"),)},
        {"repeat": 1},
        *(
            {"sampling": chat_request().sampling.model_copy(update=update)}
            for update in (
                {"max_tokens": 9},
                {"temperature": 0.1},
                {"top_p": 0.9},
                {"n": 2},
                {"seed": 0},
                {"top_logprobs": 20},
            )
        ),
    ],
)
def test_whatever_shapes_the_answer_changes_the_key(change: dict[str, Any]) -> None:
    assert call_key(chat_request().model_copy(update=change)) != call_key(chat_request())


def test_no_transport_setting_can_reach_the_key() -> None:
    transport = set(ModelConfig.model_fields) - {"model"}
    assert transport == {
        "concurrency",
        "attempts",
        "timeout_s",
        "usd_per_million_tokens",
        "batch",
        "limits",
        "server",
    }
    assert set(ChatRequest.model_fields) == {
        "model",
        "messages",
        "sampling",
        "repeat",
        "menu",
    }
    assert not transport & set(type(chat_request().sampling).model_fields)


def test_only_requests_and_replies_are_stored(store: CallStore) -> None:
    store.put(chat_request(), REPLY, 0.5)
    with sqlite3.connect(store.path) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master")]
        columns = [row[1] for row in db.execute("PRAGMA table_info(calls)")]
        (stored,) = db.execute("SELECT request FROM calls").fetchone()
    db.close()
    assert tables == ["calls"]
    assert columns == ["key", "request", "reply", "seconds", "created"]
    assert ChatRequest.model_validate_json(stored) == chat_request()


def test_every_put_that_returned_survives_a_kill_in_mid_writing(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent)))},
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        time.sleep(0.3)
        writer.kill()
        last = [0, *(int(line) for line in writer.stdout if line.endswith("\n"))][-1]
    with CallStore(path) as store:
        assert last > 0
        assert all(
            store.get(call_key(chat_request(f"Question {i}?"))) == REPLY for i in range(last + 1)
        )
        # One more may have been committed without having been told of.
        assert len(store) - (last + 1) in (0, 1)


def test_two_processes_write_to_one_store(store: CallStore) -> None:
    with CallStore(store.path) as other:
        for i in range(20):
            (store if i % 2 else other).put(chat_request(f"{i}?"), REPLY, 0.1)
        assert len(store) == len(other) == 20


def test_a_store_of_another_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with CallStore(path) as store:
        store.put(chat_request(), REPLY, 0.1)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(
        StoreError, match=rf"another version of rlaif \(format {SCHEMA_VERSION + 1}\)"
    ):
        CallStore(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    path.write_text("something else entirely, and long enough to be read as a header\n" * 40)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="the call store cannot be used: file is not a database"):
        CallStore(path)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StoreError, match="cannot be used"):
        CallStore(tmp_path / "run" / "calls.sqlite")


def test_a_damaged_reply_is_refused_and_not_taken_for_none(store: CallStore) -> None:
    store.put(chat_request(), REPLY, 0.1)
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE calls SET reply = substr(reply, 1, 9)")
    db.close()
    with pytest.raises(StoreError, match="the call store cannot be used"):
        store.get(call_key(chat_request()))


def test_a_full_disk_is_told_and_loses_nothing(store: CallStore) -> None:
    store.put(chat_request(), REPLY, 0.1)
    store._db.execute("PRAGMA max_page_count=1")  # the smallest disk there is
    big = REPLY.model_copy(update={"choices": (Choice(text="x" * 100_000, finish_reason="stop"),)})
    with pytest.raises(StoreError, match="could not be stored: database or disk is full"):
        store.put(chat_request("Big?"), big, 0.1)
    assert store.get(call_key(chat_request())) == REPLY
    assert len(store) == 1


def test_what_requests_learned_to_ask_for_leaves_the_keys_of_older_calls() -> None:
    request = chat_request()
    plain = request.model_dump(mode="json")
    del plain["menu"], plain["sampling"]["token_ids"]
    assert call_key(request) == digest(plain)
    tokens = request.sampling.model_copy(update={"token_ids": True})
    assert call_key(request.model_copy(update={"sampling": tokens})) != call_key(request)
    assert call_key(request.model_copy(update={"menu": ("A", "B")})) != call_key(request)

"""A managed server that dies in mid-run, or does not fit into the memory. The server is a stub that
answers as vLLM does; the same with a real vLLM stands in test_server_real.py."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import pytest
from conftest import chat_request
from virtual_time import in_virtual_time

from rlaif.callstore import CallStore
from rlaif.errors import AskingStopped, CallTransient, RlaifError, SetupError
from rlaif.models import pool
from rlaif.models.client import Answer, Bill, Client
from rlaif.models.pool import ManagedModel, ModelConfig, ModelPool
from rlaif.models.served import ServedModel
from rlaif.models.server import VLLMServer
from rlaif.models.server_log import wanted_less
from rlaif.models.server_settings import ServerConfig
from rlaif.types import ChatReply, ChatRequest

STUB = """
import http.server, json, os, signal, sys, threading

flag = lambda name: sys.argv[sys.argv.index(name) + 1]
cache, limit = int(flag("--kv-cache-memory-bytes")), float(flag("--most-gib")) * 2**30
if cache > limit:
    print("(EngineCore pid=2) ERROR 01-01 00:00:00 [core.py:9] ValueError: Available memory on "
          "node 0 (1.0/2.0 GiB) on kv cache is less than requested memory for kv (9 GiB).")
    print("RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
    sys.exit(1)
print("serving with a cache of", cache / 2**30, "GiB", flush=True)
answered, lock = 0, threading.Lock()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def reply(self, status, body):
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
    def do_GET(self):
        known = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        broken = answered >= int(flag("--answers")) and flag("--dies") == "slowly"
        self.reply(503 if broken else 200 if known or "/v1" not in self.path else 401, {})
    def do_POST(self):
        global answered
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with lock:
            if answered >= int(flag("--answers")):
                if flag("--dies") == "slowly":
                    return self.reply(500, {"error": {"message": "EngineDeadError"}})
                print("RuntimeError: the engine is gone", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            answered += 1
            with open(flag("--log"), "a") as log:
                log.write(body["messages"][0]["content"] + "\\n")
            # Under the lock: what is logged as answered must be out before another call kills us.
            self.reply(200, {
                "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1},
            })
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer((flag("--host"), int(flag("--port"))), Handler).serve_forever()
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"max_position_embeddings": 512}')
    (directory / "model.safetensors").write_bytes(b"0")
    return directory


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return tmp_path / "asked.txt"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VLLMServer, "needs", "http")
    monkeypatch.setattr(VLLMServer, "grace_s", 1.0)


def ask(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: int,
    answers: int,
    dies: str = "at once",
    most_gib: float = 100,
    **server: int | float,
) -> list[Answer]:
    """Asks through a pool whose server dies after `answers` answers."""
    stub = (sys.executable, "-c", STUB, "--answers", str(answers), "--dies", dies)
    more = ("--most-gib", str(most_gib), "--log", str(tmp_path / "asked.txt"))
    monkeypatch.setattr(VLLMServer, "command", (*stub, *more))
    config = ModelConfig(
        model=f"vllm/{model}", concurrency=4, server=ServerConfig.model_validate(server)
    )

    async def main() -> list[Answer]:
        with CallStore(tmp_path / "calls.sqlite") as store:
            pool = ModelPool(store, tmp_path / "logs", {})
            try:
                async with pool.open(config, "policy.model", Bill()) as client:
                    requests = [chat_request(f"Question {i}?") for i in range(calls)]
                    return await client.ask_all(requests, lambda done, note: None)
            finally:
                await pool.close_servers()

    return asyncio.run(main())


@pytest.mark.parametrize("dies", ["at once", "slowly"])
def test_a_server_that_dies_is_started_again_and_nothing_answered_is_asked_again(
    tmp_path: Path,
    model: Path,
    asked: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dies: str,
) -> None:
    found = ask(tmp_path, model, monkeypatch, calls=20, answers=8, dies=dies)
    assert all(isinstance(answer, ChatReply) for answer in found)
    questions = asked.read_text().splitlines()
    assert len(questions) == len(set(questions)) == 20
    said = capsys.readouterr().err
    assert "the vLLM server has died (" in said
    assert "starting it again, 2 of 3 times" in said


def test_a_server_that_dies_too_often_ends_the_run_with_its_last_words(
    tmp_path: Path, model: Path, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SetupError, match=r"the vLLM server died .*the engine is gone"):
        ask(tmp_path, model, monkeypatch, calls=20, answers=5, restarts=1)
    assert len(asked.read_text().splitlines()) == 10
    with CallStore(tmp_path / "calls.sqlite") as store:
        assert len(store) == 10


def test_a_server_that_does_not_fit_is_started_smaller_and_that_is_said(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask(tmp_path, model, monkeypatch, calls=1, answers=9, most_gib=2.5, kv_cache_gib=8)
    said = capsys.readouterr().err
    assert "it does not fit into the memory: trying with kv_cache_gib 4 instead of 8" in said
    assert "trying with kv_cache_gib 2 instead of 4" in said
    assert "with a cache of 2.0 GiB" in (tmp_path / "logs" / "vllm.log").read_text()


def test_a_server_that_does_not_fit_at_all_ends_in_its_own_words(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SetupError, match="less than requested memory for kv"):
        ask(tmp_path, model, monkeypatch, calls=1, answers=9, most_gib=0.1, kv_cache_gib=64)


def test_a_server_that_was_made_smaller_is_started_again_just_as_small(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask(tmp_path, model, monkeypatch, calls=5, answers=3, most_gib=2.5, kv_cache_gib=4)
    assert capsys.readouterr().err.count("it does not fit") == 1


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("ValueError: 1 GiB is less than requested memory for kv (9 GiB)", "kv cache"),
        ("MemoryError: Unable to allocate", "kv cache"),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't",
            "kv cache",
        ),
        (
            "ValueError: Free memory on device cuda:0 (1/80 GiB) on startup is less than desired "
            "GPU memory utilization (0.9, 72 GiB).",
            "utilization",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", "sequences"),
        ("ValueError: To serve at least one request with the model's max seq len (8192), ", ""),
        ("ValueError: the model type is unknown", ""),
    ],
)
def test_what_a_server_had_too_much_of_is_read_from_its_last_error(said: str, what: str) -> None:
    assert wanted_less(f"INFO starting\n{said}\n") == what


def test_on_a_gpu_less_is_tried_in_steps_and_the_context_stays() -> None:
    config, seen = ServerConfig(max_model_len=8192), []
    while (found := config.smaller("utilization", on_gpu=True)) is not None:
        config, said = found
        seen.append(said)
    assert seen == [f"--gpu-memory-utilization {share}" for share in ("0.8", "0.7", "0.6")]
    assert config.max_model_len == 8192
    assert ServerConfig().smaller("", on_gpu=True) is None


@pytest.mark.parametrize(
    ("given", "what", "said"),
    [
        (("--max-num-seqs", "16"), "sequences", None),
        (("--max-num-seqs=48",), "sequences", "--max-num-seqs 32"),
        (("--max_num_seqs", "64"), "sequences", "--max-num-seqs 32"),
        (("--gpu-memory-utilization", "0.5"), "utilization", None),
        (("--block-size", "32"), "sequences", "--max-num-seqs 128"),
    ],
)
def test_less_is_less_than_what_the_user_gave(
    given: tuple[str, ...], what: str, said: str | None
) -> None:
    found = ServerConfig(extra_args=given).smaller(what, on_gpu=True)
    assert (found and found[1]) == said


def test_restarts_of_none_is_what_the_user_may_want(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RlaifError):
        ask(tmp_path, model, monkeypatch, calls=9, answers=5, restarts=0)


class Watched:
    """Stands for a server that takes five seconds to say how it is."""

    name, api_key, base_url = "m", "k", "http://127.0.0.1:1/v1"

    def __init__(self) -> None:
        self.looks = 0

    async def is_serving(self) -> bool:
        self.looks += 1
        await asyncio.sleep(5)
        return True


def test_calls_that_fail_together_share_a_look_at_the_server(tmp_path: Path) -> None:
    watched = Watched()
    server = cast(VLLMServer, watched)

    async def main() -> float:
        with CallStore(tmp_path / "calls.sqlite") as store:
            models = ModelPool(store, tmp_path, {})
            models._server = server
            config = ModelConfig(model="vllm/a/b")

            async def look(failed_at_s: float) -> VLLMServer:
                await asyncio.sleep(failed_at_s)
                return await models._running(config, "policy.model", server)

            # What the first look finds may be of before the call that failed two seconds later.
            found = await asyncio.gather(*map(look, (0, 0, 0, 0, 2, 2, 2, 20)))
            assert set(found) == {server}
            return asyncio.get_running_loop().time()

    assert in_virtual_time(main) == 25
    assert watched.looks == 3


class Failing(ServedModel):
    """Each call fails after a second."""

    async def ask(self, request: ChatRequest) -> ChatReply:
        await asyncio.sleep(1)
        raise CallTransient("the server has died")


@pytest.mark.parametrize("drained_at_s", [0.5, 30])
def test_no_server_is_started_again_for_a_run_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drained_at_s: float
) -> None:
    """Half a second after the calls went out, or while the server is being started again."""
    monkeypatch.setattr(pool, "ServedModel", Failing)
    started: list[float] = []

    async def running(before: VLLMServer | None) -> VLLMServer:
        if before is not None:
            await asyncio.sleep(600)
            started.append(asyncio.get_running_loop().time())
        return cast(VLLMServer, Watched())

    async def main() -> float:
        with CallStore(tmp_path / "calls.sqlite") as store:
            model = ManagedModel("m", running, 5)
            client = Client(model, store, Bill(), concurrency=4, attempts=3)
            asking = [asyncio.create_task(client.ask(chat_request(t))) for t in "abcd"]
            await asyncio.sleep(drained_at_s)
            await client.drain()
            seconds = asyncio.get_running_loop().time()
            found = await asyncio.gather(*asking, return_exceptions=True)
            assert {type(e) for e in found} == {AskingStopped}
            return seconds

    assert in_virtual_time(main) <= max(drained_at_s, 1) + 0.5
    assert started == []

"""The managed server for real: vLLM, the embedded model, the real SDKs. Two server starts."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from rlaif.callstore import CallStore, call_key
from rlaif.judge.config import JudgeConfig
from rlaif.judge.read import read_structured
from rlaif.models import embedded
from rlaif.models.client import Answer, Bill
from rlaif.models.openai_wire import read_completion
from rlaif.models.pool import ModelConfig, ModelPool
from rlaif.models.server import VLLMServer
from rlaif.models.server_settings import ServerConfig
from rlaif.stages.constitution_test import run_constitution_test
from rlaif.train.loading import load_tokenizer
from rlaif.train.scoring import sampled_logprobs
from rlaif.types import ChatReply, ChatRequest, Message, Prompt, Sampling

pytestmark = pytest.mark.real

ROOT = Path(__file__).parent.parent
# The tool parser is for Anthropic's API: a forced tool is how it keeps an answer to a menu.
CONFIG = ServerConfig(
    max_model_len=1024,
    kv_cache_gib=0.5,
    extra_args=("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
)
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def weights() -> Path:
    return embedded.prepare("smollm2-135m-instruct", print)


@pytest.fixture(scope="module")
def server(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    server = VLLMServer(str(weights), CONFIG, log, print)
    asyncio.run(server.start())
    pids, shared = server.pids, shared_memory_of(server.pids)
    yield server
    asyncio.run(server.stop())
    assert running(pids) == []
    assert shared
    assert not any(segment.exists() for segment in shared)


def shared_memory_of(pids: tuple[int, ...] | list[int]) -> set[Path]:
    """Named segments of shared memory that these processes map; they outlive who does not unlink
    them."""
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    return {Path(path) for path in re.findall(r"(/dev/shm/psm_\w+)$", maps, re.MULTILINE)}


def running(pids: tuple[int, ...] | list[int]) -> list[int]:
    left = []
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if stat.rpartition(")")[2].split()[0] not in "ZX":
            left.append(pid)
    return left


def test_the_server_is_healthy_and_keeps_its_key_to_itself(server: VLLMServer) -> None:
    root = server.base_url.removesuffix("/v1")
    assert httpx.get(f"{root}/health", trust_env=False).status_code == 200
    assert httpx.get(f"{server.base_url}/models", trust_env=False).status_code == 401
    assert server.api_key not in server.log.read_text()
    for pid in server.pids:
        assert server.api_key not in Path(f"/proc/{pid}/cmdline").read_text()
    server.check_alive()


def test_it_answers_a_chat_with_the_first_tokens_log_probabilities(server: VLLMServer) -> None:
    with openai.OpenAI(
        base_url=server.base_url, api_key=server.api_key, max_retries=0, timeout=120
    ) as client:
        reply = client.chat.completions.create(
            model=server.name,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0.0,
            max_tokens=16,
            n=1,
            logprobs=True,
            top_logprobs=5,
        )
    choice = reply.choices[0]
    assert "Paris" in (choice.message.content or "")
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    first = choice.logprobs.content[0].top_logprobs
    assert len(first) == 5
    assert all(a.logprob >= b.logprob for a, b in itertools.pairwise(first))
    assert first[0].logprob <= 0.0


def test_the_tokens_of_its_answers_have_the_log_probabilities_that_it_drew_them_with(
    server: VLLMServer, weights: Path
) -> None:
    with openai.OpenAI(
        base_url=server.base_url, api_key=server.api_key, max_retries=0, timeout=120
    ) as client:
        reply = client.chat.completions.create(
            model=server.name,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=1.0,
            max_tokens=24,
            n=4,
            logprobs=True,
            extra_body={"return_token_ids": True},
        )
    told = read_completion(reply.model_dump(), structured=False)
    prompt = Prompt(id="0", messages=(Message(role="user", content=QUESTION),))
    ours = sampled_logprobs(
        str(weights), [(prompt, c.token_ids) for c in told.choices], 1024, lambda *_: None
    )
    tokenizer = load_tokenizer(str(weights))
    for choice, theirs, log_prob in zip(told.choices, reply.choices, ours, strict=True):
        assert tokenizer.decode(choice.token_ids, skip_special_tokens=True) == choice.text
        assert (choice.token_ids[-1] == tokenizer.eos_token_id) == (choice.finish_reason == "stop")
        assert theirs.logprobs is not None
        assert theirs.logprobs.content is not None
        drawn = sum(t.logprob for t in theirs.logprobs.content)
        assert log_prob == pytest.approx(drawn, abs=0.02)


def asked_through_anthropic(
    server: VLLMServer, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Answer:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.base_url.removesuffix("/v1"))
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", server.api_key)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    config = ModelConfig(model=f"anthropic/{server.name}", attempts=1)

    async def asked() -> Answer:
        with CallStore(folder / "calls.sqlite") as store:
            async with ModelPool(store, folder, {}).open(config, "model", Bill()) as client:
                request = ChatRequest(
                    model=client.model.identity,
                    messages=(
                        Message(role="system", content="You answer in one sentence."),
                        Message(role="user", content=QUESTION),
                    ),
                    sampling=Sampling(max_tokens=32, temperature=0.0),
                ).model_copy(update=changes)
                (answer,) = await client.ask_all([request], lambda done, note="": None)
                assert store.get(call_key(request)) == answer
                return answer

    return asyncio.run(asked())


def test_our_anthropic_provider_is_answered_by_the_same_server(
    server: VLLMServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = asked_through_anthropic(server, tmp_path, monkeypatch)
    assert isinstance(reply, ChatReply)
    assert "Paris" in reply.choices[0].text
    assert reply.choices[0].first_token == ()
    assert reply.completion_tokens > 0


def test_a_forced_tool_gives_a_verdict_on_the_menu_or_none(
    server: VLLMServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # vLLM 0.32 takes the forced tool of Anthropic's API and does not hold so small a model to the
    # tool's schema: what comes back is read as a verdict only if it is one.
    reply = asked_through_anthropic(server, tmp_path, monkeypatch, menu=("Paris", "Rome"))
    assert isinstance(reply, ChatReply), reply
    (choice,) = reply.choices
    verdict = read_structured(choice, ("Paris", "Rome"))
    given = choice.text in ('{"verdict":"Paris"}', '{"verdict":"Rome"}')
    assert (verdict.p_first_label is not None) == given
    assert given or verdict.reason in ("truncated", "invalid_json", "unreadable", "off_the_menu")


def test_a_constitutions_tests_run_on_a_real_judge(
    server: VLLMServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAIF_HTTP_API_KEY", server.api_key)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    run = [
        run_constitution_test(
            "concise",
            JudgeConfig(model=f"{server.base_url}#{server.name}", constitution="concise"),
            tmp_path,
        )
        for _ in range(2)
    ]
    # Pairs in both orders, single responses once; a test of the whole asks both principles.
    pairs, single, whole = 8, 4, 2
    assert len(run[0].results) == pairs + single + whole
    assert run[0].calls_made == 2 * pairs + single + 2 * 2 * whole
    assert {r.outcome for r in run[0].results} <= {"pass", "fail", "unscored"}
    assert all((r.p is None) == (r.outcome == "unscored") for r in run[0].results)
    assert run[1].calls_made == 0
    assert [r.outcome for r in run[1].results] == [r.outcome for r in run[0].results]


def test_sigkill_of_the_parent_leaves_no_vllm_process(weights: Path, tmp_path: Path) -> None:
    parent_code = textwrap.dedent(f"""
        import asyncio, time
        from pathlib import Path
        from rlaif.models.server import VLLMServer
        from rlaif.models.server_settings import ServerConfig
        config = ServerConfig.model_validate_json({CONFIG.model_dump_json()!r})
        log = Path({str(tmp_path / "vllm.log")!r})
        server = VLLMServer({str(weights)!r}, config, log, lambda line: None)
        asyncio.run(server.start())
        print(*server.pids, flush=True)
        time.sleep(600)
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
    # Supervisor, API server, engine and worker at least.
    assert len(running(pids)) >= 4
    shared = shared_memory_of(pids)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while running(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(pids) == []
    assert not any(segment.exists() for segment in shared)


def test_an_engine_that_is_killed_is_started_again_and_one_too_large_is_made_smaller(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    available_kib = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
    assert available_kib is not None
    too_much = int(available_kib[1]) / 2**20 * 1.2
    large = CONFIG.model_copy(update={"kv_cache_gib": too_much})
    config = ModelConfig(model=f"vllm/{weights}", concurrency=4, server=large)
    questions = [
        ChatRequest(
            model="served/m",
            messages=(Message(role="user", content=f"Say a word about the number {i}."),),
            sampling=Sampling(max_tokens=24, temperature=1.0),
        )
        for i in range(24)
    ]
    killed: list[int] = []

    async def main() -> list[Answer]:
        with CallStore(tmp_path / "calls.sqlite") as store:
            pool = ModelPool(store, tmp_path, {})

            def advance(done: int, note: str) -> None:
                if done == 6 and not killed:
                    server = pool._server
                    assert server is not None
                    # The youngest of its processes is the engine or a worker of it.
                    killed.extend(server.pids)
                    os.kill(max(server.pids), signal.SIGKILL)

            try:
                async with pool.open(config, "model", Bill()) as client:
                    found = await client.ask_all(questions, advance)
                assert len(store) == 24
                return found
            finally:
                await pool.close_servers()

    answers = asyncio.run(main())
    assert all(isinstance(answer, ChatReply) for answer in answers)
    said = capsys.readouterr().err
    assert "it does not fit into the memory: trying with kv_cache_gib" in said
    assert "the vLLM server has died (" in said
    assert "starting it again, 1 of 3 times" in said
    assert running(killed) == []

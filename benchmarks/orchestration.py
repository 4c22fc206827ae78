"""What asking costs beside the model: calls a second, CPU time, memory, and what a kill repeats.

    python benchmarks/orchestration.py [--calls 20000] [--peer NAME=PYTHON:CALLS ...] [--rounds 3]
    python benchmarks/orchestration.py --million

Everything asks the same instant server (instant_server.py), 64 calls at once, in processes of their
own; rounds take turns. `--peer distilabel=/venv/bin/python:1000` measures
benchmarks/peers/NAME_peer.py with that Python. A kill is a SIGKILL at half of the calls, and the
same command again; repeated are the calls that had been answered before it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
WINDOW = 64
KILL_WAIT_S = 120.0
QUESTION = "why is the sky blue and what does it do in the evening? " * 4
RECIPE = """
policy: {{model: "{url}#m", concurrency: {window}}}
sample: {{prompts: ./prompts.jsonl, k: 2, max_tokens: 64}}
judge: {{model: fake/shorter, constitution: concise}}
"""


class Taken(NamedTuple):
    calls_s: float
    cpu_ms: float
    """Of the process and its children, a call."""
    rss_mb: float
    """Largest of one process."""


def bodies(n: int) -> Iterator[str]:
    return (f"Question {i}: {QUESTION}" for i in range(n))


async def ours(n: int, url: str, folder: str) -> None:
    from rlaif.callstore import CallStore
    from rlaif.models.client import Answer, Bill, Client
    from rlaif.models.flow import flow
    from rlaif.models.served import ServedModel
    from rlaif.types import ChatReply, ChatRequest, Message, Sampling

    model = ServedModel("m", identity="served/m", api_key="none", base_url=url, timeout_s=60)
    requests = (
        ChatRequest(
            model="served/m",
            messages=(Message(role="user", content=text),),
            sampling=Sampling(max_tokens=64, temperature=1.0),
        )
        for text in bodies(n)
    )
    answered = 0

    def told(answer: Answer) -> None:
        nonlocal answered
        answered += isinstance(answer, ChatReply)

    with CallStore(Path(folder) / "calls.sqlite") as store:
        client = Client(model, store, Bill(), concurrency=WINDOW, attempts=3)
        await flow(requests, client.ask, told, window=client.window)
        await client.drain()
        await model.aclose()
    assert answered == n


async def raw_aiohttp(n: int, url: str, folder: str) -> None:
    import aiohttp

    window = asyncio.Semaphore(WINDOW)

    async def one(session: aiohttp.ClientSession, text: str) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 64}
        async with session.post(f"{url}/chat/completions", json=body) as response:
            await response.json()
        window.release()

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for text in bodies(n):
            await window.acquire()
            group.create_task(one(session, text))


async def openai_sdk(n: int, url: str, folder: str) -> None:
    import openai

    window = asyncio.Semaphore(WINDOW)
    sdk = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)

    async def one(text: str) -> None:
        await sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": text}], max_tokens=64
        )
        window.release()

    async with asyncio.TaskGroup() as group:
        for text in bodies(n):
            await window.acquire()
            group.create_task(one(text))


CHILDREN: dict[str, Callable[[int, str, str], object]] = {
    "rlaif": ours,
    "raw aiohttp": raw_aiohttp,
    "openai SDK": openai_sdk,
}


class Server:
    """The instant server, in a process of its own."""

    def __enter__(self) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([sys.executable, HERE / "instant_server.py", str(port)])
        for _ in range(100):
            try:
                self.get("/stats")
                return self
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("the server does not start")

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def get(self, path: str) -> dict[str, int]:
        with urllib.request.urlopen(self.root + path, timeout=10) as answer:
            found: dict[str, int] = json.loads(answer.read())
        return found


def measured(command: list[str], calls: int) -> Taken:
    """Runs a command that makes so many calls."""
    code = (
        "import json, resource, subprocess, sys, time\n"
        "start = time.monotonic()\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)\n"
        "if done.returncode: sys.exit(done.stderr.decode()[-2000:])\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "cpu_s = used.ru_utime + used.ru_stime\n"
        "print(json.dumps([time.monotonic() - start, cpu_s, used.ru_maxrss / 1024]))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    if out.returncode:
        raise RuntimeError(out.stderr)
    seconds, cpu_s, rss_mb = json.loads(out.stdout)
    return Taken(calls / seconds, cpu_s / calls * 1000, rss_mb)


def command_of(name: str, python: str, calls: int, url: str, folder: str) -> list[str]:
    if name in CHILDREN:
        return [python, str(Path(__file__)), "--child", name, str(calls), url, folder]
    return [python, str(HERE / "peers" / f"{name}_peer.py"), str(calls), url, folder]


def killed(server: Server, command: list[str], calls: int) -> str:
    """Calls repeated after a SIGKILL at half of them."""
    server.get("/reset")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(command, start_new_session=True, **quiet)
    while server.get("/stats")["answered"] < calls // 2 and run.poll() is None:
        time.sleep(0.005)
    if run.poll() is not None:
        return "it ended before half"
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(0.5)
    again = subprocess.Popen(command, start_new_session=True, **quiet)
    try:
        again.wait(KILL_WAIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(again.pid, signal.SIGKILL)
        return f"{server.get('/stats')['repeated']}, and it did not end"
    stats = server.get("/stats")
    lost = calls - (stats["answered"] - stats["repeated"])
    said = str(stats["repeated"])
    if again.returncode:
        return f"{said}, and it failed ({again.returncode})"
    return f"{said}, and {lost} were never asked" if lost > 0 else said


def million(server: Server, most: int) -> None:
    """The whole processes, `rlaif sample` and `rlaif judge` (two calls a prompt), with 10,000 and
    with `most` prompts."""
    print("| stage | prompts | calls/s | CPU ms a call | peak memory |\n|---|---|---|---|---|")
    for n in (10_000, most):
        with tempfile.TemporaryDirectory() as folder:
            with (Path(folder) / "prompts.jsonl").open("w") as f:
                for i, text in enumerate(bodies(n)):
                    f.write(json.dumps({"id": f"q{i}", "prompt": text}) + "\n")
            recipe = RECIPE.format(url=f"{server.root}/v1", window=WINDOW)
            (Path(folder) / "run.yaml").write_text(recipe)
            os.chdir(folder)
            for stage, calls in (("sample", n), ("judge", 2 * n)):
                command = [sys.executable, "-m", "rlaif", stage, "run.yaml", "--out", "run"]
                taken = measured(command, calls)
                print(
                    f"| {stage} | {n:,} | {taken.calls_s:,.0f} | {taken.cpu_ms:.2f} | "
                    f"{taken.rss_mb:.0f} MB |",
                    flush=True,
                )
            os.chdir("/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON:CALLS")
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--prompts", type=int, default=1_000_000, help="with --million")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        name, calls, url, folder = given.child
        asyncio.run(CHILDREN[name](int(calls), url, folder))  # type: ignore[arg-type]
        return
    asked = [(name, sys.executable, given.calls) for name in CHILDREN]
    for peer in given.peer:
        name, _, rest = peer.partition("=")
        python, _, calls = rest.rpartition(":")
        asked.append((name, python, int(calls)))
    with Server() as server:
        if given.million:
            million(server, given.prompts)
            return
        found: dict[str, list[Taken]] = {name: [] for name, _, _ in asked}
        for _ in range(given.rounds):
            for name, python, calls in asked:
                with tempfile.TemporaryDirectory() as folder:
                    command = command_of(name, python, calls, f"{server.root}/v1", folder)
                    found[name].append(measured(command, calls))
        print(
            "| | calls | calls/s (rounds) | CPU ms a call | peak memory | repeated after a kill |"
        )
        print("|---|---|---|---|---|---|")
        for name, python, calls in asked:
            rates = [taken.calls_s for taken in found[name]]
            with tempfile.TemporaryDirectory() as folder:
                command = command_of(name, python, calls, f"{server.root}/v1", folder)
                keeps = name == "rlaif" or name not in CHILDREN
                repeated = killed(server, command, calls) if keeps else "keeps nothing"
            print(
                f"| {name} | {calls:,} | {statistics.median(rates):,.0f} "
                f"({' '.join(f'{rate:,.0f}' for rate in rates)}) | "
                f"{statistics.median(t.cpu_ms for t in found[name]):.2f} | "
                f"{max(t.rss_mb for t in found[name]):.0f} MB | {repeated} |"
            )


if __name__ == "__main__":
    main()

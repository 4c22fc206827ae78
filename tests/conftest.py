"""Fixtures that several test files use."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from local_server import Server

from rlaif import cli
from rlaif.types import ChatRequest, Message, Sampling

# A loaded machine must not fail a property for its speed.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

KEYS = (
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "RLAIF_HTTP_API_KEY",
)


class Finished(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    def refused(self) -> str:
        """The one line of a command that was refused before it did anything."""
        assert self.code == 2, self
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("rlaif: ")
        return line.removeprefix("rlaif: ")

    def stopped(self) -> str:
        """The one line of a command that was refused in the middle, after it said where it was."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("rlaif: ")]
        assert self.err.splitlines()[-1] == line
        return line.removeprefix("rlaif: ")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads of a busy machine wait for each other longer than a tiny model computes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no key or address in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run_cli(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """Runs the command line in this process, from an empty working directory."""

    def run(*arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["rlaif", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Finished(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def server(empty_place: Path) -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def chat_request(text: str = "Hello?", repeat: int = 0, **sampling: object) -> ChatRequest:
    """A small chat request."""
    return ChatRequest(
        model="served/m",
        messages=(Message(role="user", content=text),),
        sampling=Sampling.model_validate({"max_tokens": 8, "temperature": 0.0, **sampling}),
        repeat=repeat,
    )

"""A run that asks: stages at the same time, budgets, and Ctrl-C in a real process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Finished
from local_server import Script, Server, completion

from rlaif.datasets import open_prompts
from rlaif.errors import JudgeFallsShort, SetupError
from rlaif.files import jsonl_writer
from rlaif.recipe import execute, load_run
from rlaif.types import Message
from rlaif.workspace import Workspace

LABELS = ("responses.jsonl", "judgments.jsonl", "comparisons.jsonl", "prompts.jsonl")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as opened:
        threading.Thread(target=opened.serve_forever, daemon=True).start()
        yield opened
        opened.shutdown()


def asking(directory: Path, *arguments: str, background: bool = False) -> subprocess.Popen[str]:
    ctrl_c = signal.SIG_IGN if background else signal.SIG_DFL
    return subprocess.Popen(
        [sys.executable, "-m", "rlaif", *arguments],
        cwd=directory,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, ctrl_c),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )


def stored(out: Path) -> int:
    with sqlite3.connect(f"file:{out / 'calls.sqlite'}?mode=ro", uri=True) as db:
        count: int = db.execute("SELECT count(*) FROM calls").fetchone()[0]
    db.close()
    return count


def test_judging_starts_before_sampling_has_ended(tmp_path: Path) -> None:
    slow = ["policy.model=fake/policy?delay=0.05", "policy.concurrency=1"]
    config, out = load_run("smoke", slow, tmp_path / "r")
    execute(config, out, ("sample", "judge"), reconfigure=False)
    with sqlite3.connect(out / "calls.sqlite") as db:
        asked = db.execute("SELECT request FROM calls ORDER BY created").fetchall()
    db.close()
    models = [json.loads(request)["model"].partition("?")[0] for (request,) in asked]
    assert models.index("fake/shorter") < len(models) - 1 - models[::-1].index("fake/policy")


def test_stages_at_the_same_time_write_what_one_after_the_other_does(tmp_path: Path) -> None:
    for name, steps in (("a", [("sample", "judge")]), ("b", [("sample",), ("judge",)])):
        for stages in steps:
            config, out = load_run("smoke", [], tmp_path / name)
            execute(config, out, stages, reconfigure=False)
    for name in LABELS:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_judge_that_falls_short_labels_nothing_but_the_samples_are_kept(tmp_path: Path) -> None:
    gate = ["judge.gate.gold=[concise]", "judge.gate.min_agreement=0.99", "judge.model=fake/first"]
    config, out = load_run("smoke", gate, tmp_path / "r")
    with pytest.raises(JudgeFallsShort):
        execute(config, out, ("sample", "certify", "judge"), reconfigure=False)
    assert (out / "responses.jsonl").is_file()
    assert not (out / "comparisons.jsonl").exists()
    assert json.loads((out / "report.json").read_text())["certificate"]["shortfalls"]


def test_a_spent_budget_is_exit_code_4_and_names_the_command(tmp_path: Path) -> None:
    run = asking(tmp_path, "judge", "smoke", "--out", "r", "--max-calls", "5")
    assert run.wait() == 2  # nothing is sampled yet
    assert run.stderr is not None
    run.stderr.close()
    run = asking(tmp_path, "sample", "smoke", "--out", "r", "--max-calls", "5")
    _, said = run.communicate(timeout=60)
    assert run.returncode == 4
    assert said.splitlines()[-1] == (
        "rlaif: --max-calls: 5 calls are made; what was in flight is kept, and this goes on and "
        "may spend as much again: rlaif sample smoke --out r --max-calls 5"
    )
    assert stored(tmp_path / "r") == 5


@pytest.mark.parametrize("option", ["--max-usd", "--max-calls", "--max-minutes"])
def test_the_help_says_that_a_budget_is_of_one_run_of_the_command(
    run_cli: Callable[..., Finished], option: str
) -> None:
    said = " ".join(run_cli("run", "--help").out.split())
    assert "(in this run of the command)" in said.partition(f"{option} ")[2].partition(" --")[0]


@pytest.mark.parametrize(
    ("sent", "background"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)],
)
def test_control_c_and_sigterm_keep_what_is_paid_for_and_ask_no_more(
    tmp_path: Path, server: Server, sent: signal.Signals, background: bool
) -> None:
    answer = Script(body=completion("It is blue.", "It is not."), delay_s=1.5)
    listed = Script(body={"data": [{"id": "m"}]})
    server.script = [listed, *[answer] * 12]
    run = asking(
        tmp_path,
        *("sample", "smoke", "--out", "r", "sample.k=2", "policy.concurrency=3"),
        f"policy.model={server.url}/v1#m",
        "policy.limits.adapt=false",
        background=background,
    )
    if background:
        run.send_signal(signal.SIGINT)  # Ctrl-C on what runs in front
    deadline = time.monotonic() + 60
    while len(server.seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(sent)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "waiting for 3 calls in flight (Ctrl-C: leave them)" in said
    assert said.splitlines()[-1].endswith(
        f"policy.concurrency=3 'policy.model={server.url}/v1#m' policy.limits.adapt=false"
    )
    assert len(server.seen) == 4  # the list of models, and three calls
    assert stored(tmp_path / "r") == 3


def test_a_run_that_is_refused_leaves_the_config_of_the_one_at_work(tmp_path: Path) -> None:
    config, out = load_run("smoke", ["sample.limit=2"], tmp_path / "r")
    execute(config, out, ("sample",), reconfigure=False)
    before = (out / "config.yaml").read_bytes()
    other, _ = load_run("smoke", ["sample.limit=3"], out)
    at_work = Workspace(out, 0, {})
    with pytest.raises(SetupError, match="another run is working in this directory"):
        execute(other, out, ("sample",), reconfigure=True)
    asyncio.run(at_work.close())
    assert (out / "config.yaml").read_bytes() == before


def test_prompts_are_read_row_by_row_and_again(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(f'{{"prompt": "Question {i}"}}\n' for i in range(5)))
    prompts = open_prompts(str(path), 3)
    assert len(prompts) == len(list(prompts)) == len(list(prompts)) == 3


def test_an_id_that_stands_twice_is_told_by_its_second_row(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(f'{{"id": "q{i % 4}", "prompt": "Q {i}"}}\n' for i in range(6)))
    with pytest.raises(SetupError, match=r"set.jsonl:5: id 'q0' stands twice"):
        open_prompts(str(path))


def test_a_file_of_records_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record = Message(role="user", content="a")
    with jsonl_writer(path) as write:
        write(record)
    before = path.read_bytes()

    def cut_off() -> None:
        with jsonl_writer(path) as write:
            write(record)
            write(record)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]

"""The main job on real parts: the embedded model on a real vLLM server, judge and training too."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest

pytestmark = pytest.mark.real
# The recipe as it is, but small: what is left out is only more of the same.
SMALL = ("sample.limit=8", "sample.k=3", "sample.max_tokens=24")


def rlaif(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlaif", *arguments], cwd=cwd, capture_output=True, text=True
    )


def our_servers(directory: Path) -> list[int]:
    """Processes of any vLLM server whose log is under this run directory."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                descriptors = [str(fd.readlink()) for fd in (process / "fd").iterdir()]
            except OSError:
                continue  # it ended, or is not ours to look at
            if any(
                target.startswith(str(directory)) and "vllm" in target for target in descriptors
            ):
                found.append(int(process.name))
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rlaif run demo`, run small to its end."""
    here = tmp_path_factory.mktemp("demo")
    done = rlaif("run", "demo", *SMALL, cwd=here)
    assert done.returncode == 0, done.stderr[-3000:]
    return here / "outputs" / "demo"


def test_the_demo_leads_from_a_constitution_to_a_report(demo: Path) -> None:
    report = json.loads((demo / "report.json").read_text())
    labels = report["labels"]
    assert labels["requested"] == 8 * 3
    assert labels["requested"] == labels["a"] + labels["b"] + labels["tie"] + sum(
        labels["unscored"].values()
    )
    assert report["judge"]["judgments"] == 8 * 3 * 2 * 2
    assert report["reward_model"]["steps"] > 0
    assert report["dpo"]["kl"] is not None
    assert report["comparison"]["mean_length_dpo"] > 0
    assert any("not certified" in warning for warning in report["warnings"])
    assert "<svg" in (demo / "report.html").read_text()


def test_the_demo_dataset_is_read_by_datasets(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    loaded = datasets.load_dataset(str(demo / "preferences"), cache_dir=str(tmp_path))
    row = loaded["train"][0]
    assert row["chosen"][0]["role"] == "assistant"
    assert row["probability"] > 0.5
    # A principle on which so small a judge gives no verdict has no vote in that row.
    votes = [vote for row in loaded["train"] for vote in row["votes"]]
    assert {vote["principle"] for vote in votes} == {"answer-first", "no-padding"}


def test_running_the_demo_again_asks_no_model_and_starts_no_server(demo: Path) -> None:
    before = {p: p.read_bytes() for p in (demo / "preferences").rglob("*") if p.is_file()}
    logs = {p: p.stat().st_size for p in (demo / "logs").iterdir()}
    done = rlaif("run", "demo", *SMALL, "--out", str(demo), cwd=demo)
    assert done.returncode == 0, done.stderr[-3000:]
    cost = json.loads((demo / "report.json").read_text())["cost"]
    assert sum(stage["calls_made"] for stage in cost.values()) == 0
    assert sum(stage["calls_from_store"] for stage in cost.values()) > 0
    assert {p: p.read_bytes() for p in before} == before
    assert {p: p.stat().st_size for p in (demo / "logs").iterdir()} == logs


def test_no_server_is_left_after_a_run(demo: Path) -> None:
    assert our_servers(demo) == []


def test_no_server_is_left_after_a_kill_and_the_next_run_asks_nothing_twice(
    tmp_path: Path,
) -> None:
    out = tmp_path / "killed"
    # Two at a time, so that the kill finds some calls answered and some not.
    few = ("sample.limit=24", "sample.max_tokens=32", "policy.concurrency=2")
    arguments = ("sample", "demo", *few, "--out", str(out))
    process = subprocess.Popen(
        [sys.executable, "-m", "rlaif", *arguments],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    answered = 0
    deadline = time.monotonic() + 600
    while answered < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
        answered = count_calls(out)
    assert process.poll() is None, "the run ended before it could be killed"
    assert our_servers(out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    answered = count_calls(out)
    assert 3 <= answered < 24
    deadline = time.monotonic() + 10
    while our_servers(out) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert our_servers(out) == []

    done = rlaif(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    cost = json.loads((out / "report.json").read_text())["cost"]["sample"]
    assert cost["calls_from_store"] == answered
    assert cost["calls_made"] == 24 - answered


def count_calls(out: Path) -> int:
    from rlaif.callstore import CallStore

    if not (out / "calls.sqlite").is_file():
        return 0
    with CallStore(out / "calls.sqlite") as store:
        return len(store)

"""Each stage by itself: what it writes, what it costs again, how it ends when it cannot go on."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlaif import cli
from rlaif.callstore import CallStore
from rlaif.datasets import load_prompts
from rlaif.errors import SetupError, TooManyFailures
from rlaif.files import read_jsonl
from rlaif.models.client import Bill, Client
from rlaif.models.fake import FakeModel
from rlaif.recipe import execute, load_run
from rlaif.sample import Sampled, sample
from rlaif.stages import compare
from rlaif.types import (
    ChatReply,
    ChatRequest,
    Comparison,
    Judgment,
    PreferenceGroup,
    Prompt,
    Response,
    Sampling,
)
from rlaif.workspace import Workspace

LABELLING = ("sample", "judge", "pairs")
SMALL = ("sample.limit=4", "sample.k=3", "sample.max_tokens=40")


def run(out: Path, stages: tuple[str, ...], *changes: str, reconfigure: bool = False) -> None:
    config, directory = load_run("smoke", [*SMALL, *changes], out)
    execute(config, directory, stages, reconfigure=reconfigure)


def report(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("stage", ["train-rm", "train-dpo"])
def test_a_tracker_that_is_not_installed_is_found_before_a_label_is_paid_for(
    tmp_path: Path, stage: str
) -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    section = {"train-rm": "reward_model", "train-dpo": "dpo"}[stage]
    changes = f"{section}.trackers=[wandb]"
    with pytest.raises(SetupError, match=rf"^{section}\.trackers: wandb is not installed"):
        run(tmp_path / "r", (*LABELLING, stage), changes)
    assert not (tmp_path / "r" / "calls.sqlite").exists()
    run(tmp_path / "r", LABELLING, changes)


def datasets_of(out: Path) -> dict[str, bytes]:
    """Every file that labels are read from, by name."""
    files = [out / "responses.jsonl", out / "judgments.jsonl", out / "comparisons.jsonl"]
    files += [out / "groups.jsonl", *sorted((out / "preferences").rglob("*.*"))]
    return {str(f.relative_to(out)): f.read_bytes() for f in files}


def calls_made(out: Path, stage: str) -> int:
    made: int = report(out)["cost"][stage]["calls_made"]
    return made


def test_every_label_leads_back_to_a_stored_call(tmp_path: Path) -> None:
    run(tmp_path, LABELLING)
    responses = read_jsonl(tmp_path / "responses.jsonl", Response)
    judgments = read_jsonl(tmp_path / "judgments.jsonl", Judgment)
    comparisons = read_jsonl(tmp_path / "comparisons.jsonl", Comparison)
    groups = read_jsonl(tmp_path / "groups.jsonl", PreferenceGroup)
    assert (len(responses), len(comparisons), len(judgments)) == (12, 12, 12 * 2 * 2)
    with sqlite3.connect(tmp_path / "calls.sqlite") as store:
        stored = {key for (key,) in store.execute("SELECT key FROM calls")}
    store.close()
    used = {r.call for r in responses} | {call for j in judgments for call in j.calls}
    assert used == stored
    labels = report(tmp_path)["labels"]
    lost = sum(labels["unscored"].values())
    assert labels["requested"] == 12 == labels["a"] + labels["b"] + labels["tie"] + lost
    assert sum(len(g.comparisons) for g in groups) == labels["a"] + labels["b"]
    assert {c.prompt_id for c in comparisons} == {r.prompt_id for r in responses}


def test_labelling_again_asks_nothing_and_writes_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path, LABELLING)
    before = datasets_of(tmp_path)
    first = report(tmp_path)["cost"]
    run(tmp_path, LABELLING)
    second = report(tmp_path)["cost"]
    assert datasets_of(tmp_path) == before
    for stage in ("sample", "judge"):
        assert first[stage]["calls_made"] > 0
        assert second[stage]["calls_made"] == 0
        assert second[stage]["calls_from_store"] == first[stage]["calls_made"]


def test_deleted_datasets_are_rebuilt_from_the_store_alone(tmp_path: Path) -> None:
    run(tmp_path, LABELLING)
    before = datasets_of(tmp_path)
    for name in before:
        (tmp_path / name).unlink()
    run(tmp_path, LABELLING)
    assert datasets_of(tmp_path) == before
    assert calls_made(tmp_path, "sample") == calls_made(tmp_path, "judge") == 0


def test_another_tie_margin_costs_no_call_and_changes_the_labels(tmp_path: Path) -> None:
    run(tmp_path, LABELLING)
    before = report(tmp_path)["labels"]
    run(tmp_path, LABELLING, "judge.tie_margin=0.499", reconfigure=True)
    after = report(tmp_path)["labels"]
    assert calls_made(tmp_path, "sample") == calls_made(tmp_path, "judge") == 0
    assert after["requested"] == before["requested"]
    assert after["tie"] > before["tie"]


def test_a_split_that_is_gone_leaves_no_old_file_behind(tmp_path: Path) -> None:
    run(tmp_path, LABELLING)
    data = tmp_path / "preferences" / "data"
    assert len(list(data.iterdir())) == 2
    run(tmp_path, ("pairs",), "pairs.test_fraction=0", reconfigure=True)
    assert [f.name for f in data.iterdir()] == ["train-00000-of-00001.parquet"]


def test_another_config_is_refused_without_reconfigure(tmp_path: Path) -> None:
    run(tmp_path, ("sample",))
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(SetupError, match=r"judge\.tie_margin: 0\.01 there, 0\.2 now"):
        run(tmp_path, ("judge",), "judge.tie_margin=0.2")
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_hard_labels_are_ones_and_zeros(tmp_path: Path) -> None:
    run(tmp_path, LABELLING, "pairs.soft_labels=false")
    groups = read_jsonl(tmp_path / "groups.jsonl", PreferenceGroup)
    assert {c.p_first for g in groups for c in g.comparisons} == {0.0, 1.0}


def test_a_refusing_judge_makes_no_pair_and_ends_with_too_many_failures(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailures, match="12 of 12 comparisons ended unscored") as stop:
        run(tmp_path, LABELLING, "judge.model=fake/refuse")
    assert stop.value.exit_code == 3
    found = report(tmp_path)
    assert {k: v for k, v in found["labels"].items() if not k.startswith("by_")} == {
        "requested": 12,
        "a": 0,
        "b": 0,
        "tie": 0,
        "unscored": {"label_mass_below_floor": 12},
    }
    assert found["pairs"] is None
    assert not (tmp_path / "preferences").exists()


def test_a_threshold_that_allows_it_lets_the_run_go_on_to_find_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailures, match="nothing to train on"):
        run(tmp_path, LABELLING, "judge.model=fake/refuse", "judge.max_unscored=1")
    assert (tmp_path / "groups.jsonl").read_bytes() == b""


def test_a_positional_judge_gives_only_ties_and_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailures, match="12 ties, 0 unscored"):
        run(tmp_path, LABELLING, "judge.model=fake/first")
    found = report(tmp_path)
    assert found["judge"]["first_position_rate"]["value"] == 1.0
    assert found["judge"]["order_consistency"]["value"] == 0.0
    assert found["pairs"]["comparisons"] == 0
    assert any("response shown first in 100 %" in w for w in found["warnings"])


def test_the_program_ends_with_code_3_and_one_line_when_too_much_is_unscored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, ("sample",), "judge.model=fake/refuse")
    monkeypatch.setattr(sys, "argv", ["rlaif", "judge", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("rlaif: 12 of 12 comparisons ended unscored")


@pytest.mark.parametrize(
    ("stage", "missing"),
    [
        ("judge", "responses.jsonl"),
        ("pairs", "responses.jsonl"),
        ("train-rm", "groups.jsonl"),
        ("train-dpo", "groups.jsonl"),
        ("compare", "dpo"),
    ],
)
def test_a_stage_without_its_input_says_what_is_missing(
    stage: str, missing: str, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match=rf"{missing}: (is not there|the policy is not trained)"):
        run(tmp_path, (stage,))


def test_compare_before_training_says_so_before_anything_is_asked(tmp_path: Path) -> None:
    run(tmp_path, LABELLING)
    with pytest.raises(SetupError, match=r"dpo: the policy is not trained .*train-rm"):
        run(tmp_path, ("compare",))
    assert "compare" not in report(tmp_path)["cost"]


def test_another_reward_model_takes_away_what_was_said_of_its_agreement(tmp_path: Path) -> None:
    run(tmp_path, (*LABELLING, "train-rm", "train-dpo", "compare"))
    agreed = report(tmp_path)["comparison"]["rm_dpo_agreement"]
    run(tmp_path, ("train-rm",))
    assert report(tmp_path)["comparison"]["rm_dpo_agreement"] == agreed
    run(tmp_path, ("train-rm",), "reward_model.epochs=1", reconfigure=True)
    assert report(tmp_path)["comparison"] is None


def test_a_killed_judge_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    slow = ("judge.model=fake/shorter?delay=0.05", "judge.concurrency=1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, LABELLING)
    run(killed, ("sample",), *slow)
    program = [sys.executable, "-m", "rlaif", "judge", "--out", str(killed)]
    process = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    try:
        wait_for_calls(killed / "calls.sqlite", 4 + 10, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "comparisons.jsonl").exists()
    answered = stored_calls(killed / "calls.sqlite")
    assert 4 + 10 <= len(answered) < 4 + 48
    run(killed, LABELLING, *slow)
    cost = report(killed)["cost"]
    assert cost["sample"]["calls_made"] == 0
    assert cost["judge"]["calls_from_store"] == len(answered) - 4
    assert cost["judge"]["calls_made"] == 48 - (len(answered) - 4)
    # What was answered before the kill still stands there as it was written then.
    assert answered.items() <= stored_calls(killed / "calls.sqlite").items()
    # The delay is no part of the judge's identity: the rows name the same judge.
    assert datasets_of(killed) == datasets_of(whole)


def stored_calls(path: Path) -> dict[str, str]:
    """Key -> when it was stored."""
    store = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return dict(store.execute("SELECT key, created FROM calls"))
    finally:
        store.close()


def wait_for_calls(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while len(found := stored_calls(path)) < count:
        assert process.poll() is None, "the stage ended before it could be killed"
        assert time.monotonic() < deadline, f"{len(found)} calls after a minute"
        time.sleep(0.02)


def test_after_another_judge_no_stage_and_no_report_uses_what_the_old_one_labelled(
    tmp_path: Path,
) -> None:
    run(tmp_path, LABELLING)
    assert report(tmp_path)["pairs"] is not None
    run(tmp_path, ("judge",), "judge.model=fake/longer", reconfigure=True)
    found = report(tmp_path)
    assert found["run"]["judge"] == "fake/longer"
    assert found["labels"] is not None
    assert found["pairs"] is None
    with pytest.raises(SetupError, match=r"not of the present comparisons .*rlaif pairs"):
        run(tmp_path, ("train-rm",), "judge.model=fake/longer")
    run(tmp_path, ("pairs",), "judge.model=fake/longer")
    assert report(tmp_path)["pairs"]["longer_chosen"]["value"] == 1.0


def test_a_second_run_in_the_same_directory_is_refused_while_the_first_works(
    tmp_path: Path,
) -> None:
    slow = ("judge.model=fake/shorter?delay=0.05", "judge.concurrency=1")
    run(tmp_path, ("sample",), *slow)
    program = [sys.executable, "-m", "rlaif", "judge", "--out", str(tmp_path)]
    first = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    try:
        wait_for_calls(tmp_path / "calls.sqlite", 4 + 2, first)
        with pytest.raises(SetupError, match="another run is working in this directory"):
            run(tmp_path, ("judge",), *slow)
    finally:
        first.kill()
        first.wait()


def test_a_positional_judge_finds_the_policies_equal_even_when_it_labels_in_one_order(
    tmp_path: Path,
) -> None:
    config, directory = load_run("smoke", list(SMALL), tmp_path)
    execute(config, directory, (*LABELLING, "train-rm", "train-dpo"), reconfigure=False)
    policy_judge = config.judge.model_copy(update={"model": "fake/first", "both_orders": False})

    async def compared() -> list[Comparison]:
        work = Workspace(directory, 0, {})
        prompts = read_jsonl(work.prompts, Prompt)
        answers = read_jsonl(work.responses, Response)
        dpo = [r.model_copy(update={"id": f"dpo:{r.id}"}) for r in answers]
        start = [
            r.model_copy(update={"id": f"start:{r.id}", "text": r.text + " more"}) for r in answers
        ]
        try:
            return await compare._judge(policy_judge, prompts, dpo, start, Bill(), work)
        finally:
            await work.close()

    outcomes = {c.outcome for c in asyncio.run(compared())}
    assert outcomes == {"tie"}


def test_answers_without_text_or_filtered_are_counted_and_never_compared(tmp_path: Path) -> None:
    class Moderated(FakeModel):
        async def ask(self, request: ChatRequest) -> ChatReply:
            reply = await super().ask(request)
            first, second, *rest = reply.choices
            filtered = first.model_copy(update={"finish_reason": "content_filter"})
            silent = second.model_copy(update={"text": " "})
            return reply.model_copy(update={"choices": (filtered, silent, *rest)})

    async def sampled() -> Sampled:
        with CallStore(tmp_path / "calls.sqlite") as store:
            client = Client(Moderated("policy"), store, Bill(), concurrency=4, attempts=1)
            prompts = load_prompts("smoke", 3)
            sampling = Sampling(max_tokens=30, temperature=1.0)
            return await sample(prompts, 4, sampling, client, lambda done, note="": None)

    found = asyncio.run(sampled())
    assert found.unusable == {"finish_reason content_filter": 3, "no text": 3}
    assert {r.id.split("/")[1] for r in found.responses} == {"2", "3"}


def test_sampling_counts_prompts_however_many_calls_each_takes(tmp_path: Path) -> None:
    class OneAnswerACall(FakeModel):
        max_n = 1

    seen: list[tuple[int, int]] = []

    async def sampled() -> None:
        with CallStore(tmp_path / "calls.sqlite") as store:
            client = Client(OneAnswerACall("policy"), store, Bill(), concurrency=4, attempts=1)
            prompts = load_prompts("smoke", 3)
            sampling = Sampling(max_tokens=30, temperature=1.0)
            await sample(
                prompts, 4, sampling, client, lambda done, note: seen.append((done, note.calls))
            )

    asyncio.run(sampled())
    assert [done for done, _ in seen] == [1, 2, 3]
    assert seen[-1] == (3, 12)


@pytest.mark.parametrize(
    ("sent", "ctrl_c"),
    [(signal.SIGINT, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_IGN)],
    ids=["Ctrl-C", "SIGTERM in the background"],
)
def test_ctrl_c_ends_a_training_at_once_and_says_how_to_go_on(
    tmp_path: Path, sent: signal.Signals, ctrl_c: signal.Handlers
) -> None:
    program = [sys.executable, "-m", "rlaif", "run", "smoke", "reward_model.epochs=5000"]
    process = subprocess.Popen(
        [*program, "--out", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, ctrl_c),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "reward_model training" in line:
            break
    process.send_signal(sent)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith("rlaif: stopped; every answer so far is stored")

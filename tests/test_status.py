"""`rlaif status`: where a run stands, by its files."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Finished, chat_request

from rlaif.callstore import CallStore
from rlaif.config import dump_config
from rlaif.files import write_text
from rlaif.recipe import KINDS, load_as
from rlaif.types import ChatReply, Choice

Cli = Callable[..., Finished]
QUICK = ("sample.k=2", "sample.limit=3")


def told(run_cli: Cli, *options: str) -> list[str]:
    done = run_cli("status", "r", *options)
    assert done.code == 0, done
    return done.out.splitlines()


def files() -> dict[Path, bytes]:
    kept = [path for path in Path("r").rglob("*") if path.is_file() and "sqlite" not in path.name]
    return {path: path.read_bytes() for path in kept}


def states(lines: list[str]) -> dict[str, str]:
    return {line.split()[0]: line.split(None, 1)[1] for line in lines if "  " in line}


def test_stages_are_done_not_done_or_out_of_date(run_cli: Cli) -> None:
    for stage in ("sample", "judge", "pairs"):
        assert run_cli(stage, "smoke", *QUICK, "--out", "r").code == 0
    before = files()
    lines = told(run_cli)
    assert states(lines) == {
        **dict.fromkeys(("sample", "judge", "pairs"), "done"),
        **dict.fromkeys(("train-rm", "train-dpo", "compare"), "not done"),
    }
    # Three calls for the answers, and both orders of a pair under each of two principles.
    assert lines[-2].startswith("15 calls are stored, 0.00 USD by the prices of now; last: 20")
    assert lines[-1].startswith("look at: r/report.html")
    assert files() == before
    # Another judge says something else, and the pairs are still those of the first.
    changed = ("judge.model=fake/longer", "--reconfigure", "--out", "r")
    assert run_cli("judge", "smoke", *QUICK, *changed).code == 0
    assert states(told(run_cli))["pairs"] == "out of date: what it was made from has changed"


@pytest.mark.parametrize("held", [True, False])
def test_a_stage_is_at_work_or_was_stopped(run_cli: Cli, held: bool) -> None:
    assert run_cli("sample", "smoke", *QUICK, "--out", "r", "--max-calls", "1").code == 4
    with Path("r/.lock").open("w") as lock:
        if held:
            fcntl.flock(lock, fcntl.LOCK_EX)
        found = states(told(run_cli))["sample"]
    assert found == ("at work" if held else "did not come to its end")


def test_of_several_stages_that_did_not_end_it_is_not_said_which_is_at_work(run_cli: Cli) -> None:
    assert run_cli("sample", "smoke", *QUICK, "--out", "r", "--max-calls", "1").code == 4
    Path("r/parts/begun_sweep.json").write_text("{}")
    with Path("r/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = states(told(run_cli))
    assert {found["sample"], found["sweep"]} == {"at work, or did not come to its end"}


def test_a_judge_that_falls_short_of_its_gate_is_told_as_such(run_cli: Cli) -> None:
    gate = ("judge.gate.gold=[concise]", "judge.gate.min_agreement=1", "judge.model=fake/longer")
    assert run_cli("run", "smoke", *QUICK, *gate, "--out", "r").code == 3
    said = states(told(run_cli))["certify"]
    assert said.startswith("the judge falls short of its gate: ")


def test_failures_are_told_with_what_was_said_most_often(run_cli: Cli) -> None:
    failing = ("judge.model=fake/faulty?rate=1&stuck=yes", "judge.attempts=1", "--out", "r")
    for stage, code in (("sample", 0), ("judge", 3)):
        assert run_cli(stage, "smoke", *QUICK, *failing).code == code
    lines = told(run_cli)
    assert any(line.startswith("judge, last time: ") for line in lines)


def test_money_of_which_a_part_is_unknown_is_a_lower_bound(run_cli: Cli) -> None:
    assert run_cli("sample", "smoke", *QUICK, "--out", "r").code == 0
    said = ChatReply(
        choices=(Choice(text="A", finish_reason="stop"),), prompt_tokens=4, completion_tokens=1
    )
    with CallStore(Path("r/calls.sqlite")) as store:
        store.put(chat_request(), said, 1.0)
        store.put(chat_request().model_copy(update={"model": "served/two"}), said, 1.0)
    Path("p.yaml").write_text("models: {'http://h:1/v1#two': {input: 1e6, output: 2e6}}")
    least = "at least (no price is known for served/m) 6.00 USD by the prices of now"
    assert any(least in line for line in told(run_cli, "--prices", "p.yaml"))


def test_of_a_study_it_tells_its_stages_by_what_they_have_left(run_cli: Cli) -> None:
    given = ["human.path=concise", "judge.model=fake/shorter", "arms=[human, ai_soft]", "seeds=2"]
    config, _ = load_as(KINDS["human"], "rlhf-vs-rlaif", given, Path("r"))
    part = '{"of": null, "value": {}}'
    files = {"config.yaml": dump_config(config), "parts/human.json": part}
    # No training of the present config.
    stamps = [f"arms/{name}/stamp.json" for name in ("human-0/dpo", "ai_soft-1-0.25/reward_model")]
    files |= dict.fromkeys([*stamps, "arms/human-7/dpo/stamp.json"], "")
    for name, text in files.items():
        write_text(Path("r", name), text)
    assert told(run_cli) == [
        "human         done",
        "judge         not done",
        # Two arms and two seeds with two models each, and two shares of one.
        "arms          2 of 16 trainings",
        "head-to-head  not done",
        "report        not done",
        "no call is stored",
        "nothing to look at yet",
    ]
    write_text(Path("r/parts/begun_arms.json"), "{}")
    write_text(Path("r/parts/evaluation.json"), part)
    write_text(Path("r/study.html"), "")
    found = told(run_cli)
    assert states(found)["arms"] == "did not come to its end"
    assert (states(found)["head-to-head"], states(found)["report"]) == ("done", "done")
    assert found[-1] == "look at: r/study.html"


def test_of_finished_tables_it_tells_that_they_are_done(run_cli: Cli) -> None:
    given = ["judge.models=[fake/shorter]", "human.path=concise"]
    config, _ = load_as(KINDS["shots"], "lee-tables", given, Path("r"))
    write_text(Path("r/config.yaml"), dump_config(config))
    assert told(run_cli)[0] == "lee-tables  not done"
    write_text(Path("r/lee.json"), "{}")
    assert told(run_cli)[0] == "lee-tables  done"


def test_a_folder_without_a_run_is_refused(run_cli: Cli) -> None:
    assert run_cli("status", "nope").refused().startswith("nope: holds no run (no config.yaml)")

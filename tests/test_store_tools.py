"""Looking into a store and mending it; what every kind of damage ends in."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Finished, chat_request

from rlaif.callstore import CallStore, call_key, tools
from rlaif.callstore.journal import Batch, Journal
from rlaif.errors import StoreError
from rlaif.types import ChatReply, Choice

Cli = Callable[..., Finished]
REPLY = ChatReply(
    choices=(Choice(text="Because. " * 40, finish_reason="stop"),),
    prompt_tokens=3,
    completion_tokens=1,
)
QUICK = ("sample.limit=2", "sample.k=2", "--out", "r")


def filled(path: Path, rows: int) -> Path:
    with CallStore(path) as store:
        for i in range(rows):
            store.put(chat_request(f"Question {i}?"), REPLY, 0.25)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return path


def damaged(path: Path) -> Path:
    """Overwrites a page of rows (a leaf of the tree) in the middle of the file."""
    pages = path.stat().st_size // 4096
    with path.open("r+b") as f:
        for page in range(pages // 2, pages):
            f.seek(page * 4096)
            if f.read(1) == b"\x0a":
                break
        f.seek(page * 4096)
        f.write(os.urandom(4096))
    return path


def test_a_sound_store_is_called_sound(run_cli: Cli) -> None:
    filled(Path("r/calls.sqlite"), 20)
    found = run_cli("store", "verify", "r")
    assert (found.code, found.out) == (0, "r/calls.sqlite: 20 answered calls, all sound\n")


def test_a_row_that_is_not_what_its_key_says_is_found_and_left_out_of_a_repair(
    run_cli: Cli,
) -> None:
    path = filled(Path("r/calls.sqlite"), 20)
    key = call_key(chat_request("Question 7?"))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE calls SET request = replace(request, '7', '8') WHERE key = ?", (key,))
    db.close()
    found = run_cli("store", "verify", "r")
    assert found.code == 2
    assert f"row {key} is not what its key says" in found.out
    assert "1 rows are wrong, 19 sound" in found.err
    assert run_cli("store", "verify", "r", "--repair").code == 0
    assert run_cli("store", "verify", "r").out.startswith("r/calls.sqlite: 19 answered calls")
    assert Path("r/calls.sqlite.damaged").is_file()


def test_a_damaged_page_costs_its_own_rows_and_no_others(run_cli: Cli) -> None:
    path = damaged(filled(Path("r/calls.sqlite"), 600))
    found = run_cli("store", "verify", "r")
    assert found.code == 2
    assert found.err.splitlines()[-1].endswith(
        "(rlaif store verify --repair saves what can be read)"
    )
    repaired = run_cli("store", "verify", "r", "--repair")
    assert repaired.code == 0
    with CallStore(path) as store:
        left = len(store)
    assert 540 <= left < 600
    assert f"{left:,} answered calls are saved" in repaired.out
    assert tools.verify(path).sound


def test_a_run_on_a_damaged_store_says_how_to_mend_it(run_cli: Cli) -> None:
    assert run_cli("sample", "smoke", *QUICK).code == 0
    with sqlite3.connect("r/calls.sqlite") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    with Path("r/calls.sqlite").open("r+b") as f:
        f.seek(4096)
        f.write(b"\xff" * 4096)
    line = run_cli("sample", "smoke", *QUICK).stopped()
    assert line.startswith("r/calls.sqlite: the call store cannot be used: ")
    assert "rlaif store verify --repair saves what a damaged one still holds" in line
    assert run_cli("store", "verify", "r", "--repair").code == 0
    assert run_cli("sample", "smoke", *QUICK).code == 0


@pytest.mark.parametrize("cut", [100, 4096, 5000])
def test_a_file_that_was_cut_is_told_and_never_taken_for_an_empty_one(
    tmp_path: Path, cut: int
) -> None:
    path = filled(tmp_path / "calls.sqlite", 100)
    with path.open("r+b") as f:
        f.truncate(cut)
    found = tools.verify(path)
    assert found.damage

    def read_all() -> None:
        with CallStore(path) as store:
            for i in range(100):
                store.get(call_key(chat_request(f"Question {i}?")))

    with pytest.raises(StoreError):
        read_all()


def test_a_log_that_was_cut_loses_its_last_rows_and_nothing_else(tmp_path: Path) -> None:
    path = filled(tmp_path / "calls.sqlite", 50)
    code = (
        "import os, sys; from pathlib import Path; from rlaif.callstore import CallStore\n"
        "from test_store_tools import REPLY, chat_request\n"
        "store = CallStore(Path(sys.argv[1]))\n"
        "for i in range(50, 100): store.put(chat_request(f'Question {i}?'), REPLY, 0.1)\n"
        "os._exit(9)"
    )
    tests = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=tests, check=False)
    log = path.with_name("calls.sqlite-wal")
    assert log.stat().st_size > 0
    with log.open("r+b") as f:
        f.truncate(log.stat().st_size // 2)
    with CallStore(path) as store:
        assert 50 <= len(store) < 100
        assert store.get(call_key(chat_request("Question 49?"))) == REPLY
    assert tools.verify(path).sound


def test_a_full_file_is_told_keeps_what_it_has_and_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    path = filled(tmp_path / "calls.sqlite", 20)
    with CallStore(path) as store:
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count={pages + 1}")
        rows = [
            (call_key(r), r, REPLY, 0.1) for r in (chat_request(f"More {i}?") for i in range(50))
        ]
        with pytest.raises(StoreError, match=r"could not be stored: .*full.*free some disk space"):
            store.put_many(rows)
        assert len(store) == 20
        store._db.execute("PRAGMA max_page_count=100000")
        store.put_many(rows)
        assert len(store) == 70
    assert tools.verify(path).sound


def test_a_place_that_cannot_be_written_is_told() -> None:
    with pytest.raises(StoreError, match="the call store cannot be used"):
        CallStore(Path("/proc/rlaif/calls.sqlite"))


def test_a_store_that_may_only_be_read_is_told_at_the_first_answer(tmp_path: Path) -> None:
    path = filled(tmp_path / "calls.sqlite", 3)
    with CallStore(path) as store:
        store._db.execute("PRAGMA query_only=ON")
        with pytest.raises(StoreError, match="could not be stored: attempt to write a readonly"):
            store.put(chat_request("More?"), REPLY, 0.1)
        assert store.get(call_key(chat_request("Question 1?"))) == REPLY


def test_a_clock_that_jumps_back_changes_nothing(tmp_path: Path) -> None:
    path = filled(tmp_path / "calls.sqlite", 3)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE calls SET created = '2099-01-01T00:00:00.000Z'")
    db.close()
    with CallStore(path) as store:
        store.put(chat_request("Later?"), REPLY, 0.1)
        assert len(store) == 4
    assert tools.verify(path).sound


def test_stats_add_up(run_cli: Cli) -> None:
    filled(Path("r/calls.sqlite"), 20)
    out = run_cli("store", "stats", "r").out.splitlines()
    assert out[1].split()[:7] == ["served/m", "20", "60", "0", "20", "unknown", "0.25"]
    assert out[-1].endswith(" MB")


def test_stats_tell_the_money_where_a_price_is_known(run_cli: Cli) -> None:
    filled(Path("r/calls.sqlite"), 20)
    # 60 prompt tokens at a cent each, 20 answered ones at five.
    Path("p.yaml").write_text("models: {'http://h:1/v1#m': {input: 1e4, output: 5e4}}")
    out = run_cli("store", "stats", "r", "--prices", "p.yaml").out.splitlines()
    assert out[1].split()[5] == "1.6000"


@pytest.mark.parametrize("name", ["calls.jsonl", "calls.parquet"])
def test_an_export_holds_every_row_and_replaces_no_file(run_cli: Cli, name: str) -> None:
    filled(Path("r/calls.sqlite"), 1200)
    assert run_cli("store", "export", "r", name).out == f"1,200 calls in {name}\n"
    if name.endswith("jsonl"):
        rows = [json.loads(line) for line in Path(name).read_text().splitlines()]
        requests = [row["request"]["messages"][0]["content"] for row in rows]
    else:
        requests = [
            json.loads(r)["messages"][0]["content"]
            for r in pq.read_table(name).column("request").to_pylist()
        ]
    assert sorted(requests) == sorted(f"Question {i}?" for i in range(1200))
    assert "is there already" in run_cli("store", "export", "r", name).refused()


def test_an_export_of_an_unknown_kind_is_refused(run_cli: Cli) -> None:
    filled(Path("r/calls.sqlite"), 1)
    line = run_cli("store", "export", "r", "calls.csv").refused()
    assert line == "calls.csv: is of no known kind (end it in .jsonl or .parquet)"


def test_pruning_deletes_what_no_file_names_and_the_run_still_costs_nothing(run_cli: Cli) -> None:
    for stage in ("sample", "judge"):
        assert run_cli(stage, "smoke", *QUICK).code == 0
    with CallStore(Path("r/calls.sqlite")) as store:
        wanted = len(store)
        store.put(chat_request("Something else?"), REPLY, 0.1)
    found = run_cli("store", "prune", "r")
    assert found.out == (f"1 calls are named by no file of the run, {wanted} are; --yes deletes\n")
    with CallStore(Path("r/calls.sqlite")) as store:
        assert len(store) == wanted + 1
    assert run_cli("store", "prune", "r", "--model", "fake/policy").out.startswith("0 calls")
    assert run_cli("store", "prune", "r", "--yes").out.startswith(f"1 calls deleted, {wanted} left")
    for stage in ("sample", "judge"):
        assert run_cli(stage, "smoke", *QUICK).code == 0
        cost = json.loads(Path("r/report.json").read_text())["cost"][stage]
        assert cost["calls_made"] == 0


def test_what_a_stopped_judge_was_told_is_not_pruned(run_cli: Cli) -> None:
    assert run_cli("sample", "smoke", *QUICK).code == 0
    assert run_cli("judge", "smoke", *QUICK, "--max-calls", "5").code == 4
    line = run_cli("store", "prune", "r", "--yes").refused()
    assert "was stopped in judge, and no file names yet what was asked there" in line
    assert run_cli("judge", "smoke", *QUICK).code == 0
    assert run_cli("store", "prune", "r").out.startswith("0 calls")


def test_pruning_before_what_is_no_day_deletes_nothing(run_cli: Cli) -> None:
    filled(Path("r/calls.sqlite"), 3)
    for text in ("tomorrow", "27.11.2026"):
        line = run_cli("store", "prune", "r", "--before", text, "--yes").refused()
        assert line == f"--before: {text!r} is no day (write YYYY-MM-DD)"


def test_pruning_a_folder_without_a_finished_run_is_refused(run_cli: Cli) -> None:
    filled(Path("r/calls.sqlite"), 1)
    assert "holds no finished run" in run_cli("store", "prune", "r", "--yes").refused()


def test_a_folder_without_a_store_is_refused(run_cli: Cli) -> None:
    Path("r").mkdir()
    line = run_cli("store", "stats", "r").refused()
    assert line == "r: holds no call store (name a run or its calls.sqlite)"


def test_a_store_of_another_version_is_not_taken_for_a_damaged_one(run_cli: Cli) -> None:
    path = filled(Path("r/calls.sqlite"), 3)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    line = run_cli("store", "verify", "r", "--repair").refused()
    assert line.startswith("r/calls.sqlite: was written by another version of rlaif (format 99)")
    assert not list(Path("r").glob("*.damaged*")) + list(Path("r").glob("*.repaired"))


def test_a_store_that_a_run_is_writing_is_not_repaired(run_cli: Cli) -> None:
    path = damaged(filled(Path("r/calls.sqlite"), 600))
    before = path.read_bytes()
    with Path("r/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = run_cli("store", "verify", "r", "--repair")
    assert (found.code, path.read_bytes()) == (2, before)
    assert "another run is working in this directory" in found.err


def test_a_repaired_store_still_knows_its_batches(tmp_path: Path) -> None:
    path = filled(tmp_path / "calls.sqlite", 5)
    journal = Journal(path)
    batch = Batch("t", "batch_1", "openai/m", 1.0, ("a", "b"))
    journal.intend(batch)
    journal.close()
    saved = tools.repair(path).rows
    journal = Journal(path)
    assert (saved, journal.open("openai/m")) == (5, [batch])
    journal.close()


def test_a_row_that_cannot_be_written_leaves_no_open_transaction(tmp_path: Path) -> None:
    with CallStore(tmp_path / "calls.sqlite") as store:
        row = (call_key(chat_request()), chat_request(), REPLY, 0.1)
        with pytest.raises(UnicodeEncodeError):
            store.put_many([row, ("\ud800", *row[1:])])
        store.put_many([row])
        assert len(store) == 1


# rlaif calls


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rlaif.recipe import execute, load_run

    config, out = load_run("smoke", list(QUICK[:2]), tmp_path_factory.mktemp("run") / "r")
    execute(config, out, ("sample", "judge"), reconfigure=False)
    return out


def test_the_calls_of_a_label_are_shown_as_they_were_sent(run_cli: Cli, judged: Path) -> None:
    found = run_cli("calls", str(judged), "--comparison", "smoke-001/0|smoke-001/1")
    assert found.code == 0
    judgments = (judged / "judgments.jsonl").read_text().splitlines()
    rows = [json.loads(j) for j in judgments]
    mine = [r for r in rows if r["comparison_id"] == "smoke-001/0|smoke-001/1"]
    assert found.out.count("\n==== ") == len(mine)
    for row in mine:
        for key in row["calls"]:
            assert key in found.out
    assert found.out.count("Answer with one letter and nothing else: A or B.") == len(mine)
    assert "first token, log-probabilities: 'A' -0.020" in found.out


def test_calls_as_json_hold_request_and_reply(run_cli: Cli, judged: Path) -> None:
    found = run_cli("calls", str(judged), "--response", "smoke-001/1", "--json")
    row = json.loads(found.out)
    responses = [json.loads(r) for r in (judged / "responses.jsonl").read_text().splitlines()]
    (mine,) = [r for r in responses if r["id"] == "smoke-001/1"]
    assert row["reply"]["choices"][1]["text"].strip() == mine["text"]
    assert row["key"] == mine["call"]


def test_a_wrong_id_names_the_nearest(run_cli: Cli, judged: Path) -> None:
    line = run_cli("calls", str(judged), "--comparison", "smoke-001/0|smoke-001/9").refused()
    assert line.startswith("there is no comparison 'smoke-001/0|smoke-001/9' (the nearest is ")


def test_a_call_that_failed_was_not_answered(run_cli: Cli, judged: Path) -> None:
    found = run_cli("calls", str(judged), "--key", "0" * 64)
    assert found.out == f"---- {'0' * 64}: was not answered\n"


def test_without_an_id_it_says_what_there_is(run_cli: Cli, judged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(judged, tmp_path / "copy")
    found = run_cli("calls", str(copy))
    assert found.out.startswith("4 responses, 2 comparisons\n")
    assert "--comparison 'smoke-001/0|smoke-001/1'" in found.out

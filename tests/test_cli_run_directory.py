"""A run directory: of another config, damaged, or on a full disk; nothing in it is lost."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import Finished

from rlaif import files
from rlaif.callstore import CallStore
from rlaif.errors import SetupError

Cli = Callable[..., Finished]
QUICK = ("sample.k=2", "sample.limit=3")


def calls(run: Path) -> int:
    with CallStore(run / "calls.sqlite") as store:
        return len(store)


def written(text: str, name: str) -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


class Run(NamedTuple):
    directory: Path
    before: dict[str, bytes]


@pytest.fixture
def made(run_cli: Cli) -> Run:
    """A run up to its dataset."""
    assert run_cli("sample", "smoke", *QUICK, "--out", "r").code == 0
    assert run_cli("judge", "--out", "r").code == 0
    assert run_cli("pairs", "--out", "r").code == 0
    directory = Path("r")
    kept = [p for p in directory.rglob("*") if p.is_file() and "sqlite" not in p.name]
    return Run(directory, {str(p): p.read_bytes() for p in kept})


def test_the_run_directory_of_another_config_is_refused_and_left_alone(
    run_cli: Cli, made: Run
) -> None:
    line = run_cli("judge", "smoke", *QUICK, "judge.tie_margin=0.2", "--out", "r").refused()
    assert line.startswith(
        "r: holds a run of another config: judge.tie_margin: 0.01 there, 0.2 now "
        "(choose another --out, or add --reconfigure"
    )
    assert made.before == {name: Path(name).read_bytes() for name in made.before}


def test_a_config_that_never_made_anything_binds_nobody(run_cli: Cli) -> None:
    dead = "policy.model=http://127.0.0.1:9/v1#m"
    line = run_cli("sample", "smoke", *QUICK, dead, "--out", "r").stopped()
    assert "no server answers at http://127.0.0.1:9/v1" in line
    assert run_cli("sample", "smoke", *QUICK, "--out", "r").code == 0


def test_a_folder_that_cannot_be_made_is_one_line(run_cli: Cli) -> None:
    line = run_cli("sample", "smoke", "--out", "/proc/no-such-folder").refused()
    assert line.startswith("/proc/no-such-folder: cannot be used")


def test_control_c_during_an_import_is_control_c(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as e:
            raise RuntimeError("Error calling __set_name__ on 'cached_property'") from e

    monkeypatch.setattr("rlaif.recipe.load_run", interrupted)
    found = run_cli("run", "smoke")
    assert (found.code, found.err) == (130, "rlaif: stopped before anything was asked\n")


def test_reconfigure_takes_the_directory_and_asks_nothing_again(run_cli: Cli, made: Run) -> None:
    before = calls(made.directory)
    changed = ("judge", "judge.tie_margin=0.2", "--out", "r", "--reconfigure")
    assert run_cli(*changed).code == 0
    assert calls(made.directory) == before
    cost = json.loads((made.directory / "report.json").read_text())["cost"]["judge"]
    assert cost["calls_made"] == 0
    assert cost["calls_from_store"] > 0
    assert yaml.safe_load((made.directory / "config.yaml").read_text())["judge"][
        "tie_margin"
    ] == pytest.approx(0.2)


def test_the_same_config_again_asks_nothing_and_writes_the_same_bytes(
    run_cli: Cli, made: Run
) -> None:
    before = calls(made.directory)
    for stage in ("sample", "judge", "pairs"):
        assert run_cli(stage, "smoke", *QUICK, "--out", "r").code == 0
    assert calls(made.directory) == before
    changing = {"cost.json", "report.json", "report.html"}
    same = {name: data for name, data in made.before.items() if Path(name).name not in changing}
    assert same == {name: Path(name).read_bytes() for name in same}


def test_a_stage_without_what_comes_before_it(run_cli: Cli) -> None:
    line = run_cli("pairs", "smoke", "--out", "r").stopped()
    assert line.startswith("r/responses.jsonl: is not there (run the stage that writes it first")


def test_a_changed_file_of_a_run_is_told_by_its_line(run_cli: Cli, made: Run) -> None:
    path = made.directory / "responses.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    assert run_cli("judge", "--out", "r").stopped().startswith("r/responses.jsonl:2: ")


def test_a_store_that_is_not_ours(run_cli: Cli, made: Run) -> None:
    with sqlite3.connect(made.directory / "calls.sqlite") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    line = run_cli("judge", "--out", "r").stopped()
    assert line.startswith("r/calls.sqlite: was written by another version of rlaif (format 99)")


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_a_run_directory_that_is_a_file(run_cli: Cli, out: str) -> None:
    written("mine", "file")
    line = run_cli("sample", "smoke", "--out", out).refused()
    assert line.startswith(f"{out}: cannot be used: ")
    assert line.endswith("(choose another --out)")
    assert Path("file").read_text() == "mine"


# Disk.


def test_too_little_free_disk_is_said_before_anything_is_asked(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")._replace(free=3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    line = run_cli("sample", "smoke", "--out", "r").refused()
    assert line == (
        "r: 3 MB free on this disk, the run needs about 50 MB "
        "(free some space or choose another --out)"
    )
    assert list(Path("r").iterdir()) == []


def test_a_disk_that_fills_up_in_the_middle_loses_nothing(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.tempfile.mkstemp
    full = OSError(errno.ENOSPC, "No space left on device")

    def mkstemp(*arguments: Any, **options: Any) -> Any:
        if "responses" in options["prefix"]:
            raise full
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(files.tempfile, "mkstemp", mkstemp)
        line = run_cli("sample", "smoke", *QUICK, "--out", "r").stopped()
    assert line == (
        "r/responses.jsonl: no disk space left (free some space and run the same command again)"
    )
    assert calls(Path("r")) == 0  # it is found before anything is asked
    assert not [p for p in Path("r").iterdir() if p.name.startswith(".") and p.name != ".lock"]
    assert run_cli("sample", "smoke", *QUICK, "--out", "r").code == 0
    assert calls(Path("r")) == 3


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    written("old", "file")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(SetupError, match="no disk space left"):
            files.write_text(Path("file"), "new")
    assert [p.name for p in empty_place.iterdir()] == ["file"]
    assert Path("file").read_text() == "old"


def test_a_disk_that_fills_up_anywhere_else_is_one_line_too(
    run_cli: Cli, made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rlaif.preferences.write_parquet", full)
    assert run_cli("pairs", "--out", "r").stopped().startswith("r: no disk space left")

"""Where a long task is: as plain lines, as bars, as JSON."""

from __future__ import annotations

import io
import json
import sys
import time

import pytest

from rlaif import progress as progress_module
from rlaif.progress import Spent, Status, progress, say, use_json_logs


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module._Output, "as_json", False)
    use_json_logs()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_every_ten_seconds_and_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("judging", 100, "comparisons") as advance:
        for done in range(1, 101):
            clock[0] += 0.5
            advance(done)
    lines = capsys.readouterr().err.splitlines()
    shown = [line.split()[1].removesuffix("/100") for line in lines]
    assert shown == ["1", "21", "41", "61", "81", "100"]
    assert lines[1].split("  ")[-1] == "2.0 comparisons/s, 0:39 left"


def test_a_task_that_ends_early_shows_where_it_was(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off() -> None:
        with progress("judging", 100, "comparisons") as advance:
            advance(1)
            advance(7)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cut_off()
    assert capsys.readouterr().err.splitlines()[-1].split() == ["judging", "7/100"]


def test_the_rate_forgets_what_came_from_the_store(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("sampling", 1000, "calls") as advance:
        for done in range(1, 501):
            advance(done)  # at once
        for done in range(501, 600):
            clock[0] += 1
            advance(done)
    assert "1.0 calls/s" in capsys.readouterr().err.splitlines()[-1]


def test_money_is_told_with_what_is_expected(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("judging", 40, "comparisons") as advance:
        advance(10, Spent(1200, 30.4, 0.5, calls=20))
    assert capsys.readouterr().err.endswith(
        "10/40    20 calls, 1200 tokens answered, 30/s, $0.50 of about $2.00\n"
    )


def test_what_is_expected_after_a_resumption_does_not_count_on_stored_answers(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    # 900 of 1,000 were stored and 10 asked for a dollar: 90 more at ten cents are to come.
    with progress("judging", 1000, "comparisons") as advance:
        advance(910, Spent(1200, 30.4, 1.0, calls=910, stored=900))
    said = capsys.readouterr().err
    assert "910 calls, 900 stored, 1200 tokens answered" in said
    assert "$1.00 of about $10.00" in said


def test_json_lines_say_the_same_in_fields(
    as_json: None, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    say("sample …")
    with progress("judging", 40, "comparisons") as advance:
        advance(10, Spent(1200, 30.4, 0.5, calls=20))
        clock[0] += 20
        advance(20, Spent(2400, 30.4, None, calls=40, stored=15))
    Status().end("done")
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(row.pop("time").endswith("Z") for row in rows)
    assert rows[0] == {"event": "say", "text": "sample …"}
    assert rows[1]["usd_expected"] == 2.0
    assert rows[2] == {
        "event": "progress",
        "label": "judging",
        "unit": "comparisons",
        "done": 20,
        "total": 40,
        "rate": 0.5,
        "seconds_left": 40,
        "calls": 40,
        "calls_stored": 15,
        "tokens": 2400,
        "tokens_per_second": 30.4,
        "usd": None,
        "usd_expected": None,
    }
    assert rows[3] == {"event": "status", "text": "done"}


def test_two_bars_share_one_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with (
        progress("sampling", 10, "calls") as sampling,
        progress("judging", 20, "comparisons") as judging,
    ):
        sampling(10, "ten")
        judging(3, Spent(5, 1.0, None, calls=6))
    shown = terminal.getvalue()
    assert "sampling" in shown
    assert "10/10" in shown
    assert "3/20" in shown
    assert progress_module._Output.bars is None


def test_nothing_to_do_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("judging", 0, "comparisons") as advance:
        advance(0)
    assert capsys.readouterr().err == ""

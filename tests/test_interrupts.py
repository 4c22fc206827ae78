"""Stopping a task, where Python would lose the signal."""

from __future__ import annotations

import signal
import time

import pytest
import typer

from rlaif.cli.stopping import stoppable


class StoppedWhileItGoes:
    """Is told to stop while Python clears it away."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0)


def task() -> None:
    """Ten seconds of work."""
    with stoppable():
        held = StoppedWhileItGoes()
        del held
        for _ in range(200):
            time.sleep(0.05)


def test_a_stop_that_meets_a_finaliser_is_not_lost() -> None:
    with pytest.raises(typer.Exit) as ended:
        task()
    assert ended.value.exit_code == 130

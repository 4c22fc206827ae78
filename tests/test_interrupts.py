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


def task(seconds: float) -> None:
    with stoppable():
        held = StoppedWhileItGoes()
        del held
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(0.01)


@pytest.mark.parametrize("seconds", [10.0, 0.0], ids=["in the middle", "at the very end"])
def test_a_stop_that_meets_a_finaliser_is_not_lost(seconds: float) -> None:
    with pytest.raises(typer.Exit) as ended:
        task(seconds)
    assert ended.value.exit_code == 130

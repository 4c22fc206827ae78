"""Runs one command so that nothing of it outlives the process that asked for it.

Run as a script, by its path: `python -I _supervise.py PARENT_PID GRACE_S COMMAND...`, with a pipe
from the parent as standard input. It starts the command in a process group of its own and stays
until the command and everything it started are gone. It ends them (SIGTERM to the group, SIGKILL
to whatever is left after GRACE_S seconds) when the pipe closes, when the parent is gone, when it
gets SIGTERM, or when the command itself ends; then it exits with the command's exit status
(128 + signal number where a signal ended it). Uses the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TRACKER = b"from multiprocessing.resource_tracker import main"
_POLL_S = 0.1
_KILL_PATIENCE_S = 30.0


def descendants(root: int) -> list[int]:
    """Process ids of all living children, grandchildren, ... of `root` (not `root`, no zombies).

    Read from /proc; empty where there is none.
    """
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command's name comes in parentheses and may itself contain any character.
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class _Supervisor:
    """Watches one command; `run` returns its exit status when everything it started is gone."""

    def __init__(self, parent: int, grace_s: float) -> None:
        self.parent = parent
        self.grace_s = grace_s
        self.told_to_stop = False
        self.status: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        # Orphans of the command become ours, so "no children left" means that all of it is gone.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.told_to_stop = True

    def run(self, command: Sequence[str]) -> int:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
        ).pid
        while self._reap(child) and self.status is None and not self._parent_let_go():
            pass
        _ask_to_end(child)
        if self._wait(child, self.grace_s, lambda: None):
            self._wait(child, _KILL_PATIENCE_S, lambda: kill_descendants(os.getpid()))
        return 0 if self.status is None else self.status

    def _parent_let_go(self) -> bool:
        """Wait a moment; whether the parent closed the pipe, died or told us to stop."""
        readable, _, _ = select.select([0], [], [], _POLL_S)
        closed = bool(readable) and os.read(0, 4096) == b""
        # A process forked off the parent may keep the pipe open after the parent's death.
        return closed or self.told_to_stop or os.getppid() != self.parent

    def _reap(self, child: int) -> bool:
        """Collect who ended, note the command's status; whether anyone is still running."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code

    def _wait(self, child: int, patience_s: float, each_time: Callable[[], None]) -> bool:
        """Wait until all are gone or patience ends; whether anyone is still running."""
        deadline = time.monotonic() + patience_s
        while self._reap(child) and time.monotonic() < deadline:
            each_time()
            time.sleep(_POLL_S / 2)
        return self._reap(child)


def _ask_to_end(group: int) -> None:
    try:
        os.killpg(group, signal.SIGTERM)
    except ProcessLookupError:
        return


def kill_descendants(root: int) -> None:
    """SIGKILL everything below `root`, whatever process group it moved to.

    Except Python's trackers of shared memory: they end by themselves once the others are gone, and
    give back the segments (hundreds of MiB of memory for vLLM) that the killed could not.
    """
    for pid in descendants(root):
        try:
            if _TRACKER not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue


def main() -> None:
    parent, grace_s, *command = sys.argv[1:]
    sys.exit(_Supervisor(int(parent), float(grace_s)).run(command))


if __name__ == "__main__":
    main()

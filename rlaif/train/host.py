"""How much memory this machine still gives."""

from __future__ import annotations

import math
from pathlib import Path

CGROUPS = (
    tuple(Path("/sys/fs/cgroup") / f for f in ("memory.max", "memory.current", "memory.stat")),
    tuple(
        Path("/sys/fs/cgroup/memory") / f
        for f in ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    ),
)
"""Limit, use and its parts, of control groups of version 2 and of version 1, seen from inside."""


def free_on_host() -> float:
    """Bytes that this machine, or the control group that the process lives in, still gives;
    infinite where Linux does not say."""
    free = math.inf
    told = Path("/proc/meminfo")
    if told.is_file():
        fields = dict(line.split(":", 1) for line in told.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    return min(free, *(_left(*files) for files in CGROUPS))


def _left(limit: Path, used: Path, stat: Path) -> float:
    """What a control group's limit leaves, where files that are only cached give way."""
    if not (limit.is_file() and used.is_file() and stat.is_file()):
        return math.inf
    most = limit.read_text().strip()
    if most == "max":
        return math.inf
    fields = dict(line.split() for line in stat.read_text().splitlines())
    cached = int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))
    return int(most) - int(used.read_text()) + cached

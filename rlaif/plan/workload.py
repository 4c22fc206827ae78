"""What there is to do for a config of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rlaif.plan.calls import Calls
from rlaif.plan.figures import Figure


class Workload(NamedTuple):
    """What the stages of a config would do."""

    stages: tuple[str, ...]
    """In order."""
    calls: Calls
    trained: Mapping[str, tuple[Figure | None, Figure | None]]
    """Seconds and bytes of each stage that trains; None where nothing tells."""
    memory: Mapping[str, float]
    """Bytes that each training stage takes at most, where that is known."""
    assumed: tuple[str, ...] = ()
    """What the counts of calls stand on, where answers that nobody has given may lower them."""
    at_once: bool = False
    """Whether `sample` and `judge` run at the same time, on two models."""
    piloted: tuple[str, ...] = ()
    """Stages that a pilot asks for."""

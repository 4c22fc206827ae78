"""What stages share that hold judges against gold pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlaif.constitution import Constitution
from rlaif.errors import SetupError
from rlaif.judge.aggregate import Pair
from rlaif.judge.config import AskConfig, JudgeConfig
from rlaif.judge.panel import Panel, Verdicts
from rlaif.models.client import Bill
from rlaif.progress import progress
from rlaif.workspace import Workspace

CANNOT = (".mode", ".labels", ".score_max")
"""Fields of which an error says that this judge cannot be asked in this way."""


class Judged(NamedTuple):
    verdicts: Verdicts
    bills: Mapping[str, Bill]
    """Field of the judge -> what it was asked for."""


async def ask(
    config: JudgeConfig,
    constitution: Constitution,
    work: Workspace,
    bill: Bill,
    pairs: Sequence[Pair],
) -> Judged:
    """What the judges say of the pairs, counted in `bill` too."""
    bills: dict[str, Bill] = {}

    def open_client(asked: AskConfig, field: str) -> Any:
        return work.pool.open(asked, field, bills.setdefault(field, Bill()))

    panel = Panel(config, constitution, work.seed, open_client)
    try:
        verdicts = await panel.judge_pairs(pairs, progress)
    finally:
        for of_judge in bills.values():
            bill.add(of_judge)
    return Judged(verdicts, bills)


async def try_to_ask(
    config: JudgeConfig,
    constitution: Constitution,
    work: Workspace,
    bill: Bill,
    pairs: Sequence[Pair],
) -> Judged | str:
    """As `ask`, or why the judge cannot be asked in this way."""
    try:
        return await ask(config, constitution, work, bill, pairs)
    except SetupError as e:
        if not e.field.endswith(CANNOT):
            raise
        return e.problem

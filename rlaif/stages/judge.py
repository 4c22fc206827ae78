"""Stage 3: the answers to a prompt compared by the judges, under the constitution's principles."""

from __future__ import annotations

from collections.abc import Callable, Collection

from pydantic import BaseModel

from rlaif.constitution import facts, load_constitution
from rlaif.errors import TooManyFailures
from rlaif.evaluate.judge_figures import JudgeTally
from rlaif.files import jsonl_writer
from rlaif.judge.aggregate import Pair
from rlaif.judge.ask import OfPair
from rlaif.judge.config import JudgeConfig
from rlaif.judge.design import Group, sampled
from rlaif.judge.panel import Panel
from rlaif.models.flow import Stream
from rlaif.progress import progress
from rlaif.types import Comparison
from rlaif.workspace import Workspace


async def run(
    config: JudgeConfig,
    work: Workspace,
    groups: Stream[Group] | None = None,
    total: int = 0,
    only: Collection[str] | None = None,
) -> None:
    """Writes judgments.jsonl and comparisons.jsonl. Raises TooManyFailures above `max_unscored`.

    `groups`: the prompts with their responses as the sample stage makes them, about `total` of
    them; None: what it has written. `only`: ids of the pairs to ask about; None: those that
    `comparisons` chooses.
    """
    constitution, _ = load_constitution(config.constitution)
    if groups is None:
        # Once through, so that a bad row is found before anything is asked.
        total = sum(1 for _ in sampled(work.prompts, work.responses))
        groups = sampled(work.prompts, work.responses)
    tally = JudgeTally(constitution, config.tie_margin)
    async with work.stage("judge") as bill:
        panel = Panel(
            config,
            constitution,
            work.seed,
            lambda asked, field: work.pool.open(asked, field, bill),
            only=only,
        )
        with (
            jsonl_writer(work.judgments) as write_judgment,
            work.write_comparisons() as write_comparison,
        ):
            told = _Told(tally, write_judgment, write_comparison)
            heard = await panel.judge_groups(groups, total, progress, told)
    work.save_part("labels", tally.labels())
    work.save_part("judge", tally.section(heard.judges, work.seed))
    work.save_part(
        "labeler",
        {
            "judge": " + ".join(heard.judges),
            "mode": " + ".join(dict.fromkeys(asked.mode for _, asked in config.judges())),
            "constitution": facts(constitution),
            "way": heard.way,
        },
    )
    counts = tally.ledger
    lost = sum(counts.unscored.values())
    if lost > config.max_unscored * counts.requested:
        raise TooManyFailures(
            f"{lost} of {counts.requested} comparisons ended unscored "
            f"({', '.join(f'{reason} {n}' for reason, n in counts.unscored.items())}), "
            f"judge.max_unscored allows {config.max_unscored:.0%}; what was answered is kept"
        )


class _Told:
    """Writes what it is told, and counts it."""

    def __init__(
        self,
        tally: JudgeTally,
        write_judgment: Callable[[BaseModel], None],
        write_comparison: Callable[[BaseModel], None],
    ) -> None:
        self._tally = tally
        self._write_judgment = write_judgment
        self._write_comparison = write_comparison

    def judged(self, of_pair: OfPair) -> None:
        self._tally.judged(of_pair)
        for judgment in of_pair.judgments:
            self._write_judgment(judgment)

    def decided(self, pair: Pair, comparison: Comparison) -> None:
        self._tally.decided(pair, comparison)
        self._write_comparison(comparison)

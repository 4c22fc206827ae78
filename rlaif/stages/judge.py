"""Stage 3: the answers to a prompt compared by the judges, under the constitution's principles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

from rlaif.constitution import Constitution, facts, load_constitution
from rlaif.errors import TooManyFailures
from rlaif.evaluate.intervals import Interval, clustered_mean, clustered_share
from rlaif.evaluate.schema import (
    JudgeSection,
    LabelsSection,
    LedgerRecord,
    PrincipleFigures,
)
from rlaif.files import read_jsonl, write_jsonl
from rlaif.judge.aggregate import Ledger, ledger, ledgers
from rlaif.judge.config import JudgeConfig
from rlaif.judge.design import Group, groups_of
from rlaif.judge.panel import Panel
from rlaif.models.flow import Stream
from rlaif.progress import progress
from rlaif.types import Comparison, Judgment, Prompt, Response
from rlaif.workspace import Workspace


async def run(
    config: JudgeConfig, work: Workspace, groups: Stream[Group] | None = None, total: int = 0
) -> None:
    """Writes judgments.jsonl and comparisons.jsonl. Raises TooManyFailures above `max_unscored`.

    `groups`: the prompts with their responses as the sample stage makes them, about `total` of
    them; None: what it has written.
    """
    constitution, _ = load_constitution(config.constitution)
    if groups is None:
        responses = read_jsonl(work.responses, Response)
        groups = found = groups_of({p.id: p for p in read_jsonl(work.prompts, Prompt)}, responses)
        total = len(found)
    async with work.stage("judge") as bill:
        panel = Panel(
            config,
            constitution,
            work.seed,
            lambda asked, field: work.pool.open(asked, field, bill),
        )
        pairs, judgments, comparisons, judges, way = await panel.judge_groups(
            groups, total, progress
        )
    write_jsonl(work.judgments, judgments)
    work.save_comparisons(comparisons)
    same_text = {pair.id for pair in pairs if pair.same_text}
    counts = ledger(comparisons)
    by_principle, by_judge = ledgers(judgments, same_text, config.tie_margin)
    work.save_part(
        "labels",
        LabelsSection(
            **_plain(counts),
            by_principle={i: LedgerRecord(**_plain(of)) for i, of in by_principle.items()},
            by_judge={i: LedgerRecord(**_plain(of)) for i, of in by_judge.items()},
        ),
    )
    section = judge_section(
        constitution, judgments, comparisons, same_text, config.tie_margin, work.seed
    )
    work.save_part("judge", section.model_copy(update={"judges": judges}))
    work.save_part(
        "labeler",
        {
            "judge": " + ".join(judges),
            "mode": " + ".join(dict.fromkeys(asked.mode for _, asked in config.judges())),
            "constitution": facts(constitution),
            "way": way,
        },
    )
    lost = sum(counts.unscored.values())
    if lost > config.max_unscored * len(pairs):
        raise TooManyFailures(
            f"{lost} of {len(pairs)} comparisons ended unscored "
            f"({', '.join(f'{reason} {n}' for reason, n in counts.unscored.items())}), "
            f"judge.max_unscored allows {config.max_unscored:.0%}; what was answered is kept"
        )


def _plain(counts: Ledger) -> dict[str, Any]:
    return {"requested": counts.requested, **counts._asdict()}


def judge_section(
    constitution: Constitution,
    judgments: Sequence[Judgment],
    comparisons: Sequence[Comparison],
    same_text: Set[str],
    tie_margin: float,
    seed: int,
) -> JudgeSection:
    """How the judge behaved: position, consistency, label mass, and each principle's votes."""
    prompt_of = {c.id: c.prompt_id for c in comparisons}
    # Two equal texts make both orders the same question: its answer must name one position, and
    # says nothing of how the judge treats positions or orders.
    judgments_of_two = [j for j in judgments if j.comparison_id not in same_text]
    masses = [j.label_mass for j in judgments if j.label_mass is not None]
    votes = {
        p.id: [c.votes[p.id] for c in comparisons if p.id in c.votes]
        for p in constitution.principles
    }
    spreads = [(c.disagreement, c.prompt_id) for c in comparisons if c.disagreement is not None]
    return JudgeSection(
        disagreement=clustered_mean([d for d, _ in spreads], [i for _, i in spreads], seed)
        if spreads
        else None,
        escalated=dict(sorted(Counter(c.escalated for c in comparisons if c.escalated).items())),
        order_consistency=_order_consistency(judgments_of_two, prompt_of, seed),
        first_position_rate=_first_position_rate(judgments_of_two, prompt_of, seed),
        label_mass_mean=sum(masses) / len(masses) if masses else None,
        label_mass_min=min(masses) if masses else None,
        judgments=len(judgments),
        unscored_judgments=dict(sorted(Counter(j.reason for j in judgments if j.reason).items())),
        by_principle={
            i: PrincipleFigures(
                votes=len(given),
                p_first_mean=sum(given) / len(given) if given else None,
                decided=sum(abs(p - 0.5) > tie_margin for p in given),
            )
            for i, given in votes.items()
        },
    )


def _first_position_rate(
    judgments: Sequence[Judgment], prompt_of: Mapping[str, str], seed: int
) -> Interval | None:
    """Share of judgments that name the response shown first; those at exactly 0.5 name none."""
    named = [
        (float((j.p_first > 0.5) == (j.order == "forward")), prompt_of[j.comparison_id])
        for j in judgments
        if j.order != "none" and j.p_first is not None and j.p_first != 0.5
    ]
    return _share(named, seed)


def _order_consistency(
    judgments: Sequence[Judgment], prompt_of: Mapping[str, str], seed: int
) -> Interval | None:
    """Share of (comparison, principle) with both orders scored that have one winner in both."""
    winners: dict[tuple[str, str, str], list[bool]] = {}
    for j in judgments:
        # At exactly 0.5 there is no winner to be consistent about.
        if j.order != "none" and j.p_first is not None and j.p_first != 0.5:
            key = (j.comparison_id, j.principle_id, j.judge)
            winners.setdefault(key, []).append(j.p_first > 0.5)
    both = [
        (float(found[0] == found[1]), prompt_of[comparison_id])
        for (comparison_id, _, _), found in winners.items()
        if len(found) == 2
    ]
    return _share(both, seed)


def _share(hits: Sequence[tuple[float, str]], seed: int) -> Interval | None:
    """Mean of (0 or 1, prompt id), clustered by prompt."""
    return clustered_share([hit for hit, _ in hits], [i for _, i in hits], seed) if hits else None

"""Stage 2: every two answers to a prompt compared by the judge, under every principle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set

from rlaif.constitution import Constitution, facts, load_constitution
from rlaif.errors import TooManyFailures
from rlaif.evaluate.intervals import Interval, clustered_share
from rlaif.evaluate.schema import JudgeSection, LabelsSection, PrincipleFigures
from rlaif.files import read_jsonl, write_jsonl
from rlaif.judge.aggregate import all_pairs, ledger
from rlaif.judge.ask import Judge, JudgeConfig
from rlaif.progress import progress
from rlaif.types import Comparison, Judgment, Prompt, Response
from rlaif.workspace import Workspace


async def run(config: JudgeConfig, work: Workspace) -> None:
    """Writes judgments.jsonl and comparisons.jsonl. Raises TooManyFailures above
    `max_unscored`."""
    constitution, _ = load_constitution(config.constitution)
    judge = Judge(config, constitution)
    responses = read_jsonl(work.responses, Response)
    prompts = {p.id: p for p in read_jsonl(work.prompts, Prompt)}
    pairs = all_pairs(prompts, responses)
    async with work.stage("judge") as bill, work.pool.open(config, "judge.model", bill) as client:
        judgments, comparisons = await judge.judge(
            pairs, client, lambda label, total: progress(label, total, "calls")
        )
    write_jsonl(work.judgments, judgments)
    write_jsonl(work.comparisons, comparisons)
    outcomes, unscored = ledger(comparisons)
    work.save_part(
        "labels",
        LabelsSection(
            requested=len(pairs),
            a=outcomes["A"],
            b=outcomes["B"],
            tie=outcomes["tie"],
            unscored=unscored,
        ),
    )
    work.save_part(
        "judge",
        judge_section(
            constitution,
            judgments,
            comparisons,
            {pair.id for pair in pairs if pair.first.text == pair.second.text},
            config.tie_margin,
            work.seed,
        ),
    )
    work.save_part(
        "labeler",
        {
            "judge": client.model.identity,
            "mode": config.mode,
            "constitution": facts(constitution),
        },
    )
    lost = sum(unscored.values())
    if lost > config.max_unscored * len(pairs):
        raise TooManyFailures(
            f"{lost} of {len(pairs)} comparisons ended unscored "
            f"({', '.join(f'{reason} {n}' for reason, n in unscored.items())}), "
            f"judge.max_unscored allows {config.max_unscored:.0%}; what was answered is kept"
        )


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
    return JudgeSection(
        certified=False,
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
    winners: dict[tuple[str, str], list[bool]] = {}
    for j in judgments:
        # At exactly 0.5 there is no winner to be consistent about.
        if j.order != "none" and j.p_first is not None and j.p_first != 0.5:
            winners.setdefault((j.comparison_id, j.principle_id), []).append(j.p_first > 0.5)
    both = [
        (float(found[0] == found[1]), prompt_of[comparison_id])
        for (comparison_id, _), found in winners.items()
        if len(found) == 2
    ]
    return _share(both, seed)


def _share(hits: Sequence[tuple[float, str]], seed: int) -> Interval | None:
    """Mean of (0 or 1, prompt id), clustered by prompt."""
    return clustered_share([hit for hit, _ in hits], [i for _, i in hits], seed) if hits else None

"""The arms' policies against each other and against their start, by a judge that need not be the
one that labelled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.arms import BEST_OF, START, ArmName, Verdict, folder_of
from rlaif.constitution import load_constitution
from rlaif.errors import TooManyFailures
from rlaif.evaluate.overoptimization import kl_of_best_of
from rlaif.files import read_jsonl, write_jsonl
from rlaif.judge.aggregate import Pair
from rlaif.judge.config import JudgeConfig
from rlaif.judge.panel import Panel
from rlaif.progress import progress
from rlaif.types import PreferenceGroup, Prompt, Response
from rlaif.workspace import Workspace


async def run(arms: Sequence[ArmName], seeds: int, judge: JudgeConfig, work: Workspace) -> None:
    """Writes verdicts.jsonl: each arm against the start and against people's labels, and each
    reward model's best of n, at about the policy's KL, against the policy of the same labels.
    Always in both orders. Raises TooManyFailures above `judge.max_unscored`."""
    constitution, _ = load_constitution(judge.constitution)
    prompts = {g.prompt.id: g.prompt for g in read_jsonl(work.human, PreferenceGroup)}
    matches = [
        (seed, match)
        for seed in range(seeds)
        for match in matches_in(work.directory / "arms", arms, seed, prompts)
    ]
    async with work.stage("head-to-head") as bill:
        panel = Panel(
            judge.in_both_orders(),
            constitution,
            work.seed,
            lambda asked, field: work.pool.open(asked, field, bill),
        )
        found = await panel.judge_pairs([match.pair for _, match in matches], progress)
        await work.pool.close_servers()
    write_jsonl(work.directory / "verdict_judgments.jsonl", found.judgments)
    write_jsonl(
        work.directory / "verdicts.jsonl",
        (
            Verdict(first=m.first, second=m.second, seed=seed, n=m.n, comparison=comparison)
            for (seed, m), comparison in zip(matches, found.comparisons, strict=True)
        ),
    )
    work.save_part("evaluation", {"judge": " + ".join(found.judges), "way": found.way})
    unscored = sum(c.outcome == "unscored" for c in found.comparisons)
    if unscored > judge.max_unscored * len(matches):
        raise TooManyFailures(
            f"{unscored} of {len(matches)} comparisons of the policies ended unscored, "
            f"judge.max_unscored allows {judge.max_unscored:.0%}; the rest is kept"
        )


Answers = Mapping[str, Sequence[Response]]
"""Prompt id -> the answers of one policy."""


class Picks(NamedTuple):
    """What a reward model picks of the start policy's answers, one a prompt."""

    answers: Answers
    n: int
    """Of how many."""


class Match(NamedTuple):
    """As in `Verdict`, before it is judged."""

    first: str
    second: str
    n: int | None
    pair: Pair


def matches_of(
    start: Answers,
    own: Mapping[ArmName, Answers],
    picks: Mapping[ArmName, Picks],
    prompts: Mapping[str, Prompt],
) -> Iterator[Match]:
    """What is compared of one seed's policies. `own`: the answers of each arm's policy."""
    for arm, answers in own.items():
        for first, second in _beside(answers, start):
            yield Match(arm, START, None, Pair(prompts[first.prompt_id], first, second))
        if arm != "human" and "human" in own:
            for first, second in _beside(answers, own["human"]):
                yield Match(arm, "human", None, Pair(prompts[first.prompt_id], first, second))
        if arm in picks:
            picked, n = picks[arm]
            for first, second in _beside(picked, answers):
                yield Match(
                    f"{BEST_OF}:{arm}", arm, n, Pair(prompts[first.prompt_id], first, second)
                )


def matches_in(
    folder: Path, arms: Sequence[ArmName], seed: int, prompts: Mapping[str, Prompt]
) -> Iterator[Match]:
    """As `matches_of`, from what the stage arms has left in `folder`."""
    start = _answers(folder / START)
    own = {arm: _answers(folder / folder_of(arm, seed) / "dpo") for arm in arms}
    found = {arm: _picks(folder, arm, seed, start) for arm in arms}
    picks = {arm: of_arm for arm, of_arm in found.items() if of_arm is not None}
    return matches_of(start, own, picks, prompts)


def _answers(folder: Path) -> dict[str, list[Response]]:
    found: dict[str, list[Response]] = {}
    for response in read_jsonl(folder / "answers.jsonl", Response):
        found.setdefault(response.prompt_id, []).append(response)
    return found


def _beside(one: Answers, other: Answers) -> Iterator[tuple[Response, Response]]:
    """The i-th answer of one against the i-th of the other."""
    for prompt_id, answers in one.items():
        yield from zip(answers, other.get(prompt_id, ()), strict=False)


def _picks(folder: Path, arm: ArmName, seed: int, start: Answers) -> Picks | None:
    """The best of the start policy's first n answers, by the arm's reward model; n is the one whose
    KL, log n - (n - 1) / n, is nearest to the policy's among those there are. None where the
    policy's KL is not known."""
    of = folder / folder_of(arm, seed)
    scores: dict[str, list[float | None]] = json.loads(
        (of / "reward_model" / "best_of.json").read_text(encoding="utf-8")
    )
    ratios = json.loads((of / "dpo" / "log_ratios.json").read_text(encoding="utf-8"))
    if not ratios:
        return None
    kl = sum(value for _, value in ratios) / len(ratios)
    most = max(map(len, start.values()))
    n = min(range(1, most + 1), key=lambda n: abs(kl_of_best_of(n) - kl))
    picks = {}
    for prompt_id, answers in start.items():
        scored = [(score, -i) for i, score in enumerate(scores[prompt_id][:n]) if score is not None]
        if scored:
            picks[prompt_id] = [answers[-max(scored)[1]]]
    return Picks(picks, n)

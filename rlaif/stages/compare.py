"""Stage 7: reward model against DPO, and the DPO policy against the policy it started from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from rlaif.constitution import load_constitution
from rlaif.errors import SetupError, TooManyFailures
from rlaif.evaluate.heldout import scorer_agreement, win_rate
from rlaif.evaluate.intervals import Interval, clustered_mean
from rlaif.evaluate.schema import ComparisonSection, Example
from rlaif.files import read_jsonl, write_jsonl, write_text
from rlaif.judge.aggregate import Pair
from rlaif.judge.config import JudgeConfig
from rlaif.judge.panel import Panel
from rlaif.models.client import Bill
from rlaif.models.pool import ModelConfig, weights_identity
from rlaif.progress import progress, say
from rlaif.sample import Drawn
from rlaif.stages._answering import Engine, answer, log_ratios, serve, serve_start, with_tokens
from rlaif.stages._training import Start, load_scores, start_weights
from rlaif.train.settings import require_torch
from rlaif.types import Comparison, PreferenceGroup, Prompt, Record, Response, Sampling
from rlaif.workspace import Workspace

EXAMPLES = 6


class CompareConfig(Record):
    """How the two policies are compared."""

    samples: int = Field(default=2, ge=1)
    """Answers of each policy to each held-out prompt."""
    engine: Engine = "auto"
    """What serves both policies. auto: vLLM where their weights are named by vllm/… or embedded/…,
    else transformers."""


async def run(
    config: CompareConfig,
    policy: ModelConfig,
    judge: JudgeConfig,
    base: str | None,
    sampling: Sampling,
    max_failed: float,
    max_length: int,
    work: Workspace,
) -> None:
    """Writes compare/ and the report's comparison; fills in the policy's KL.

    Raises TooManyFailures where the thresholds of the sample and judge stages would.
    """
    require_torch()
    dpo_part = work.part("dpo")
    if dpo_part is None:
        raise SetupError(
            "the policy is not trained on the present groups",
            file=work.policy,
            fix="run `rlaif train-rm` and `rlaif train-dpo` first",
        )
    if work.part("reward_model") is None:
        raise SetupError(
            "the reward model is not trained on the present groups",
            file=work.reward_model,
            fix="run `rlaif train-rm` first",
        )
    groups = read_jsonl(work.groups, PreferenceGroup)
    # Read before anything is asked, so that a missing stage is found at no cost.
    reward_scores, dpo_scores = load_scores(work, "reward_model"), load_scores(work, "dpo")
    splits: dict[str, str] = json.loads(work.splits.read_text(encoding="utf-8"))
    prompts = [p for p in read_jsonl(work.prompts, Prompt) if splits.get(p.id) == "test"]
    start = start_weights(base, policy.model, "dpo")
    trained = serve(str(work.policy.resolve()), policy, start, config.engine)
    untrained = serve_start(policy, base, start, config.engine)
    async with work.stage("compare") as bill:
        asked, k = with_tokens(sampling), config.samples
        dpo, drawn = await answer("dpo", trained, prompts, k, asked, max_failed, bill, work)
        first, _ = await answer("start", untrained, prompts, k, sampling, max_failed, bill, work)
        comparisons = await _judge(judge, prompts, dpo, first, bill, work)
        await work.pool.close_servers()
        kl = _kl(drawn, start, max_length, work)
        if kl is None and asked.token_ids:
            say("compare: no tokens came with the policy's answers, so there is no KL")
    write_jsonl(work.compare / "responses.jsonl", [*dpo, *first])
    write_jsonl(work.compare / "comparisons.jsonl", comparisons)
    agreed = scorer_agreement(groups, reward_scores, dpo_scores, work.seed)
    section = _section(prompts, dpo, first, comparisons, agreed, work.seed)
    work.save_part("comparison", section)
    work.save_part("dpo", {**dpo_part, "kl": kl.model_dump(mode="json") if kl else None})
    if section.unscored and section.unscored > judge.max_unscored * len(comparisons):
        raise TooManyFailures(
            f"{section.unscored} of {len(comparisons)} comparisons of the policies ended "
            f"unscored, judge.max_unscored allows {judge.max_unscored:.0%}; the rest is kept"
        )


async def _judge(
    config: JudgeConfig,
    prompts: Sequence[Prompt],
    dpo: Sequence[Response],
    start: Sequence[Response],
    bill: Bill,
    work: Workspace,
) -> list[Comparison]:
    """The i-th answer of one policy against the i-th of the other, always in both orders: the
    trained policy's is the first of each pair, so one order would measure the judge's position."""
    constitution, _ = load_constitution(config.constitution)
    by_id = {p.id: p for p in prompts}
    opponents = {r.id.removeprefix("start:"): r for r in start}
    pairs = [
        Pair(by_id[r.prompt_id], r, opponents[name])
        for r in dpo
        if (name := r.id.removeprefix("dpo:")) in opponents
    ]
    panel = Panel(
        config.in_both_orders(),
        constitution,
        work.seed,
        lambda asked, field: work.pool.open(asked, field, bill),
    )
    found = await panel.judge_pairs(pairs, progress)
    write_jsonl(work.compare / "judgments.jsonl", found.judgments)
    return found.comparisons


def _kl(
    drawn: Sequence[Drawn],
    start: Start,
    max_length: int,
    work: Workspace,
) -> Interval | None:
    """KL(policy || start) in nats a response: the mean over the policy's own draws of
    log pi - log pi_ref. Computed once for the same draws, then read back."""
    inputs = {
        "policy": weights_identity(work.policy),
        "drawn": [(prompt.model_dump(mode="json"), ids) for prompt, ids in drawn],
        "reference": start.identity,
        "max_length": max_length,
    }
    kept = work.compare / "log_ratios.json"
    if work.is_made(work.compare, inputs):
        ratios: list[tuple[str, float]] = json.loads(kept.read_text(encoding="utf-8"))
    else:
        ratios = log_ratios(drawn, str(work.policy), start.weights, max_length)
        write_text(kept, json.dumps(ratios) + "\n")
        work.mark_made(work.compare, inputs)
    if not ratios:
        return None
    return clustered_mean([v for _, v in ratios], [i for i, _ in ratios], work.seed)


def _section(
    prompts: Sequence[Prompt],
    dpo: Sequence[Response],
    start: Sequence[Response],
    comparisons: Sequence[Comparison],
    agreed: Interval | None,
    seed: int,
) -> ComparisonSection:
    outcomes = Counter(c.outcome for c in comparisons)
    words_dpo, words_start = _mean_words(dpo), _mean_words(start)
    both = sorted(set(words_dpo) & set(words_start))
    return ComparisonSection(
        rm_dpo_agreement=agreed,
        win_rate=win_rate(comparisons, seed),
        wins=outcomes["A"],
        losses=outcomes["B"],
        ties=outcomes["tie"],
        unscored=outcomes["unscored"],
        mean_length_start=_mean([words_start[i] for i in both]),
        mean_length_dpo=_mean([words_dpo[i] for i in both]),
        length_difference=clustered_mean([words_dpo[i] - words_start[i] for i in both], both, seed)
        if both
        else None,
        examples=_examples(prompts, dpo, start, comparisons),
    )


def _mean_words(responses: Sequence[Response]) -> dict[str, float]:
    """Prompt id -> mean words of its responses."""
    words: dict[str, list[int]] = {}
    for r in responses:
        words.setdefault(r.prompt_id, []).append(len(r.text.split()))
    return {i: sum(found) / len(found) for i, found in words.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _examples(
    prompts: Sequence[Prompt],
    dpo: Sequence[Response],
    start: Sequence[Response],
    comparisons: Sequence[Comparison],
) -> tuple[Example, ...]:
    """The first answers to the first held-out prompts: not picked."""
    text: Mapping[str, str] = {r.id: r.text for r in (*dpo, *start)}
    shown: dict[str, Any] = {}
    for c in comparisons:
        if c.prompt_id not in shown:
            shown[c.prompt_id] = c
    by_id = {p.id: p for p in prompts}
    return tuple(
        Example(
            prompt=by_id[i].messages[-1].content,
            start=text[c.second],
            dpo=text[c.first],
            p_dpo=c.p_first,
        )
        for i, c in list(shown.items())[:EXAMPLES]
    )

"""Stage 6: reward model against DPO, and the DPO policy against the policy it started from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from rlaif.constitution import load_constitution
from rlaif.datasets import load_prompts
from rlaif.evaluate.heldout import scorer_agreement
from rlaif.evaluate.intervals import Interval, clustered_mean, clustered_share
from rlaif.evaluate.schema import ComparisonSection, Example
from rlaif.files import read_jsonl, write_jsonl, write_text
from rlaif.judge.aggregate import Pair
from rlaif.judge.ask import Judge, JudgeConfig
from rlaif.models.client import Bill
from rlaif.models.pool import ModelConfig
from rlaif.preferences import split_by_prompt
from rlaif.progress import progress
from rlaif.sample import sample
from rlaif.stages._training import Steps, load_scores, start_weights
from rlaif.train.settings import require_torch
from rlaif.types import Comparison, PreferenceGroup, Prompt, Record, Response, Sampling
from rlaif.workspace import Workspace

EXAMPLES = 6


class CompareConfig(Record):
    """How the two policies are compared."""

    samples: int = Field(default=2, ge=1)
    """Answers of each policy to each held-out prompt."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What serves the trained policy. auto: vLLM where the policy is served by it, else
    transformers."""


async def run(
    config: CompareConfig,
    policy: ModelConfig,
    judge: JudgeConfig,
    base: str | None,
    prompt_set: str,
    sampling: Sampling,
    test_fraction: float,
    max_length: int,
    work: Workspace,
) -> None:
    """Writes compare/ and the report's comparison; fills in the policy's KL."""
    require_torch()
    responses = read_jsonl(work.responses, Response)
    groups = read_jsonl(work.groups, PreferenceGroup)
    # Read before anything is asked, so that a missing stage is found at no cost.
    reward_scores, dpo_scores = load_scores(work, "reward_model"), load_scores(work, "dpo")
    splits = split_by_prompt((r.prompt_id for r in responses), test_fraction, work.seed)
    prompts = [p for p in load_prompts(prompt_set) if splits.get(p.id) == "test"]
    start = start_weights(base, policy.model, "dpo")
    scheme = _scheme(config.engine, policy.model)
    trained = policy.model_copy(update={"model": f"{scheme}/{work.policy.resolve()}"})
    if base is not None:
        untrained = policy.model_copy(update={"model": f"{scheme}/{start.weights}"})
    else:
        untrained = policy
    async with work.stage("compare") as bill:
        dpo = await _sample("dpo", config, trained, prompts, sampling, bill, work)
        # One policy at a time: on a small machine two servers do not fit.
        await work.pool.close_servers()
        first = await _sample("start", config, untrained, prompts, sampling, bill, work)
        comparisons = await _judge(judge, prompts, dpo, first, bill, work)
        await work.pool.close_servers()
        kl = _kl(prompts, dpo, str(work.policy), start.weights, max_length, work)
    write_jsonl(work.compare / "responses.jsonl", [*dpo, *first])
    write_jsonl(work.compare / "comparisons.jsonl", comparisons)
    agreed = scorer_agreement(groups, reward_scores, dpo_scores, work.seed)
    work.save_part("comparison", _section(prompts, dpo, first, comparisons, agreed, work.seed))
    dpo_part = work.part("dpo")
    if dpo_part is not None:
        work.save_part("dpo", {**dpo_part, "kl": kl.model_dump(mode="json") if kl else None})


def _scheme(engine: str, policy: str) -> str:
    if engine != "auto":
        return engine
    return "vllm" if policy.startswith(("vllm/", "embedded/")) else "transformers"


async def _sample(
    name: str,
    config: CompareConfig,
    model: ModelConfig,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    bill: Bill,
    work: Workspace,
) -> list[Response]:
    field = "dpo.base" if name == "dpo" else "policy.model"
    async with work.pool.open(model, field, bill) as client:
        with progress(f"{name} policy", len(prompts), "prompts") as advance:
            found = await sample(prompts, config.samples, sampling, client, advance)
    return [r.model_copy(update={"id": f"{name}:{r.id}"}) for r in found.responses]


async def _judge(
    config: JudgeConfig,
    prompts: Sequence[Prompt],
    dpo: Sequence[Response],
    start: Sequence[Response],
    bill: Bill,
    work: Workspace,
) -> list[Comparison]:
    """The i-th answer of one policy against the i-th of the other."""
    constitution, _ = load_constitution(config.constitution)
    by_id = {p.id: p for p in prompts}
    opponents = {r.id.removeprefix("start:"): r for r in start}
    pairs = [
        Pair(by_id[r.prompt_id], r, opponents[name])
        for r in dpo
        if (name := r.id.removeprefix("dpo:")) in opponents
    ]
    async with work.pool.open(config, "judge.model", bill) as client:
        _, comparisons = await Judge(config, constitution).judge(
            pairs, client, lambda label, total: progress(label, total, "calls")
        )
    return comparisons


def _kl(
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    policy: str,
    reference: str,
    max_length: int,
    work: Workspace,
) -> Interval | None:
    """KL(policy || reference) in nats a response: the mean over the policy's own answers of
    log pi - log pi_ref. Computed once for the same answers, then read back."""
    inputs = {
        "responses": [r.model_dump(mode="json") for r in responses],
        "reference": reference,
        "max_length": max_length,
    }
    kept = work.compare / "log_ratios.json"
    if work.is_made(work.compare, inputs):
        log_ratios: list[tuple[str, float]] = json.loads(kept.read_text(encoding="utf-8"))
    else:
        log_ratios = _log_ratios(prompts, responses, policy, reference, max_length)
        write_text(kept, json.dumps(log_ratios) + "\n")
        work.mark_made(work.compare, inputs)
    if not log_ratios:
        return None
    return clustered_mean([v for _, v in log_ratios], [i for i, _ in log_ratios], work.seed)


def _log_ratios(
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    policy: str,
    reference: str,
    max_length: int,
) -> list[tuple[str, float]]:
    from rlaif.train import api  # torch only where something is scored

    by_id = {p.id: p for p in prompts}
    drawn = [(by_id[r.prompt_id], r.text, r.finish_reason != "length") for r in responses]
    with Steps("KL, policy", "responses") as on_step:
        trained = api.sampled_logprobs(policy, drawn, max_length, on_step)
    with Steps("KL, reference", "responses") as on_step:
        before = api.sampled_logprobs(reference, drawn, max_length, on_step)
    return [
        (prompt.id, p - q)
        for (prompt, _, _), p, q in zip(drawn, trained, before, strict=True)
        if p is not None and q is not None
    ]


def _section(
    prompts: Sequence[Prompt],
    dpo: Sequence[Response],
    start: Sequence[Response],
    comparisons: Sequence[Comparison],
    agreed: Interval | None,
    seed: int,
) -> ComparisonSection:
    outcomes = Counter(c.outcome for c in comparisons)
    credit = {"A": 1.0, "B": 0.0, "tie": 0.5}
    scored = [c for c in comparisons if c.outcome != "unscored"]
    won = [credit[c.outcome] for c in scored]
    words_dpo, words_start = _mean_words(dpo), _mean_words(start)
    both = sorted(set(words_dpo) & set(words_start))
    return ComparisonSection(
        rm_dpo_agreement=agreed,
        win_rate=clustered_share(won, [c.prompt_id for c in scored], seed) if won else None,
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

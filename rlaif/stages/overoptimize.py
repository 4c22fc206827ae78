"""Where a run's reward model breaks: best-of-n by it, and by a gold that it has not seen."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from rlaif.constitution import load_constitution
from rlaif.constitution.file import slug
from rlaif.errors import SetupError, TooManyFailures
from rlaif.evaluate.overoptimization import Curve, Overoptimization, Point, Scored, curve
from rlaif.evaluate.wording import amount, number
from rlaif.files import digest, read_jsonl, write_jsonl, write_text
from rlaif.interrupts import interruptible
from rlaif.judge.aggregate import weighted
from rlaif.judge.comply import Question, judge_compliance
from rlaif.judge.config import JudgeConfig
from rlaif.models.client import Bill
from rlaif.models.pool import ModelConfig
from rlaif.progress import progress, say
from rlaif.sample import sample
from rlaif.stages._training import Steps
from rlaif.train.scale import combined, read_scale
from rlaif.train.settings import check_directory, require_torch
from rlaif.types import Prompt, Record, Response, Sampling
from rlaif.workspace import Workspace

Rows = list[list[list[float]]]
"""Prompt, sample, member."""


class GoldConfig(Record):
    """Who tells what an answer is really worth; one of the three."""

    judge: str | None = None
    """A judge's model other than the one that labelled: P(the answer follows the constitution),
    asked about each answer by itself."""
    reward_model: Path | None = None
    """A reward model's folder, for instance one trained on human labels."""
    function: str | None = None
    """A Python function, `package.module:function`, of the prompt's messages (a list of role and
    content) and the answer's text, that gives a number."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise ValueError(
                "give one of gold.judge=MODEL, gold.reward_model=DIR and "
                f"gold.function=package.module:function; found {said}"
            )
        return self


class OveroptimizeConfig(Record):
    """How far the reward model is pushed."""

    gold: GoldConfig
    samples: int = Field(default=64, ge=2)
    """Answers of the start policy to each prompt, and the largest n."""
    limit: int | None = Field(default=None, ge=1)
    """Most prompts; none: all that are held out."""
    penalty: float = Field(default=1.0, ge=0.0)
    """Lambda of mean - lambda variance, in normalised scores, where there is an ensemble."""

    @model_validator(mode="before")
    @classmethod
    def _gold_says_what_it_may_be(cls, given: Any) -> Any:
        return {"gold": {}} | given if isinstance(given, dict) else given


async def run(
    config: OveroptimizeConfig,
    policy: ModelConfig,
    judge: JudgeConfig,
    sampling: Sampling,
    max_length: int,
    work: Workspace,
) -> list[str]:
    """Writes overoptimize/GOLD/, a folder for each gold, and returns what to tell.

    The policy is the one that the run sampled from; its answers are stored calls like all others.
    Raises SetupError for a run without a reward model and a gold that cannot be asked.
    """
    require_torch()
    if work.part("reward_model") is None:
        raise SetupError(
            "the reward model is not trained on the present groups",
            file=work.reward_model,
            fix="run `rlaif train-rm` first",
        )
    if config.gold.reward_model is not None:
        check_directory(str(config.gold.reward_model))
    function = _function(config.gold.function) if config.gold.function else None
    if config.gold.judge in {asked.model for _, asked in judge.judges()}:
        say("warning: the judge that labelled is its own gold here; name another one")
    prompts = _held_out(work)[: config.limit]
    async with work.stage("overoptimize") as bill:
        answers = await _answers(prompts, config.samples, policy, sampling, bill, work)
        kept = [prompt for prompt in prompts if prompt.id in answers]
        responses = [answers[prompt.id] for prompt in kept]
        await work.pool.close_servers()
        members = _scores(str(work.reward_model), kept, responses, max_length)
        if function is not None:
            gold = [
                [function(p, r.text) for r in row] for p, row in zip(kept, responses, strict=True)
            ]
            named = str(config.gold.function)
        elif config.gold.reward_model is not None:
            scored = _scores(str(config.gold.reward_model), kept, responses, max_length)
            gold = [[float(np.mean(score_M)) for score_M in row] for row in scored]
            named = str(config.gold.reward_model)
        else:
            gold = await _judged(str(config.gold.judge), judge, kept, responses, bill, work)
            named = str(config.gold.judge)
        found = _curves(config, named, members, gold, work)
        out = _folder(work.directory / "overoptimize", named)
        _write(out, found, kept, responses, members, gold)
    return [*sentences(found), f"curves: {out / 'curves.json'}, {out / 'curves.svg'}"]


def sentences(found: Overoptimization) -> list[str]:
    """What the curves say, a line each."""
    told = []
    for one in found.curves:
        first, last = one.points[0], one.points[-1]
        best = max(one.points, key=lambda point: point.gold.value)
        told.append(
            f"{one.name}: gold at the start (n = 1) {amount(first.gold)}, at its best "
            f"(n = {best.n}) {amount(best.gold)}, at the largest n ({last.n}) {amount(last.gold)}; "
            f"{_turn(one, best)}; recommended: n = {one.recommended_n}"
        )
    return told


def _turn(one: Curve, best: Point) -> str:
    if one.fit.peak_n is not None:
        return (
            f"its fitted peak is at n = {one.fit.peak_n} (KL {number(one.fit.peak_kl or 0)} nats)"
        )
    gold_S = [point.gold.value for point in one.points]
    if min(gold_S) == max(gold_S):
        return "no peak: it does not change with n"
    if best is one.points[-1]:
        return f"no peak: it still rises at n = {best.n}"
    if best is one.points[0]:
        return "no peak: it falls from the start"
    return "no fitted peak within the range"


def _folder(within: Path, gold: str) -> Path:
    """Where the curves of one gold are kept."""
    out = within / (slug(gold) or "gold")
    curves = out / "curves.json"
    if curves.is_file() and json.loads(curves.read_text(encoding="utf-8"))["gold"] != gold:
        # Two names that differ in signs alone.
        out = within / f"{out.name}-{digest(gold)[:8]}"
    return out


def _held_out(work: Workspace) -> list[Prompt]:
    splits: dict[str, str] = json.loads(work.splits.read_text(encoding="utf-8"))
    found = [p for p in read_jsonl(work.prompts, Prompt) if splits.get(p.id) == "test"]
    if not found:
        raise SetupError(
            "no prompt is held out", file=work.splits, fix="set pairs.test_fraction above 0"
        )
    return found


def _function(name: str) -> Callable[[Prompt, str], float]:
    module, colon, attribute = name.partition(":")
    try:
        if not colon:
            raise ImportError("it has no colon")
        given = vars(importlib.import_module(module))[attribute]
    except (ImportError, KeyError) as e:
        raise SetupError(
            f"{name!r} names no function: {e}",
            field="gold.function",
            fix="write package.module:function, of a module that Python finds",
        ) from e

    def gold(prompt: Prompt, text: str) -> float:
        value = float(given([m.model_dump() for m in prompt.messages], text))
        if not math.isfinite(value):
            raise SetupError(f"gave {value} for an answer to {prompt.id!r}", field="gold.function")
        return value

    return gold


async def _answers(
    prompts: Sequence[Prompt],
    samples: int,
    policy: ModelConfig,
    sampling: Sampling,
    bill: Bill,
    work: Workspace,
) -> dict[str, list[Response]]:
    """As many answers to each prompt; one with fewer is left out, and said."""
    async with work.pool.open(policy, "policy.model", bill) as client:
        with progress("policy", len(prompts), "prompts") as advance:
            found = await sample(prompts, samples, sampling, client, advance)
    answers: dict[str, list[Response]] = {}
    for response in found.responses:
        answers.setdefault(response.prompt_id, []).append(response)
    whole = {name: row for name, row in answers.items() if len(row) == samples}
    if len(whole) < len(prompts):
        say(f"{len(prompts) - len(whole)} prompts have fewer than {samples} answers; left out")
    if not whole:
        raise TooManyFailures(f"no prompt has {samples} answers")
    return whole


def _scores(
    model: str, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], max_length: int
) -> Rows:
    from rlaif.train import scoring

    items = [(p, [r.text for r in row]) for p, row in zip(prompts, responses, strict=True)]
    with interruptible(), Steps("scoring", "prompts") as on_step:
        found = scoring.score_members(model, items, max_length, on_step)
    rows: Rows = []
    for row in found:
        known = [scores_M for scores_M in row if scores_M is not None]
        if len(known) < len(row):
            raise SetupError(
                f"{len(row) - len(known)} answers to one prompt exceed {max_length} tokens",
                field="reward_model.max_length",
                fix="raise it, or lower sample.max_tokens",
            )
        rows.append(known)
    return rows


async def _judged(
    model: str,
    judge: JudgeConfig,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    bill: Bill,
    work: Workspace,
) -> list[list[float]]:
    """Each answer's weighted mean over the principles; one that is unscored fails the stage, since
    a gap would move every n."""
    constitution, _ = load_constitution(judge.constitution)
    asked = judge.of(model)
    questions = [
        Question(prompt, response, principle)
        for prompt, row in zip(prompts, responses, strict=True)
        for response in row
        for principle in constitution.principles
        if principle.applies(prompt)
    ]
    found = await judge_compliance(
        asked, questions, lambda one, field: work.pool.open(one, field, bill), progress
    )
    values = iter(found)
    gold = []
    for prompt, row in zip(prompts, responses, strict=True):
        asking = [p for p in constitution.principles if p.applies(prompt)]
        weights = {p.id: p.weight for p in asking}
        of_row = []
        for response in row:
            votes = {
                p.id: one.p_complies for p in asking if (one := next(values)).p_complies is not None
            }
            value = weighted(votes, weights, judge.min_voting_weight)
            if value is None:
                raise TooManyFailures(f"the gold judge gave nothing for {response.id}")
            of_row.append(value)
        gold.append(of_row)
    return gold


def _curves(
    config: OveroptimizeConfig,
    named: str,
    members: Rows,
    gold: list[list[float]],
    work: Workspace,
) -> Overoptimization:
    raw_PNM, gold_PN = np.array(members), np.array(gold)
    scale = read_scale(work.reward_model)
    scores_PNM = raw_PNM if scale is None else scale.normalised(raw_PNM)
    ways = {"single": scores_PNM[..., 0]}
    if scores_PNM.shape[-1] > 1:
        ways["mean"] = combined(scores_PNM, "mean")
        ways["worst"] = combined(scores_PNM, "worst")
        ways["uncertain"] = combined(scores_PNM, "uncertain", config.penalty)
    if np.ptp(ways["single"]) == 0:
        raise SetupError("gives every answer the same score", file=work.reward_model)
    return Overoptimization(
        gold=named,
        prompts=len(gold),
        samples=config.samples,
        curves=tuple(
            curve(Scored(name, proxy_PN, gold_PN), config.samples, work.seed)
            for name, proxy_PN in ways.items()
        ),
    )


class _Sample(Record):
    """One answer and what it is given."""

    response: Response
    rewards: tuple[float, ...]
    """Raw, of each member."""
    gold: float


def _write(
    out: Path,
    found: Overoptimization,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    members: Rows,
    gold: list[list[float]],
) -> None:
    from rlaif.evaluate.plots import draw_overoptimization

    rows = [
        _Sample(response=response, rewards=tuple(rewards), gold=value)
        for row, rewards_N, gold_N in zip(responses, members, gold, strict=True)
        for response, rewards, value in zip(row, rewards_N, gold_N, strict=True)
    ]
    write_jsonl(out / "prompts.jsonl", prompts)
    write_jsonl(out / "samples.jsonl", rows)
    write_text(out / "curves.json", found.model_dump_json(indent=2) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["curve", "n", "kl", "proxy", "gold", "gold_low", "gold_high"])
    for one in found.curves:
        for point in one.points:
            ends = (point.gold.low, point.gold.high)
            writer.writerow(
                [one.name, point.n, point.kl, point.proxy.value, point.gold.value, *ends]
            )
    write_text(out / "curves.csv", table.getvalue())
    write_text(out / "curves.svg", draw_overoptimization(found))

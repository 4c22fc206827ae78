"""The arms of a study trained, each under several seeds: the same pairs, start, steps and tokens
under different labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from rlaif.arms import START, ArmName, Trained, arm_groups, curve_arms, folder_of, paired, part_of
from rlaif.datasets import load_prompts
from rlaif.errors import SetupError
from rlaif.evaluate.noise_control import flipped
from rlaif.files import digest, need_space, read_jsonl, write_jsonl, write_text
from rlaif.interrupts import interruptible
from rlaif.models.client import Bill
from rlaif.models.pool import ModelConfig
from rlaif.progress import say
from rlaif.stages._answering import Engine, answer, log_ratios, serve, serve_start, with_tokens
from rlaif.stages._training import (
    NEEDED_MB,
    ScoreRows,
    Start,
    Steps,
    implicit_rewards,
    reference_log_probs,
    settings_of,
    start_weights,
)
from rlaif.train.settings import DPOSettings, RewardSettings, TrainSettings, require_torch
from rlaif.types import Comparison, PreferenceGroup, Prompt, Record, Response, Sampling
from rlaif.workspace import Workspace


class AnswersConfig(Record):
    """What the arms' policies are asked."""

    samples: int = Field(default=1, ge=1)
    """Answers of each policy to each held-out prompt."""
    best_of: int = Field(default=8, ge=1)
    """Answers of the start policy to each held-out prompt, of which each reward model picks the
    best of n."""
    limit: int | None = Field(default=None, ge=2)
    """Only so many held-out prompts are answered; none: all."""
    harmless: str = "everyday"
    """Prompts that call for no refusal: a prompt set, as in sample.prompts."""
    harmful: str = "harmful"
    """Prompts that all call for one."""
    refusal_prompts: int = Field(default=24, ge=0)
    """So many of each of these two sets; 0: none."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest answer, in tokens."""
    max_failed: float = Field(default=0.05, ge=0, le=1)
    """Exit code 3 when a larger share of a policy's calls fails; what was answered is kept."""
    engine: Engine = "auto"
    """What serves the arms' policies. auto: vLLM where it serves the policy's own weights."""

    @property
    def of_start(self) -> int:
        """Answers of the start policy to each held-out prompt."""
        return max(self.best_of, self.samples)


class Unit(NamedTuple):
    """What is trained in one folder: a reward model, and for the whole of the pairs a policy."""

    arm: ArmName
    seed: int
    share: float

    @property
    def name(self) -> str:
        return folder_of(self.arm, self.seed, self.share)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the folders that its models are kept in."""
        return ("reward_model", "dpo") if self.share == 1 else ("reward_model",)


def units_of(arms: Sequence[ArmName], seeds: int, curve: Sequence[float]) -> list[Unit]:
    """All that is trained, in order: the arms, then the parts of the learning curve."""
    whole = [Unit(arm, seed, 1.0) for seed in range(seeds) for arm in arms]
    parts = [
        Unit(arm, seed, share)
        for share in curve
        for seed in range(seeds)
        for arm in curve_arms(arms)
    ]
    return whole + parts


class Asked(NamedTuple):
    """What every policy is asked."""

    held_out: list[Prompt]
    harmless: list[Prompt]
    harmful: list[Prompt]
    sampling: Sampling

    @property
    def refusing(self) -> list[Prompt]:
        return self.harmless + self.harmful

    def plain(self) -> list[Any]:
        """All that shapes the answers, for a stamp."""
        prompts = [p.model_dump(mode="json") for p in (*self.held_out, *self.refusing)]
        return [self.sampling.model_dump(mode="json"), prompts]


class Plan(NamedTuple):
    """What all arms have in common."""

    human: list[PreferenceGroup]
    """Pairs that both decided, under people's labels; both splits."""
    ai: list[PreferenceGroup]
    train: list[PreferenceGroup]
    """All train groups of people's data, whatever the judge decided."""
    held_out: list[PreferenceGroup]
    """All held-out groups of people's data, to be scored."""


async def run(
    arms: Sequence[ArmName],
    seeds: int,
    curve: Sequence[float],
    reward: RewardSettings,
    dpo: DPOSettings,
    answers: AnswersConfig,
    policy: ModelConfig,
    base: str | None,
    work: Workspace,
    *,
    keep_weights: bool,
) -> None:
    """Writes arms/<arm>-<seed>/: scores of both models on the held-out pairs, answers of the policy
    and its log-ratios, and the weights where they are kept. Nothing is done again that was made
    from the same labels, settings and start."""
    require_torch()
    need_space(work.directory, NEEDED_MB)
    plan = _plan(work)
    start = start_weights(base, policy.model, "dpo")
    asked = asked_of(answers, plan.human, work.seed)
    units = units_of(arms, seeds, curve)
    async with work.stage("arms") as bill:
        untrained = serve_start(policy, base, start, answers.engine)
        best_of = await _start(untrained, answers, asked, bill, work)
        await work.pool.close_servers()
        seen = [*plan.train, *plan.held_out]
        rows = reference_log_probs(seen, start, dpo, work)
        reference = dict(zip((g.prompt.id for g in seen), rows, strict=True))
        for number, unit in enumerate(units, 1):
            say(f"arms: {unit.name} ({number} of {len(units)})")
            groups = _groups(unit, plan, work.seed)
            _reward_model(unit, groups, best_of, plan, reward, start, work, keep=keep_weights)
            if unit.share == 1:
                await _policy(
                    unit,
                    groups,
                    reference,
                    plan,
                    dpo,
                    answers,
                    asked,
                    policy,
                    start,
                    bill,
                    work,
                    keep=keep_weights,
                )


def _plan(work: Workspace) -> Plan:
    every = read_jsonl(work.human, PreferenceGroup)
    if work.part("labels") is None:
        raise SetupError(
            "the judge has not labelled the present pairs",
            file=work.comparisons,
            fix="run the study from its beginning",
        )
    human, ai = paired(every, read_jsonl(work.comparisons, Comparison))
    for split in ("train", "test"):
        if not any(g.split == split for g in human):
            raise SetupError(
                f"the judge decided none of the {split} pairs, so there is nothing to compare",
                file=work.comparisons,
                fix="ask it otherwise, as with judge.mode=pointwise where it prefers one position, "
                "or take another judge; `rlaif certify` tells",
            )
    train, held_out = ([g for g in every if g.split == split] for split in ("train", "test"))
    return Plan(human, ai, train, held_out)


def _groups(unit: Unit, plan: Plan, seed: int) -> list[PreferenceGroup]:
    human = [g for g in plan.human if g.split == "train"]
    ai = [g for g in plan.ai if g.split == "train"]
    # Parts are drawn by the seed alone, so that both arms of a curve see the same prompts.
    lot = seed + unit.seed
    return part_of(arm_groups(unit.arm, human, ai, lot, flipped), unit.share, lot)


def asked_of(config: AnswersConfig, decided: Sequence[PreferenceGroup], seed: int) -> Asked:
    """`decided`: the groups with pairs that both people and the judge decided, of both splits."""
    held_out = [g.prompt for g in decided if g.split == "test"][: config.limit]
    harmless, harmful = (
        list(load_prompts(name, config.refusal_prompts)) if config.refusal_prompts else []
        for name in (config.harmless, config.harmful)
    )
    sampling = Sampling(max_tokens=config.max_tokens, temperature=1.0, seed=seed)
    return Asked(held_out, harmless, harmful, sampling)


async def _start(
    model: ModelConfig, config: AnswersConfig, asked: Asked, bill: Bill, work: Workspace
) -> list[tuple[Prompt, list[Response]]]:
    """The start policy's answers, of which the reward models pick."""
    n = config.of_start
    found = await answer(
        START, model, asked.held_out, n, asked.sampling, config.max_failed, bill, work
    )
    refusing = await answer(
        START, model, asked.refusing, 1, asked.sampling, config.max_failed, bill, work
    )
    folder = work.directory / "arms" / START
    kinds = {"harmless": asked.harmless, "harmful": asked.harmful}
    of_kind = {kind: [p.id for p in prompts] for kind, prompts in kinds.items()}
    write_text(folder / "refusing_prompts.json", json.dumps(of_kind, indent=0) + "\n")
    write_jsonl(folder / "answers.jsonl", found.responses)
    write_jsonl(folder / "refusing.jsonl", refusing.responses)
    of_prompt: dict[str, list[Response]] = {}
    for r in found.responses:
        of_prompt.setdefault(r.prompt_id, []).append(r)
    return [(p, of_prompt[p.id]) for p in asked.held_out if p.id in of_prompt]


def _reward_model(
    unit: Unit,
    groups: list[PreferenceGroup],
    best_of: Sequence[tuple[Prompt, list[Response]]],
    plan: Plan,
    settings: RewardSettings,
    start: Start,
    work: Workspace,
    *,
    keep: bool,
) -> None:
    folder = work.directory / "arms" / unit.name / "reward_model"
    items = [(g.prompt, g.responses) for g in plan.held_out]
    if unit.share == 1:
        items += [(p, tuple(r.text for r in of)) for p, of in best_of]
    weights = folder / "weights"
    trained_on = _inputs(groups, settings, start, work.seed + unit.seed)
    scored = {"trained": trained_on, "items": digest([[p.id, t] for p, t in items])}
    keep = keep and unit.share == 1
    if work.is_made(folder, scored) and (not keep or work.is_made(weights, trained_on)):
        return
    work.mark_unfinished(folder)
    from rlaif.train.scoring import score_reward
    from rlaif.train.training import train_reward_model

    if not work.is_made(weights, trained_on):
        with settings_of("reward_model"), interruptible(), Steps(unit.name, "steps") as on_step:
            result = train_reward_model(
                start.weights, groups, settings, work.seed + unit.seed, weights, on_step, say
            )
        _keep_trained(folder, unit, groups, result)
        work.mark_made(weights, trained_on)
    with interruptible(), Steps(f"{unit.name} scoring", "groups") as on_step:
        rows = score_reward(str(weights), items, settings.max_length, on_step, settings.dtype)
    held_out, picked = rows[: len(plan.held_out)], rows[len(plan.held_out) :]
    _keep_scores(folder / "scores.json", plan.held_out, held_out)
    if unit.share == 1:
        of_prompt = {p.id: row for (p, _), row in zip(best_of, picked, strict=True)}
        write_text(folder / "best_of.json", json.dumps(of_prompt) + "\n")
    work.mark_made(folder, scored)
    if not keep:
        shutil.rmtree(weights)


async def _policy(
    unit: Unit,
    groups: list[PreferenceGroup],
    reference: Mapping[str, list[float | None]],
    plan: Plan,
    settings: DPOSettings,
    config: AnswersConfig,
    asked: Asked,
    policy: ModelConfig,
    start: Start,
    bill: Bill,
    work: Workspace,
    *,
    keep: bool,
) -> None:
    folder = work.directory / "arms" / unit.name / "dpo"
    weights = folder / "weights"
    trained_on = _inputs(groups, settings, start, work.seed + unit.seed)
    told = {
        "trained": trained_on,
        "held_out": digest([[g.prompt.id, g.responses] for g in plan.held_out]),
        "answers": digest([config.samples, config.engine, asked.plain()]),
    }
    if work.is_made(folder, told) and (not keep or work.is_made(weights, trained_on)):
        return
    work.mark_unfinished(folder)
    from rlaif.train.training import train_dpo

    if not work.is_made(weights, trained_on):
        references = [reference[g.prompt.id] for g in groups]
        with settings_of("dpo"), interruptible(), Steps(f"{unit.name} DPO", "steps") as on_step:
            result = train_dpo(
                start.weights,
                groups,
                settings,
                work.seed + unit.seed,
                weights,
                on_step,
                say,
                references,
            )
        _keep_trained(folder, unit, groups, result)
        work.mark_made(weights, trained_on)
    with interruptible(), Steps(f"{unit.name} scoring", "groups") as on_step:
        of_held_out = [reference[g.prompt.id] for g in plan.held_out]
        rows = implicit_rewards(weights, plan.held_out, settings, of_held_out, on_step)
    _keep_scores(folder / "scores.json", plan.held_out, rows)
    model = serve(str(weights.resolve()), policy, start, config.engine)
    told_tokens = with_tokens(asked.sampling)
    found = await answer(
        unit.name, model, asked.held_out, config.samples, told_tokens, config.max_failed, bill, work
    )
    refusing = await answer(
        unit.name, model, asked.refusing, 1, asked.sampling, config.max_failed, bill, work
    )
    await work.pool.close_servers()
    ratios = log_ratios(found.drawn, str(weights), start.weights, settings.max_length)
    write_jsonl(folder / "answers.jsonl", found.responses)
    write_jsonl(folder / "refusing.jsonl", refusing.responses)
    write_text(folder / "log_ratios.json", json.dumps(ratios) + "\n")
    work.mark_made(folder, told)
    if not keep:
        shutil.rmtree(weights)


def _inputs(
    groups: Sequence[PreferenceGroup], settings: TrainSettings, start: Start, seed: int
) -> Mapping[str, Any]:
    return {
        "groups": digest([g.model_dump(mode="json") for g in groups]),
        "settings": settings.model_dump(mode="json"),
        "start": start.identity,
        "seed": seed,
    }


def _keep_trained(folder: Path, unit: Unit, groups: Sequence[PreferenceGroup], result: Any) -> None:
    trained = Trained(
        arm=unit.arm,
        seed=unit.seed,
        share=unit.share,
        kind=folder.name,
        pairs=sum(len(g.comparisons) for g in groups),
        steps=result.steps,
        seconds=result.seconds,
        losses=result.losses,
        response_tokens=result.response_tokens,
        dropped_responses=result.dropped_responses,
    )
    write_text(folder / "trained.json", trained.model_dump_json(indent=2) + "\n")


def _keep_scores(path: Path, groups: Sequence[PreferenceGroup], rows: ScoreRows) -> None:
    scores = dict(zip((g.prompt.id for g in groups), rows, strict=True))
    write_text(path, json.dumps(scores, indent=0) + "\n")

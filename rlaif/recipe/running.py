"""The stages of a run, in order, or two of them at the same time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import yaml
from pydantic import BaseModel

from rlaif import interrupts
from rlaif.config import differences, dump_config
from rlaif.datasets import load_prompts, open_prompts
from rlaif.errors import JudgeFallsShort, RlaifError, SetupError
from rlaif.files import full_disk, need_space, write_text
from rlaif.judge.design import Group
from rlaif.models.base import ChatModel
from rlaif.models.flow import Channel
from rlaif.models.gate import Gate
from rlaif.models.pool import (
    ModelConfig,
    weights_identity,
)
from rlaif.recipe.checks import NEEDED_MB, check, section_of
from rlaif.recipe.config import TUNING, RunConfig
from rlaif.recipe.reporting import report_of, summary
from rlaif.stages import (
    certify,
    compare,
    judge,
    pairs,
    revise,
    sample,
    train_dpo,
    train_rl,
    train_rm,
    train_sft,
)
from rlaif.types import ChatReply, ChatRequest
from rlaif.workspace import Workspace
from rlaif.yamlfile import YamlFile, validate

CHANNEL = 256
"""Answered prompts that may wait for the judge before sampling waits for it."""

Run = Callable[[RunConfig, Workspace], Awaitable[None]]


async def _revise(config: RunConfig, work: Workspace) -> None:
    section = section_of(config.revise, "revise")
    if section.judged:
        # No label without the gate that the config sets.
        await certify.run(config.judge, work)
    await revise.run(
        section,
        config.policy,
        config.judge,
        load_prompts(config.sample.prompts, config.sample.limit),
        config.sample.sampling(work.seed),
        config.pairs.test_fraction,
        work,
    )


STAGES: Mapping[str, Run] = {
    "revise": _revise,
    "train-sft": lambda c, w: train_sft.run(section_of(c.sft, "sft"), c.policy.model, w),
    "sample": lambda c, w: sample.run(c.sample, c.policy, w),
    "certify": lambda c, w: certify.run(c.judge, w),
    "judge": lambda c, w: judge.run(c.judge, w),
    "pairs": lambda c, w: pairs.run(c.pairs, w, tuned=c.sft is not None),
    "train-rm": lambda c, w: train_rm.run(c.reward_model, c.policy.model, w),
    "train-dpo": lambda c, w: train_dpo.run(c.dpo, c.policy.model, w),
    "train-rl": lambda c, w: train_rl.run(
        section_of(c.rl, "rl"), c.judge, c.dpo.base, c.policy.model, w
    ),
    "compare": lambda c, w: compare.run(
        c.compare,
        c.policy,
        c.judge,
        c.dpo.base,
        c.sample.sampling(w.seed),
        c.sample.max_failed,
        c.dpo.max_length,
        w,
    ),
}
"""What each name in `rlaif.stages.ORDER` runs."""


def execute(
    config: RunConfig,
    out: Path,
    stages: Sequence[str],
    *,
    reconfigure: bool,
    gate: Gate | None = None,
) -> list[str]:
    """Runs the stages in order and writes the report after each. Returns what to tell.

    Where one judge alone labels, and its model can be asked while the policy is, judging starts
    with the first prompt that is answered. `gate`: what may be spent.

    A stage whose inputs have not changed asks no model again: its calls are in the store. Raises
    RlaifError; what was done before stays.
    """
    check(config, stages, out)
    need_space(out, NEEDED_MB)
    with full_disk(out):
        return interrupts.run(_execute(config, out, stages, gate, reconfigure=reconfigure))


async def _execute(
    config: RunConfig,
    out: Path,
    stages: Sequence[str],
    gate: Gate | None,
    *,
    reconfigure: bool,
) -> list[str]:
    work = Workspace(out, config.seed, {"transformers": open_transformers}, gate)
    after_sft = config.after_sft(out)
    steps: list[tuple[str, Run]] = [(stage, STAGES[stage]) for stage in stages]
    if {"sample", "judge"} <= set(stages) and at_once(after_sft):
        judging = "certify" in stages
        steps = [
            (s, partial(_sample_and_judge, certified=judging) if s == "sample" else run)
            for s, run in steps
            if s not in ("certify", "judge")
        ]
    try:
        # Only now that the directory is ours: the config of a run at work must stay its own.
        if not reconfigure:
            config = _with_rl_of(config, out)
        claim(config, out, reconfigure)
        for stage, run in steps:
            if stage in ("train-sft", "train-rm", "train-rl"):
                # Training needs the memory that the servers hold.
                await work.pool.close_servers()
            if stage in config.from_sft() and work.part("sft") is None:
                raise SetupError(
                    "is not what the present revisions make",
                    file=out / "sft",
                    fix="run `rlaif train-sft` first",
                )
            try:
                await run(config if stage in TUNING else after_sft, work)
            except RlaifError:
                # What there is to report is reported; the stage's error is the one to show.
                with contextlib.suppress(SetupError):
                    report_of(config, work)
                raise
            report_of(config, work)
        return summary(config, work, stages)
    finally:
        await work.close()


def at_once(config: RunConfig) -> bool:
    """Whether the judge can be asked while the policy is: one judge alone, and not two servers to
    be held in memory."""
    models = [config.policy, *(asked for _, asked in config.judge.judges())]
    managed = {(m.model, m.server) for m in models if _holds_memory(m.model)}
    return len(models) == 2 and len(managed) <= 1


def _holds_memory(model: str) -> bool:
    return model.startswith(("vllm/", "embedded/", "transformers/"))


async def _sample_and_judge(config: RunConfig, work: Workspace, *, certified: bool) -> None:
    """Judging starts when the first prompt is answered, and certifying with sampling."""
    answered: Channel[Group] = Channel(CHANNEL)

    async def label() -> None:
        try:
            if certified:
                await certify.run(config.judge, work)
        except JudgeFallsShort:
            # What is sampled is kept, and the report is about it.
            async for _ in answered:
                continue
            raise
        await judge.run(config.judge, work, answered, _prompts(config))

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(sample.run(config.sample, config.policy, work, answered))
            group.create_task(label())
    except BaseExceptionGroup as e:
        raise e.exceptions[0] from None


def _prompts(config: RunConfig) -> int:
    return len(open_prompts(config.sample.prompts, config.sample.limit))


def open_transformers(model: ModelConfig, field: str) -> ChatModel:
    """A model of `transformers/…`, for the pool."""
    weights = model.model.removeprefix("transformers/")
    identity = weights_identity(Path(weights)) if Path(weights).is_dir() else weights
    return _Transformers(weights, f"transformers/{identity}")


class _Transformers(ChatModel):
    """A model directory whose weights are read, and torch imported, before the first call that the
    store lacks: a run of which all is stored needs neither."""

    gives_logprobs = True
    max_n = 128

    def __init__(self, weights: str, identity: str) -> None:
        self.identity = identity
        self._weights = weights
        self._model: ChatModel | None = None

    async def check(self) -> None:
        """Raises SetupError if the directory holds no causal language model."""
        from rlaif.train.generate import TransformersModel

        self._model = TransformersModel(self._weights, self.identity)

    async def ask(self, request: ChatRequest) -> ChatReply:
        """As `TransformersModel.ask`."""
        assert self._model is not None, "asked before `check`"
        return await self._model.ask(request)


def _with_rl_of(config: RunConfig, out: Path) -> RunConfig:
    """The config with the section `rl` that `train-rl` has added in the run directory."""
    path = out / "config.yaml"
    there = YamlFile(path).value.get("rl") if config.rl is None and path.is_file() else None
    if there is None:
        return config
    return config.model_copy(update={"rl": validate(train_rl.RLConfig, there, None, str(path))})


def claim(config: BaseModel, out: Path, reconfigure: bool) -> None:
    """Writes the config into the run directory; refuses the directory of another config."""
    path = out / "config.yaml"
    # A config that a mistake kept from making anything binds nobody.
    made = ("responses.jsonl", "certificate.json", "revisions", "lee.json")
    if path.is_file() and not reconfigure and any((out / name).exists() for name in made):
        before = YamlFile(path).value
        now = yaml.safe_load(dump_config(config))
        if before.get("rl") is None:
            # Nothing there was made with it, or will be made anew for it.
            now.pop("rl", None)
        changed = list(differences(before, now))
        if changed:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise SetupError(
                f"holds a run of another config: {changed[0]}{more}",
                file=out,
                fix="choose another --out, or add --reconfigure to redo what changed there; "
                "stored calls are kept",
            )
    write_text(path, dump_config(config))

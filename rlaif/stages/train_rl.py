"""Stage 6b: a policy by RL against the run's reward model, from the start and reference of DPO."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from rlaif.constitution import load_constitution
from rlaif.errors import SetupError, TooManyFailures
from rlaif.evaluate.heldout import win_rate
from rlaif.evaluate.rl import Finding, JudgeCheck, RLSection, alarms, judged
from rlaif.files import digest, read_jsonl, write_jsonl, write_text
from rlaif.interrupts import interruptible
from rlaif.judge.aggregate import Pair
from rlaif.judge.config import JudgeConfig
from rlaif.judge.panel import Panel
from rlaif.models.client import Bill
from rlaif.models.pool import weights_identity
from rlaif.progress import progress, say
from rlaif.stages._training import Steps, make_once, settings_of, start_weights
from rlaif.train.rl_settings import Measure, RLSettings, require_trl
from rlaif.types import Prompt, Record, Response
from rlaif.workspace import STAMP, Workspace

ANSWERS = "answers.jsonl"


class RLConfig(RLSettings):
    """How the policy is trained by RL. It starts where DPO does (dpo.base)."""

    held_out: str | None = None
    """Folder of a second reward model, which scores every answer and teaches nothing: of another
    judge, of people's labels, or of other prompts; none: the reward goes unchecked."""
    judge: str | None = None
    """Model of a judge that did not label: in the end it compares the trained policy's answers with
    the start's, under the run's constitution and otherwise as the run's judge is asked; none: no
    judge checks the reward."""
    judged: int = Field(default=64, ge=2)
    """Answers that it compares, to the train prompts that the start policy is measured on."""
    length_factor: float = Field(default=2.0, gt=1.0)
    """Answers that become so many times longer, or shorter, are told."""


class Answered(Record):
    """A line of rl/answers.jsonl."""

    prompt: Prompt
    start: str
    """An answer of the start policy."""
    trained: str
    """An answer of the trained policy."""


def judged_pairs(answers: Sequence[Answered], most: int) -> list[Pair]:
    """What the judge is asked about: the first answer to each prompt before the second to any, the
    trained policy's before the start's."""
    nth: Counter[str] = Counter()
    numbered = []
    for of in answers:
        numbered.append((nth[of.prompt.id], of))
        nth[of.prompt.id] += 1
    numbered.sort(key=lambda pair: pair[0])
    return [
        Pair(
            of.prompt,
            *(
                Response(
                    id=f"{name}:{of.prompt.id}/{n}",
                    prompt_id=of.prompt.id,
                    text=text,
                    finish_reason="stop",
                    model="",
                    call="",
                )
                for name, text in (("rl", of.trained), ("start", of.start))
            ),
        )
        for n, of in numbered[:most]
    ]


def check(config: RLConfig) -> None:
    """Finds what is wrong before anything is asked or loaded. Raises SetupError."""
    require_trl()
    if config.held_out is not None and not (Path(config.held_out) / "config.json").is_file():
        raise SetupError(
            f"{config.held_out} holds no reward model (no config.json)",
            field="rl.held_out",
            fix="give a folder that train-rm wrote",
        )


async def run(
    config: RLConfig, judge: JudgeConfig, base: str | None, policy: str, work: Workspace
) -> None:
    """Writes rl/: a plain AutoModelForCausalLM, and in it trace.json, trace.csv and answers.jsonl.

    `base`: DPO's. Prompts are those of the train split. Raises SetupError where the run has no
    reward model of its present groups.
    """
    check(config)
    if not (work.reward_model / STAMP).is_file():
        raise SetupError("is not there", file=work.reward_model, fix="run `rlaif train-rm` first")
    if work.part("reward_model") is None:
        raise SetupError(
            "is not of the present groups", file=work.reward_model, fix="run `rlaif train-rm` first"
        )
    prompts = _train_prompts(work)
    start = start_weights(base, policy, "dpo")
    out = work.directory / "rl"
    data = {
        "reward model": weights_identity(work.reward_model),
        "prompts": digest([prompt.model_dump(mode="json") for prompt in prompts]),
    }
    if config.held_out is not None:
        data["held-out check"] = weights_identity(Path(config.held_out))

    def make() -> RLSection:
        section = _fit(config, start.weights, start.identity, prompts, out, work)
        write_text(out / "trace.json", section.model_dump_json(indent=2) + "\n")
        write_text(out / "trace.csv", _csv([section.start, *section.trace, section.end]))
        return section

    # Another judge afterwards trains nothing anew.
    settings = RLConfig.model_validate(config.model_dump(exclude={"judge", "judged"}))
    async with work.stage("train-rl") as bill:
        make_once("rl", out, data, settings, start, work, make)
        found = None
        if config.judge is not None:
            found = await _judge(config.judge, config.judged, judge, out, bill, work)
        trained = RLSection.model_validate(work.part("rl"))
        section = judged(trained, found)
        if section != trained:
            write_text(out / "trace.json", section.model_dump_json(indent=2) + "\n")
            work.save_part("rl", section)
    for finding in section.findings:
        if finding.kind == "judge":
            say(f"alarm (judge): {finding.text}")
    if found is not None and found.unscored > judge.max_unscored * found.comparisons:
        raise TooManyFailures(
            f"{found.unscored} of {found.comparisons} comparisons by rl.judge ended unscored, "
            f"judge.max_unscored allows {judge.max_unscored:.0%}; the policy is kept"
        )


async def _judge(
    model: str, most: int, labeler: JudgeConfig, out: Path, bill: Bill, work: Workspace
) -> JudgeCheck:
    constitution, _ = load_constitution(labeler.constitution)
    pairs = judged_pairs(read_jsonl(out / ANSWERS, Answered), most)
    panel = Panel(
        labeler.of(model).in_both_orders(),
        constitution,
        work.seed,
        lambda asked, _: work.pool.open(asked, "rl.judge", bill),
    )
    found = await panel.judge_pairs(pairs, progress)
    write_jsonl(out / "judgments.jsonl", found.judgments)
    write_jsonl(out / "comparisons.jsonl", found.comparisons)
    return JudgeCheck(
        judge=model,
        labelled=model in {asked.model for _, asked in labeler.judges()},
        win_rate=win_rate(found.comparisons, work.seed),
        comparisons=len(pairs),
        unscored=sum(c.outcome == "unscored" for c in found.comparisons),
    )


def _train_prompts(work: Workspace) -> list[Prompt]:
    prompts = read_jsonl(work.prompts, Prompt)
    if not work.splits.is_file():
        raise SetupError("is not there", file=work.splits, fix="run `rlaif pairs` first")
    split_of = json.loads(work.splits.read_text(encoding="utf-8"))
    return [prompt for prompt in prompts if split_of.get(prompt.id) == "train"]


def _fit(
    config: RLConfig,
    weights: str,
    identity: str,
    prompts: Sequence[Prompt],
    out: Path,
    work: Workspace,
) -> RLSection:
    # torch is imported when there is something to train, not when a config is read.
    from rlaif.train.rl import train_rl

    trace: list[Measure] = []
    findings: dict[str, Finding] = {}

    def on_trace(start: Measure, step: Measure) -> None:
        trace.append(step)
        for finding in alarms(start, trace, config.length_factor):
            if finding.kind not in findings:
                findings[finding.kind] = finding
                say(f"alarm ({finding.kind}) at step {finding.step}: {finding.text}")

    with settings_of("rl"), interruptible(), Steps("rl training", "steps") as on_step:
        result = train_rl(
            weights,
            str(work.reward_model),
            config.held_out,
            prompts,
            config,
            work.seed,
            out,
            on_step,
            on_trace,
            say,
        )
    write_jsonl(
        out / ANSWERS,
        [Answered(prompt=p, start=before, trained=after) for p, before, after in result.answers],
    )
    return RLSection(
        algorithm=config.algorithm,
        base=identity,
        held_out=config.held_out,
        beta=config.beta,
        kl_budget=config.kl_budget,
        stopped="kl_budget" if result.budget_spent else "steps",
        steps=result.steps,
        seconds=result.seconds,
        prompts=result.prompts,
        dropped_prompts=result.dropped_prompts,
        reward_mean=result.scale.mean,
        reward_sd=result.scale.std,
        start=result.start,
        end=result.end,
        trace=tuple(result.trace),
        findings=tuple(findings.values()),
    )


def _csv(rows: Sequence[Measure]) -> str:
    """A line for the start, for each step's answers, and for the end."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Measure.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    return text.getvalue()

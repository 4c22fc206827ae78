"""RL against a reward model: its part of the report, and the signs that the reward is being hacked.

An alarm looks at the last few steps together, because the answers of one step are few. It asks for
a change of several standard errors: it is put to every step of a training, and a threshold for one
question would be passed by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.wording import counted, number, percent, share
from rlaif.train.rl_settings import Amount, Finite, Measure
from rlaif.types import Record

WINDOW = 5
"""Steps looked at together."""
ERRORS = 4.0
"""Standard errors of a change that counts: the peak is the best of many windows, so that by chance
alone it is some two of them too high."""
MORE_REPEATED = 0.2
"""Rise of the repeated share of an answer that an alarm tells."""
LESS_DISTINCT = 0.5
"""Part of its start under which the distinct share of a prompt's answers is told."""

Kind = Literal["hacking", "length", "repetition", "judge"]


class Finding(Record):
    """A sign of reward hacking."""

    kind: Kind
    """hacking: the proxy rose while the held-out check fell. length: answers have become that much
    longer or shorter. repetition: answers repeat themselves or each other. judge: the proxy rose,
    and a judge prefers the start's answers."""
    step: int = Field(gt=0)
    """The last of the steps that show it first."""
    text: str
    figures: Mapping[str, Finite]


class JudgeCheck(Record):
    """What a judge makes of the trained policy's answers beside the start's, in both orders."""

    judge: str
    labelled: bool
    """Whether it is also one of those that labelled: then it checks itself."""
    win_rate: Interval | None
    """Share of its comparisons that the trained policy wins, ties half, clustered by prompt; None
    where none could be read."""
    comparisons: int = Field(gt=0)
    unscored: int = Field(ge=0)


class RLSection(Record):
    """RL against the run's reward model."""

    algorithm: Literal["rloo", "grpo"]
    base: str
    """Identity of the start, which is also the reference."""
    held_out: str | None
    """The reward model of the held-out check."""
    beta: Amount
    kl_budget: Amount
    stopped: Literal["steps", "kl_budget"]
    """What ended the training."""
    steps: int = Field(ge=0)
    """Optimiser steps done."""
    seconds: Amount
    prompts: int = Field(gt=0)
    """Prompts trained on."""
    dropped_prompts: int = Field(ge=0)
    """Prompts left out because they and an answer exceed the model's context."""
    reward_mean: tuple[Finite, ...]
    """Of the start policy's answers, as each member of the reward model gives it."""
    reward_sd: tuple[Amount, ...]
    start: Measure
    """The start policy's answers."""
    end: Measure
    """The trained policy's answers to the same prompts."""
    trace: tuple[Measure, ...]
    """The answers of each step, before it."""
    findings: tuple[Finding, ...]
    judged: JudgeCheck | None = None


def judged(section: RLSection, check: JudgeCheck | None) -> RLSection:
    """The section with what a judge says in the end, and its alarm: the proxy has risen by more
    than `ERRORS` standard errors, and the whole interval of the win rate is below one half."""
    findings = [f for f in section.findings if f.kind != "judge"]
    start, end = section.start, section.end
    rose = _Level(end.proxy, end.proxy_se).above(_Level(start.proxy, start.proxy_se))
    rate = check.win_rate if check is not None else None
    if (
        check is not None
        and rose
        and rate is not None
        and rate.high is not None
        and rate.high < 0.5
    ):
        findings.append(
            Finding(
                kind="judge",
                step=max(section.steps, 1),
                text=(
                    f"the reward rose from {number(start.proxy)} to {number(end.proxy)}, and the "
                    f"judge {check.judge} prefers the start's answers: the trained policy wins "
                    f"{share(rate, 0.5)}"
                ),
                figures={
                    "win_rate": rate.value,
                    "proxy_start": start.proxy,
                    "proxy": end.proxy,
                },
            )
        )
    return section.model_copy(update={"judged": check, "findings": tuple(findings)})


class _Level(NamedTuple):
    """A mean over a window of steps."""

    value: float
    error: float

    def above(self, other: _Level) -> bool:
        return self.value - other.value > ERRORS * math.hypot(self.error, other.error)


def alarms(start: Measure, trace: Sequence[Measure], length_factor: float) -> list[Finding]:
    """What the last `WINDOW` steps of the trace show; nothing while there are fewer.

    hacking: since the held-out check was at its best, in an earlier window or at the start, it has
    fallen and the proxy has risen, each by more than `ERRORS` standard errors of the difference
    (the overoptimisation of Gao et al. 2023, seen from a second reward). length: mean tokens an
    answer over, or under, the start's by more than `length_factor`. repetition: see the constants.
    """
    if len(trace) < WINDOW:
        return []
    now = trace[-WINDOW:]
    return [*_hacking(start, trace), *_length(start, now, length_factor), *_repetition(start, now)]


def _hacking(start: Measure, trace: Sequence[Measure]) -> Iterator[Finding]:
    if start.held_out is None:
        return
    now = trace[-WINDOW:]
    # None of them shares a step with the present one.
    ends = range(WINDOW, len(trace) - WINDOW + 1)
    best = max([[start], *(trace[end - WINDOW : end] for end in ends)], key=_held_out)
    peak, held_out = _held_out(best), _held_out(now)
    proxy_then, proxy = _proxy(best), _proxy(now)
    if not (peak.above(held_out) and proxy.above(proxy_then)):
        return
    when = f"step {best[-1].step}" if best[-1].step else "the start"
    yield Finding(
        kind="hacking",
        step=now[-1].step,
        text=(
            f"since {when} the held-out check fell from {number(peak.value)} to "
            f"{number(held_out.value)} while the proxy reward rose from "
            f"{number(proxy_then.value)} to {number(proxy.value)}"
        ),
        figures={
            "held_out_best": peak.value,
            "held_out_best_step": float(best[-1].step),
            "held_out": held_out.value,
            "proxy_then": proxy_then.value,
            "proxy": proxy.value,
        },
    )


def _length(start: Measure, now: Sequence[Measure], factor: float) -> Iterator[Finding]:
    length = _mean([step.length for step in now])
    ratio = length / start.length
    if 1 / factor <= ratio <= factor:
        return
    yield Finding(
        kind="length",
        step=now[-1].step,
        text=(
            f"answers are {number(length)} tokens long, {number(ratio)} times the start's "
            f"{number(start.length)}"
        ),
        figures={"length": length, "start": start.length, "ratio": ratio},
    )


def _repetition(start: Measure, now: Sequence[Measure]) -> Iterator[Finding]:
    repeated = _mean([step.repetition for step in now])
    distinct = _mean([step.distinct for step in now])
    itself = repeated - start.repetition > MORE_REPEATED
    each_other = distinct < LESS_DISTINCT * start.distinct
    if not (itself or each_other):
        return
    said = [
        f"answers repeat themselves in {percent(repeated)} of their runs of four tokens "
        f"(start: {percent(start.repetition)})"
    ] * itself + [
        f"{percent(distinct)} of the token pairs in a prompt's answers are distinct "
        f"(start: {percent(start.distinct)})"
    ] * each_other
    yield Finding(
        kind="repetition",
        step=now[-1].step,
        text=" and ".join(said),
        figures={
            "repetition": repeated,
            "start_repetition": start.repetition,
            "distinct": distinct,
            "start_distinct": start.distinct,
        },
    )


def _held_out(steps: Sequence[Measure]) -> _Level:
    values = [s.held_out for s in steps if s.held_out is not None]
    errors = [s.held_out_se for s in steps if s.held_out_se is not None]
    return _level(values, errors)


def _proxy(steps: Sequence[Measure]) -> _Level:
    return _level([s.proxy for s in steps], [s.proxy_se for s in steps])


def _level(values: Sequence[float], errors: Sequence[float]) -> _Level:
    return _Level(_mean(values), math.hypot(*errors) / len(errors))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def sentences(section: RLSection) -> list[str]:
    """RL in plain sentences."""
    start, end = section.start, section.end
    why = (
        f"stopped at the KL budget of {number(section.kl_budget)} nats"
        if section.stopped == "kl_budget"
        else "all that were asked for"
    )
    checked = (
        "; nothing was held out to check it by"
        if end.held_out is None or start.held_out is None
        else f", and the held-out check from {number(start.held_out)} to {number(end.held_out)}"
    )
    return [
        f"RL ({section.algorithm.upper()}) against the reward model took "
        f"{counted(section.steps, 'step')} ({why}) and is {number(end.kl)} nats a response away "
        f"from the start policy (β = {section.beta:g}).",
        f"Its reward went from {number(start.proxy)} to {number(end.proxy)} standard deviations of "
        f"the start policy's{checked}; answers went from {number(start.length)} to "
        f"{number(end.length)} tokens.",
        *_judge_sentence(section.judged),
    ]


def _judge_sentence(check: JudgeCheck | None) -> list[str]:
    if check is None:
        return []
    lost = f" ({check.unscored} of {check.comparisons} stayed unscored)" if check.unscored else ""
    if check.win_rate is None:
        return [f"The judge {check.judge} gave no verdict on its answers{lost}."]
    return [
        f"By the judge {check.judge} its answers win {share(check.win_rate, 0.5)} of the "
        f"comparisons with the start policy's{lost}."
    ]


def warnings(section: RLSection) -> list[str]:
    """The alarms, as a reader of the report must know them."""
    said = [f"RL, step {f.step}: {f.text}." for f in section.findings]
    check = section.judged
    if check is not None and check.labelled:
        said.append(
            f"The judge {check.judge} that RL is checked by (rl.judge) has labelled the data: what "
            "it likes was trained for."
        )
    if section.held_out is None and (check is None or check.labelled or check.win_rate is None):
        said.append(
            "RL had no held-out check (rl.held_out, rl.judge): a rising reward alone does not tell "
            "learning from reward hacking."
        )
    return said

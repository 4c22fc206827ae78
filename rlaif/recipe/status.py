"""Where a run stands, by its files alone: nothing is asked, started or written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rlaif.callstore import tools
from rlaif.models.prices import Prices
from rlaif.recipe.config import RunConfig, kind_in, load_run, path_of
from rlaif.workspace import RunFolder, is_at_work

MADE = {
    "revise": "revisions",
    "train-sft": "sft",
    "sample": "sample",
    "certify": "certificate",
    "judge": "labels",
    "pairs": "pairs",
    "train-rm": "reward_model",
    "train-dpo": "dpo",
    "train-rl": "rl",
    "compare": "comparison",
}
"""Stage -> the part of the report that it saves when it is done."""
LOOK_AT = (
    "report.html",
    "certificate.html",
    "revisions/chains.html",
    "attribution.html",
    "lee.html",
    "logs",
)


def status(out: Path, prices: Prices) -> list[str]:
    """What is done, at work and out of date, what the stored calls cost by `prices`, what failed,
    and where to look. Raises SetupError where `out` holds no run."""
    # What has been made of a study's arms, say, its files do not tell stage by stage.
    is_run = kind_in(path_of(None, out)) is None
    of_run = _stages_of(load_run(None, [], out)[0]) if is_run else ()
    folder = RunFolder(out)
    states = dict(_states(of_run, folder, at_work=is_at_work(out)))
    wide = max(map(len, states), default=0)
    return [
        *(f"{stage:{wide}}  {state}" for stage, state in states.items()),
        *_calls(out, prices),
        *_failures(folder, states),
        f"look at: {', '.join(str(out / name) for name in LOOK_AT if (out / name).exists())}"
        if any((out / name).exists() for name in LOOK_AT)
        else "nothing to look at yet",
    ]


def _stages_of(config: RunConfig) -> tuple[str, ...]:
    return tuple(s for s in config.stages() if s != "certify" or config.judge.gate is not None)


def _states(
    of_run: Sequence[str], folder: RunFolder, *, at_work: bool
) -> Iterator[tuple[str, str]]:
    begun = folder.begun()
    # Others too may be at work in the folder: a sweep, best-of-n against a gold.
    for stage in (*of_run, *(s for s in begun if s not in of_run)):
        if stage in begun:
            yield stage, "at work" if at_work else "stopped; the same command goes on"
        elif folder.part(MADE[stage]) is not None:
            yield stage, "done"
        elif folder.was_made(MADE[stage]):
            yield stage, "out of date: what it was made from has changed"
        else:
            yield stage, "not done"


def _calls(out: Path, prices: Prices) -> list[str]:
    if not (out / tools.NAME).is_file():
        return ["no call is stored"]
    found = tools.stats(out / tools.NAME, prices.stored)
    calls = sum(usage.calls for usage in found.values())
    unknown = [model for model, usage in found.items() if usage.usd is None]
    usd = sum(usage.usd or 0.0 for usage in found.values())
    least = f"at least (no price is known for {', '.join(unknown)}) " if unknown else ""
    last = max((usage.last for usage in found.values()), default="")[:16]
    return [f"{calls:,} calls are stored, {least}{usd:.2f} USD by the prices of now; last: {last}"]


def _failures(folder: RunFolder, stages: Iterable[str]) -> list[str]:
    told = []
    for stage in stages:
        failed: dict[str, int] = folder.part(f"failed_calls_{stage}") or {}
        if failed:
            said, times = max(failed.items(), key=lambda one: one[1])
            told.append(
                f"{stage}, last time: {sum(failed.values())} calls failed; most often ({times}): "
                f"{said[:200]}"
            )
    return told

"""Where a run stands, by its files alone: nothing is asked, started or written."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path

from rlaif.arms import curve_arms, folder_of
from rlaif.callstore import tools
from rlaif.models.prices import Prices
from rlaif.recipe.config import RunConfig, load_run
from rlaif.recipe.kinds import kind_of, load_as
from rlaif.recipe.lee_tables import LeeConfig
from rlaif.recipe.study import STAGES, StudyConfig
from rlaif.workspace import STAMP, RunFolder, is_at_work

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
NOT_DONE = "not done"
LOOK_AT = (
    "report.html",
    "certificate.html",
    "revisions/chains.html",
    "attribution.html",
    "lee.html",
    "study.html",
    "logs",
)


def status(out: Path, prices: Prices) -> list[str]:
    """What is done, at work and out of date, what the stored calls cost by `prices`, what failed,
    and where to look. Raises SetupError where `out` holds no run."""
    folder = RunFolder(out)
    states = _made(out, folder)
    begun = folder.begun()
    # Others too may be at work in the folder: a sweep, best-of-n against a gold.
    states |= dict.fromkeys(begun, _begun(len(begun), at_work=is_at_work(out)))
    wide = max(map(len, states), default=0)
    return [
        *(f"{stage:{wide}}  {state}" for stage, state in states.items()),
        *_calls(out, prices),
        *_failures(folder, states),
        f"look at: {', '.join(str(out / name) for name in LOOK_AT if (out / name).exists())}"
        if any((out / name).exists() for name in LOOK_AT)
        else "nothing to look at yet",
    ]


def _begun(stages: int, *, at_work: bool) -> str:
    """Of stages that have not ended: killed, or ended in an error, or still at work."""
    if not at_work:
        return "did not come to its end"
    return "at work" if stages == 1 else "at work, or did not come to its end"


def _made(out: Path, folder: RunFolder) -> dict[str, str]:
    """What each stage has left, in their order."""
    kind = kind_of(None, out)
    if kind is None:
        config, _ = load_run(None, [], out)
        return {stage: _part(folder, MADE[stage]) for stage in _asked(config.stages(), config)}
    if kind.config is LeeConfig:
        return {"lee-tables": _file(out / "lee.json")}
    study, _ = load_as(kind, None, [], out)
    assert isinstance(study, StudyConfig)
    made = {
        "human": _part(folder, "human"),
        "certify": _part(folder, MADE["certify"]),
        "judge": _part(folder, MADE["judge"]),
        "arms": _arms(study, out),
        "head-to-head": _part(folder, "evaluation"),
    }
    stages = {stage: made[stage] for stage in _asked(STAGES, study)}
    return {**stages, "report": _file(out / "study.html")}


def _asked(stages: Iterable[str], config: RunConfig | StudyConfig) -> list[str]:
    return [s for s in stages if s != "certify" or config.judge.gate is not None]


def _part(folder: RunFolder, name: str) -> str:
    part = folder.part(name)
    if part is None:
        changed = "out of date: what it was made from has changed"
        return changed if folder.was_made(name) else NOT_DONE
    short = part["shortfalls"] if name == MADE["certify"] else ()
    return f"the judge falls short of its gate: {'; '.join(short)}" if short else "done"


def _file(path: Path) -> str:
    return "done" if path.is_file() else NOT_DONE


def _arms(config: StudyConfig, out: Path) -> str:
    """A study's trainings, by the stamps that each leaves last."""
    of_curve = [arm for arm in config.arms if arm in curve_arms(config.arms)]
    kinds = [*product(config.arms, (1.0,), ("reward_model", "dpo"))]
    kinds += [*product(of_curve, config.learning_curve, ("reward_model",))]
    wanted = [
        out / "arms" / folder_of(arm, seed, share) / model / STAMP
        for (arm, share, model), seed in product(kinds, range(config.seeds))
    ]
    made = sum(path.is_file() for path in wanted)
    if made == len(wanted):
        return "done"
    return f"{made} of {len(wanted)} trainings" if made else NOT_DONE


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

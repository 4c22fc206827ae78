"""How near `rlaif plan` comes to what the stages then take, wall time included.

    python benchmarks/plan.py [RECIPE] [FIELD=VALUE]... [--pilot 6] [--stages sample,judge]
                              [--prices FILE]

Plans after a pilot, runs the stages in a fresh directory, and prints planned / taken for calls,
tokens, money and seconds: 1 is right. Without a recipe: the smoke recipe with scripted models that
take 20 ms a call, with 8 and with 64 calls in flight. Seconds taken are the stages' own; those of a
served model hold the start of its server where the stage starts it, which the plan leaves out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from rlaif.callstore import CallStore
from rlaif.models.gate import Gate
from rlaif.models.prices import Prices
from rlaif.plan.estimate import estimate
from rlaif.plan.figures import Figure, total
from rlaif.plan.pilot import run_pilot
from rlaif.recipe import execute, load_run

SLOW = ("policy.model=fake/policy?delay=0.02", "judge.model=fake/shorter?delay=0.02")


def measure(
    recipe: str, overrides: list[str], pilot: int, stages: list[str], prices: Prices
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config, out = load_run(recipe, overrides, Path(folder) / "run")
        run_pilot(config, out, pilot, Gate.of(None, None, None, None))
        plan = estimate(config, out, prices, [])
        with CallStore(out / "calls.sqlite") as store:
            before = len(store)
        began = time.monotonic()
        execute(config, out, stages, reconfigure=False)
        wall_s = time.monotonic() - began
        with CallStore(out / "calls.sqlite") as store:
            asked = len(store) - before
        cost = json.loads((out / "parts" / "cost.json").read_text(encoding="utf-8"))["value"]
    print(f"{recipe} {' '.join(overrides)}: pilot of {pilot}, then {asked} calls")
    for planned in plan.stages:
        if planned.stage not in stages:
            continue
        taken = cost[planned.stage]
        _row(planned.stage, "calls", planned.calls, taken["calls_made"])
        _row(planned.stage, "seconds", planned.seconds, taken["seconds"])
    asking = [e.seconds for e in plan.stages if e.stage in stages and e.seconds is not None]
    if config.policy.model == config.judge.model:
        _row("all", "seconds", total(asking), wall_s)
    else:
        _row("all", "seconds", max(asking, key=lambda s: s.point), wall_s)


def _row(stage: str, what: str, planned: Figure | None, taken: float) -> None:
    if planned is None or not taken:
        print(f"  {stage:8} {what:8} planned {planned}, taken {taken}")
        return
    held = "holds" if planned.low <= taken <= planned.high else "does not hold"
    print(
        f"  {stage:8} {what:8} planned / taken = {planned.point / taken:5.2f}  "
        f"({planned.point:.4g} / {taken:.4g}; the interval {held})"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--pilot", type=int, default=6)
    parser.add_argument("--stages", default="sample,judge")
    parser.add_argument("--prices", type=Path)
    given = parser.parse_args()
    stages, prices = given.stages.split(","), Prices.load(given.prices)
    if given.recipe is not None:
        measure(given.recipe, given.overrides, given.pilot, stages, prices)
        return
    for concurrency in (8, 64):
        changes = [f"policy.concurrency={concurrency}", f"judge.concurrency={concurrency}"]
        measure("smoke", [*SLOW, *changes], given.pilot, stages, prices)


if __name__ == "__main__":
    main()

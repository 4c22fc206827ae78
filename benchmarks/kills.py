"""SIGKILL at random moments of one run: is anything lost, is anything paid for twice?

    python benchmarks/kills.py [--kills 50] [--seed 0] [--delay 0.1] [RECIPE] [FIELD=VALUE …]

One run goes through undisturbed. Another one, with the same command, is killed again and again:
while it starts, while it asks the policy and the judge, and in every stage after that. Then it is
left to end, and has to end with the same bytes. Models are asked through `counting_server.py`,
which no kill touches, so every call is counted from outside; what is trained is the recipe's (for
`smoke` a tiny random model).

What is counted, for a process that was killed:
stored          the calls in the store right after the kill, read from a copy of it;
asked           the calls that this process had sent, as the server tells them;
in flight       asked and not stored. Some of them the server had answered in full, in the moments
                before the process could commit them. The next process asks these again, and nothing
                else: for each model they are at most its `concurrency`;
asked again     calls that a process sent though they were in the store when it started, or that it
                sent twice. Zero.

A call is told by all that is sent of it. Before a judge's first call the client asks it for one
token, to see whether it gives log-probabilities; this check is never stored, and is counted by
itself.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from killing import Call, Command, Ended, Server, kill_and_restart, plan, served, undisturbed
from run_files import Stored, differences, stored, told

SHARES = {
    "start": 4,
    "policy": 6,
    "judge": 16,
    "pairs": 4,
    "train-rm": 7,
    "train-dpo": 7,
    "compare": 6,
}
"""Where kills fall, in this order (those of `start` in between): a model's name stands for the
calls to it, a stage's for the time from its line on standard error to the next stage's."""


class Counted(NamedTuple):
    """The calls of one process. Model -> calls, where it is a Counter."""

    asked: Counter[str]
    in_flight: Counter[str]
    answered: Counter[str]
    """Of those in flight the ones that the server had answered in full before the kill."""
    asked_again: int
    checks: int


def count(ended: Ended, calls: Sequence[Call], kept: Stored) -> Counted:
    """`kept`: the store of the finished run."""
    ever, before, after = told(kept), told(ended.before), told(ended.after)
    mine = [c for c in calls if c.run == ended.run]
    asked = [c for c in mine if ever[c.model, c.call]]
    times = Counter((c.model, c.call) for c in asked)
    came = after - before
    in_flight = []
    for call in asked:
        if came[call.model, call.call]:
            came[call.model, call.call] -= 1
        else:
            in_flight.append(call)
    return Counted(
        asked=Counter(c.model for c in asked),
        in_flight=Counter(c.model for c in in_flight),
        answered=Counter(c.model for c in in_flight if c.sent is not None and c.sent < ended.at),
        asked_again=(times - (ever - before)).total(),
        checks=len(mine) - len(asked),
    )


def problems(
    ends: Sequence[Ended], calls: Sequence[Call], concurrency: int, run: Path, reference: Path
) -> list[str]:
    """Everything that is not as it should be, in sentences."""
    wrong = differences(run, reference)
    kept = ends[-1].after
    stored_calls = told(kept)
    for call in calls:
        if not stored_calls[call.model, call.call] and call.max_tokens != 1:
            wrong.append(f"{call.run} asked {call.model} for what no undisturbed run asks for")
    for ended in ends:
        counted = count(ended, calls, kept)
        wrong += [f"{ended.run}, killed in {ended.stage}: {what}" for what in ended.torn]
        if lost := ended.before.items() - ended.after.items():
            wrong.append(f"{ended.run} lost {len(lost)} stored calls")
        if counted.asked_again:
            wrong.append(f"{ended.run} asked {counted.asked_again} stored calls again")
        for model, n in counted.in_flight.items():
            if n > (concurrency if ended.killed else 0):
                wrong.append(f"{ended.run} left {n} calls to {model} that are not in the store")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.1, help="seconds a call, on average")
    parser.add_argument("--concurrency", type=int, default=4, help="of each model")
    parser.add_argument("recipe", nargs="?", default="smoke")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "server.jsonl", args.delay)
        try:
            asked = served(server, args.concurrency)
            command = Command(("run", args.recipe, *asked, *args.overrides))
            reference = undisturbed(command, Path(folder) / "undisturbed")
            spans = ", ".join(f"{name} {span:.1f}" for name, span in reference.spans.items())
            print(f"undisturbed: {sum(reference.spans.values()):.1f} s ({spans})\n", flush=True)
            print("| process | ended in | asked | in flight | of these answered | stored |")
            print("|---|---|---|---|---|---|", flush=True)
            ends: list[Ended] = []
            out = Path(folder) / "killed"
            places = plan(args.kills, rng, SHARES)
            for ended in kill_and_restart(command, out, reference, places, rng, server):
                ends.append(ended)
                # Until the end, what an undisturbed run keeps tells calls from checks.
                counted = count(ended, server.seen(), stored(reference.out))
                cells = [ended.run, ended.stage + ("" if ended.killed else " (by itself)")]
                cells += [_told(c) for c in (counted.asked, counted.in_flight, counted.answered)]
                print(f"| {' | '.join(cells)} | {len(ended.after)} |", flush=True)
            calls = server.calls_of(out)
            wrong = problems(ends, calls, args.concurrency, out, reference.out)
            print("\n" + "\n".join([*summary(ends, calls), *wrong, f"problems: {len(wrong)}"]))
            return 1 if wrong else 0
        finally:
            server.close()


def summary(ends: Sequence[Ended], calls: Sequence[Call]) -> list[str]:
    """The figures to quote."""
    kept = ends[-1].after
    counts = [count(ended, calls, kept) for ended in ends]
    landed = Counter(ended.stage for ended in ends if ended.killed)
    in_flight: Counter[str] = sum((c.in_flight for c in counts), Counter())
    answered: Counter[str] = sum((c.answered for c in counts), Counter())
    most = max((n for c in counts for n in c.in_flight.values()), default=0)
    asked = sum(c.asked.total() for c in counts)
    return [
        f"kills: {landed.total()} ({_told(landed)})",
        f"calls asked: {asked}, of these stored: {asked - in_flight.total()}",
        f"in flight at a kill: {in_flight.total()} ({_told(in_flight)}), at most {most} to a model "
        f"at once; {answered.total()} of them had been answered in full",
        f"stored calls that were asked again: {sum(c.asked_again for c in counts)}",
        f"checks for log-probabilities, one token each: {sum(c.checks for c in counts)}",
    ]


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items() if n) or "0"


if __name__ == "__main__":
    sys.exit(main())

"""A finished run made again from its stored calls alone: is every answer that was paid for used?

    python benchmarks/rebuild.py RUN [--into DIR]

Copies the store of RUN and its config into an empty folder and runs the stages up to `pairs` there,
with every model out of reach: servers at an address where nothing listens, keys that are none,
managed servers that get no time to start. (A `fake/` model is always there; that it was not needed
is seen in the bill.) So a call that the store lacks ends this with an error. Then the datasets are
compared byte by byte, and the stored calls that no file of RUN names are counted. The comparison of
the policies keeps its verdicts without their calls: those are told by its bill.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from run_files import STORE, files, stored, told

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "http://127.0.0.1:9"  # the discard port
DATASETS = (
    "prompts.jsonl",
    "responses.jsonl",
    "judgments.jsonl",
    "comparisons.jsonl",
    "groups.jsonl",
    "splits.json",
    "preferences/",
    "revisions/",
)
"""Of a run up to `pairs`: files, and folders with all that is in them."""
NAMING_CALLS = (
    "responses.jsonl",
    "judgments.jsonl",
    "certificate_judgments.jsonl",
    "revisions/chains.jsonl",
    "revisions/judged/judgments.jsonl",
    "compare/responses.jsonl",
)


def out_of_reach(config: Any) -> Any:
    """A run's config with no model that could be asked; what the store knows them by stays."""
    if isinstance(config, list):
        return [out_of_reach(value) for value in config]
    if not isinstance(config, dict):
        return config
    changed = {key: out_of_reach(value) for key, value in config.items()}
    if isinstance(config.get("model"), str):
        model = config["model"]
        if model.startswith(("http://", "https://")):
            changed["model"] = f"{NOWHERE}/v1#{model.partition('#')[2]}"
        changed["attempts"] = 1
        changed["server"] = {**(config.get("server") or {}), "startup_timeout_s": 0.001}
    return changed


def rebuild(run: Path, into: Path) -> list[str]:
    """Runs the stages up to `pairs` in `into`, from the store of `run`. Returns what went wrong."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    into.mkdir(parents=True)
    for name in STORE[:2]:
        if (run / name).exists():
            shutil.copyfile(run / name, into / name)
    text = yaml.safe_dump(out_of_reach(config), sort_keys=False)
    (into / "config.yaml").write_text(text, encoding="utf-8")
    if (run / "sft").is_dir():
        # Made by training, not by calls; its identity is in the calls to it.
        (into / "sft").symlink_to((run / "sft").resolve())
        (into / "parts").mkdir()
        shutil.copyfile(run / "parts" / "sft.json", into / "parts" / "sft.json")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": f"{NOWHERE}/v1",
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_BASE_URL": NOWHERE,
    }
    for stage in (*(("revise",) if config.get("revise") else ()), "sample", "judge", "pairs"):
        command = [sys.executable, "-P", "-m", "rlaif", stage, "--out", str(into)]
        done = subprocess.run(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if done.returncode != 0:
            return [f"{stage} ended with exit code {done.returncode}: {_last(done.stderr)}"]
    return []


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def compared(run: Path, into: Path) -> list[str]:
    """What the rebuilt run has otherwise than the run."""
    ours, theirs = (
        {name: data for name, data in files(folder).items() if name.startswith(DATASETS)}
        for folder in (run, into)
    )
    wrong = [
        f"{name} differs" for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)
    ]
    cost = json.loads((into / "parts" / "cost.json").read_text(encoding="utf-8"))["value"]
    for stage, of in cost.items():
        if of["calls_made"] or of["calls_failed"]:
            wrong.append(f"{stage} asked for {of['calls_made'] + of['calls_failed']} calls more")
    if stored(into) != stored(run):
        wrong.append("the stored calls differ")
    return wrong


def _keys(value: Any) -> Iterator[str]:
    """The calls that a record names."""
    if isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
    elif isinstance(value, dict):
        for field, inner in value.items():
            if field == "call":
                yield inner
            elif field == "calls":
                yield from inner
            else:
                yield from _keys(inner)


def named(run: Path) -> set[str]:
    """The keys of all calls that the files of a run name."""
    found: set[str] = set()
    for name in NAMING_CALLS:
        if (run / name).is_file():
            for line in (run / name).read_text(encoding="utf-8").splitlines():
                found.update(_keys(json.loads(line)))
    return found


def unnamed(run: Path) -> tuple[Counter[str], int]:
    """Stored calls that no file names, by model, and how many of them the comparison of the
    policies asked its judges."""
    rows, keys = stored(run), named(run)
    left = {key: row for key, row in rows.items() if key not in keys}
    cost = json.loads((run / "parts" / "cost.json").read_text(encoding="utf-8"))["value"]
    compare = cost.get("compare", {"calls_made": 0, "calls_from_store": 0})
    sampled = run / "compare" / "responses.jsonl"
    answered: set[str] = set()
    if sampled.is_file():
        lines = sampled.read_text(encoding="utf-8").splitlines()
        answered = {json.loads(line)["call"] for line in lines}
    judged = compare["calls_made"] + compare["calls_from_store"] - len(answered)
    models = Counter(model for model, _ in told(left).elements())
    return models, judged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--into", type=Path, help="where to keep what is rebuilt; a new folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        into = args.into or Path(folder) / "run"
        wrong = rebuild(args.run, into) or compared(args.run, into)
    rows = len(stored(args.run))
    models, judged = unnamed(args.run)
    told_of = ", ".join(f"{model} {n}" for model, n in models.items()) or "none"
    print(f"stored calls: {rows}; named by no file: {models.total()} ({told_of})")
    print(
        f"the comparison of the policies asked its judges {judged}, so {models.total() - judged} "
        "were paid for and are not used"
    )
    print("\n".join(wrong) if wrong else "rebuilt from the store alone: every dataset byte by byte")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

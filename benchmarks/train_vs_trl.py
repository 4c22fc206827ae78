"""Our training against TRL's: same model, same data, same machine, one run.

    python benchmarks/train_vs_trl.py --model DIR

For each kind (reward model, DPO) and each K, both train one epoch in float32 on the same groups,
each in a process of its own. TRL gets every pair of a group as a row; we get the group. An
optimiser step covers the same number of groups for both: `--groups-per-step` groups for us, as
many times C(K, 2) rows for TRL, taken `--trl-rows` rows at a time and accumulated, because all
pairs of a step at K = 8 do not fit into a small machine's memory. TRL's DPO computes its reference
log-probabilities once, before the first step, as ours does. Gradient checkpointing is off. Who
goes first alternates from row to row.

The data are synthetic: words of the packaged prompt set, about 150 prompt tokens and 54 response
tokens, so nothing is fetched and a figure can be checked anywhere. `step` is the training loop's
time by its optimiser steps, set-up apart; `total` runs from loading the model to the last step
(tokenising, reference scoring and our check of packing included); `cpu` is the processor time of
all threads over the total, which a busy machine disturbs less; memory is the process's peak.
Ratios are TRL's figure by ours. The groups are few, so a row is a figure of a few steps: the table
says of how many.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from math import comb
from pathlib import Path
from typing import Any

WORDS = Path(__file__).resolve().parent.parent / "prompts" / "sets" / "everyday.jsonl"
PROMPT_TOKENS, RESPONSE_TOKENS = 150, 54
LEARNING_RATE, BETA = 1e-6, 0.1
FEW_AT = 8
"""From this K on, half of the groups are the default: their pairs are many."""


def time_loops() -> list[float]:
    """A list that gets the time of each training loop's begin and last step: both sides train by
    `transformers.Trainer`, which gives every trainer made from now on this clock."""
    from transformers import TrainerCallback, trainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

    trainer.DEFAULT_CALLBACKS.append(Clock)
    return times


def texts_of(model: str, groups: int, k: int) -> list[tuple[str, list[str]]]:
    """Prompts and K responses each, of about the lengths above in the model's own tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = WORDS.read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(line)["prompt"] for line in lines).split()
    draw = random.Random(0)

    def text(tokens: int) -> str:
        drawn = " ".join(draw.choices(words, k=tokens))
        return str(tokenizer.decode(tokenizer(drawn)["input_ids"][:tokens]))

    around = len(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
    )
    return [
        (
            text(PROMPT_TOKENS - around + draw.randint(-30, 30)),
            [text(RESPONSE_TOKENS + draw.randint(-20, 20)) for _ in range(k)],
        )
        for _ in range(groups)
    ]


def run_ours(arguments: argparse.Namespace, kind: str, k: int, folder: Path) -> dict[str, Any]:
    from rlaif.train.settings import DPOSettings, RewardSettings
    from rlaif.train.training import train_dpo, train_reward_model
    from rlaif.types import Message, PreferenceGroup, Prompt, WeightedComparison

    groups = [
        PreferenceGroup(
            prompt=Prompt(id=str(number), messages=(Message(role="user", content=prompt),)),
            responses=tuple(responses),
            comparisons=tuple(
                WeightedComparison(first=i, second=j, p_first=1.0)
                for i, j in itertools.combinations(range(k), 2)
            ),
            split="train",
            labeler="benchmark",
        )
        for number, (prompt, responses) in enumerate(
            texts_of(arguments.model, groups_at(arguments, k), k)
        )
    ]
    shared: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "epochs": 1,
        "batch_groups": arguments.groups_per_step,
        "tokens_at_once": arguments.tokens_at_once,
    }
    notes: list[str] = []
    began = time.process_time()
    out, on_step = folder / "out", lambda *_: None
    if kind == "rm":
        result = train_reward_model(
            arguments.model, groups, RewardSettings(**shared), 0, out, on_step, notes.append
        )
    else:
        result = train_dpo(
            arguments.model, groups, DPOSettings(beta=BETA, **shared), 0, out, on_step, notes.append
        )
    cpu = time.process_time() - began
    packed = not any("one response a row" in note for note in notes)
    return {"seconds": result.seconds, "cpu": cpu, "steps": result.steps, "packed": packed}


def run_trl(arguments: argparse.Namespace, kind: str, k: int, folder: Path) -> dict[str, Any]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": responses[i]}],
                "rejected": [{"role": "assistant", "content": responses[j]}],
            }
            for prompt, responses in texts_of(arguments.model, groups_at(arguments, k), k)
            for i, j in itertools.combinations(range(k), 2)
        ]
    )
    step_rows = arguments.groups_per_step * comb(k, 2)
    at_once = next(n for n in range(arguments.trl_rows, 0, -1) if step_rows % n == 0)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": LEARNING_RATE,
        "num_train_epochs": 1,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": step_rows // at_once,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    began, began_cpu = time.monotonic(), time.process_time()
    if kind == "rm":
        trainer: Any = RewardTrainer(
            model=arguments.model, args=RewardConfig(**settings), train_dataset=rows
        )
    else:
        trainer = DPOTrainer(
            model=arguments.model,
            args=DPOConfig(beta=BETA, precompute_ref_log_probs=True, **settings),
            train_dataset=rows,
        )
    trainer.train()
    return {
        "seconds": time.monotonic() - began,
        "cpu": time.process_time() - began_cpu,
        "steps": trainer.state.global_step,
    }


def groups_at(arguments: argparse.Namespace, k: int) -> int:
    if arguments.groups is not None:
        return int(arguments.groups)
    return 4 if k < FEW_AT else 2


def child(arguments: argparse.Namespace) -> None:
    """One run in this process; the last line printed is its result."""
    engine, kind, k = arguments.child
    with tempfile.TemporaryDirectory() as folder:
        run = run_ours if engine == "ours" else run_trl
        times = time_loops()
        result = run(arguments, kind, int(k), Path(folder))
        begun, ended = times
    result["step"] = (ended - begun) / result["steps"]
    result["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(result))


def measure(arguments: argparse.Namespace, engine: str, kind: str, k: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--child", engine, kind, str(k)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(WORDS.parents[2])},
    )
    if done.returncode != 0:
        sys.exit(f"{engine} {kind} K={k} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="directory of a causal chat model")
    parser.add_argument("--groups", type=int, help="at every K; default: 4, and 2 from K = 8 on")
    parser.add_argument("--groups-per-step", type=int, default=2)
    parser.add_argument("--tokens-at-once", type=int, default=4096, help="that we take at once")
    parser.add_argument("--trl-rows", type=int, default=4, help="rows that TRL takes at once")
    parser.add_argument("--k", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--kinds", nargs="+", choices=["rm", "dpo"], default=["rm", "dpo"])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    print(
        "kind   K groups pairs steps | step: ours s  TRL s  ratio | total: ours s  TRL s  ratio "
        "| cpu ratio | ours GiB  TRL GiB | packed",
        flush=True,
    )
    for row, (kind, k) in enumerate(itertools.product(arguments.kinds, arguments.k)):
        engines = ("ours", "trl") if row % 2 == 0 else ("trl", "ours")
        found = {engine: measure(arguments, engine, kind, k) for engine in engines}
        ours, trl = found["ours"], found["trl"]
        if ours["steps"] != trl["steps"]:
            sys.exit(f"{kind} K={k}: {ours['steps']} steps against TRL's {trl['steps']}")
        groups = groups_at(arguments, k)
        print(
            f"{kind:4} {k:3} {groups:6} {groups * comb(k, 2):5} {ours['steps']:5} | "
            f"{ours['step']:12.2f} {trl['step']:6.2f} {trl['step'] / ours['step']:5.1f}x | "
            f"{ours['seconds']:13.1f} {trl['seconds']:6.1f} "
            f"{trl['seconds'] / ours['seconds']:5.1f}x | {trl['cpu'] / ours['cpu']:8.1f}x | "
            f"{ours['gib']:8.1f} {trl['gib']:8.1f} | {'yes' if ours['packed'] else 'no'}",
            flush=True,
        )


if __name__ == "__main__":
    main()

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
tokens, so nothing is fetched and a figure can be checked anywhere; `--pairs FILE` takes people's
pairs instead (K = 2), whose lengths differ more. `step` is the median optimiser step but the first,
which warms up; `total` runs from loading the model to the
last step (tokenising, reference scoring and our check of packing included); `cpu` is the processor
time of all threads over the total, which a busy machine disturbs less; memory is the process's
peak. Ratios are TRL's figure by ours. The table says of how many steps a row is. `tokens` are what
each side computes in an epoch, padding apart: their ratio is what sharing prompts and responses can
save.
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
from statistics import median
from typing import Any

WORDS = Path(__file__).resolve().parent.parent / "prompts" / "sets" / "everyday.jsonl"
PROMPT_TOKENS, RESPONSE_TOKENS = 150, 54
LEARNING_RATE, BETA = 1e-6, 0.1


def time_loops() -> list[float]:
    """A list that gets the time of each optimiser step's end: both sides train by
    `transformers.Trainer`, which gives every trainer made from now on this clock."""
    from transformers import TrainerCallback, trainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

    trainer.DEFAULT_CALLBACKS.append(Clock)
    return times


Texts = list[tuple[list[dict[str, str]], list[str]]]
"""Conversations with K responses each."""


def texts_of(arguments: argparse.Namespace, k: int) -> Texts:
    groups = arguments.steps * arguments.groups_per_step
    if arguments.pairs:
        return human_pairs(arguments.pairs, arguments.model, groups)
    return [
        ([{"role": "user", "content": prompt}], responses)
        for prompt, responses in made_up(arguments.model, groups, k)
    ]


def human_pairs(path: str, model: str, count: int) -> Texts:
    """Some of a gold set's pairs that fit into TRL's default of 1,024 tokens."""
    from transformers import AutoTokenizer

    from rlaif.gold import load_gold, part_of

    tokenizer = AutoTokenizer.from_pretrained(model)
    found: Texts = []
    for pair in part_of(load_gold(path).pairs, "all", 4 * count):
        messages = [m.model_dump() for m in pair.prompt.messages]
        longest = max(pair.first, pair.second, key=len)
        whole = [*messages, {"role": "assistant", "content": longest}]
        if len(tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]) < 900:
            found.append((messages, [pair.first, pair.second]))
    return found[:count]


def tokens_of(arguments: argparse.Namespace, k: int) -> tuple[int, int]:
    """Tokens of an epoch: ours, and those of a row a pair."""
    from rlaif.train.groups import encode
    from rlaif.train.loading import load_tokenizer
    from rlaif.types import Message, Prompt

    tokenizer = load_tokenizer(arguments.model)
    ours = rows = 0
    for messages, responses in texts_of(arguments, k):
        prompt = Prompt(id="0", messages=tuple(Message.model_validate(m) for m in messages))
        prompt_ids, ids = encode(tokenizer, prompt, responses, [True] * k)
        ours += len(prompt_ids) + sum(map(len, ids))
        rows += (k - 1) * sum(len(prompt_ids) + len(i) for i in ids)
    return ours, rows


def made_up(model: str, groups: int, k: int) -> list[tuple[str, list[str]]]:
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
            prompt=Prompt(
                id=str(number), messages=tuple(Message.model_validate(m) for m in messages)
            ),
            responses=tuple(responses),
            comparisons=tuple(
                WeightedComparison(first=i, second=j, p_first=1.0)
                for i, j in itertools.combinations(range(k), 2)
            ),
            split="train",
            labeler="benchmark",
        )
        for number, (messages, responses) in enumerate(texts_of(arguments, k))
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
                "prompt": messages,
                "chosen": [{"role": "assistant", "content": responses[i]}],
                "rejected": [{"role": "assistant", "content": responses[j]}],
            }
            for messages, responses in texts_of(arguments, k)
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


def child(arguments: argparse.Namespace) -> None:
    """One run in this process; the last line printed is its result."""
    engine, kind, k = arguments.child
    with tempfile.TemporaryDirectory() as folder:
        run = run_ours if engine == "ours" else run_trl
        times = time_loops()
        result = run(arguments, kind, int(k), Path(folder))
    result["step"] = median(later - before for before, later in itertools.pairwise(times))
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
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps, 2 or more")
    parser.add_argument("--groups-per-step", type=int, default=2)
    parser.add_argument("--tokens-at-once", type=int, default=4096, help="that we take at once")
    parser.add_argument("--trl-rows", type=int, default=4, help="rows that TRL takes at once")
    parser.add_argument("--k", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--kinds", nargs="+", choices=["rm", "dpo"], default=["rm", "dpo"])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--pairs", help="a gold set with people's pairs, for K = 2")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: the first step is left out of the median, so take 2 or more")
    if arguments.pairs:
        arguments.k = [2]
    if arguments.child:
        child(arguments)
        return
    print(
        "kind   K pairs steps tokens | step: ours s  TRL s  ratio | total: ours s  TRL s  ratio "
        "| cpu ratio | ours GiB  TRL GiB | packed",
        flush=True,
    )
    for row, (kind, k) in enumerate(itertools.product(arguments.kinds, arguments.k)):
        engines = ("ours", "trl") if row % 2 == 0 else ("trl", "ours")
        found = {engine: measure(arguments, engine, kind, k) for engine in engines}
        ours, trl = found["ours"], found["trl"]
        if ours["steps"] != trl["steps"]:
            sys.exit(f"{kind} K={k}: {ours['steps']} steps against TRL's {trl['steps']}")
        pairs = ours["steps"] * arguments.groups_per_step * comb(k, 2)
        own, rows = tokens_of(arguments, k)
        print(
            f"{kind:4} {k:3} {pairs:5} {ours['steps']:5} {rows / own:5.2f}x | "
            f"{ours['step']:12.2f} {trl['step']:6.2f} {trl['step'] / ours['step']:5.1f}x | "
            f"{ours['seconds']:13.1f} {trl['seconds']:6.1f} "
            f"{trl['seconds'] / ours['seconds']:5.1f}x | {trl['cpu'] / ours['cpu']:8.1f}x | "
            f"{ours['gib']:8.1f} {trl['gib']:8.1f} | {'yes' if ours['packed'] else 'no'}",
            flush=True,
        )


if __name__ == "__main__":
    main()

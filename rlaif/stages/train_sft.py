"""The policy fine-tuned on its revised answers: SL-CAI (Bai et al. 2022, section 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from rlaif.errors import SetupError
from rlaif.evaluate.intervals import Interval, clustered_mean
from rlaif.evaluate.schema import SFTSection
from rlaif.files import digest, read_jsonl
from rlaif.interrupts import interruptible
from rlaif.progress import say
from rlaif.stages._training import (
    Start,
    Steps,
    make_once,
    settings_of,
    start_weights,
)
from rlaif.train.settings import TrainSettings
from rlaif.train.sft import SFTExample, SFTLoss
from rlaif.types import Prompt, RevisionChain, Split
from rlaif.workspace import Workspace


class SFTConfig(TrainSettings):
    """How the policy is fine-tuned on the revised answers."""

    base: str | None = None
    """Model to start from (vllm/ORG/NAME, vllm/./DIR, embedded/…); none: the policy's weights."""
    learning_rate: float = Field(default=2e-5, gt=0.0)
    """Peak learning rate of AdamW; warms up linearly, then falls linearly to zero."""
    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the examples; a fraction stops inside a pass."""
    batch_groups: int = Field(default=4, gt=0)
    """Examples of one optimiser step."""


async def run(config: SFTConfig, policy: str, work: Workspace) -> None:
    """Writes sft/: a plain AutoModelForCausalLM, which any later stage can start from.

    Each prompt of the train split is answered by the last revision of its chain; those of the test
    split measure. Raises SetupError where nothing has been revised.
    """
    examples = _examples(work.revisions)
    start = start_weights(config.base, policy, "sft")
    out = work.directory / "sft"
    data = {"revisions": digest([(split, *_plain(example)) for split, example in examples])}
    train, test = ([e for s, e in examples if s == split] for split in ("train", "test"))
    async with work.stage("train-sft"):
        make_once(
            "sft",
            out,
            data,
            config,
            start,
            work,
            lambda: _fit(config, start, out, train, test, work.seed),
        )


def _examples(revisions: Path) -> list[tuple[Split, SFTExample]]:
    """What the revise stage left in its folder; a chain without a revision is none."""
    chains, prompts, splits = (
        revisions / name for name in ("chains.jsonl", "prompts.jsonl", "splits.json")
    )
    for path in (chains, prompts, splits):
        if not path.is_file():
            raise SetupError("is not there", file=path, fix="run `rlaif revise` first")
    by_id = {prompt.id: prompt for prompt in read_jsonl(prompts, Prompt)}
    split_of: dict[str, Split] = json.loads(splits.read_text(encoding="utf-8"))
    examples = []
    for line, chain in enumerate(read_jsonl(chains, RevisionChain), 1):
        if not chain.revisions:
            continue
        if chain.prompt_id not in by_id or chain.prompt_id not in split_of:
            raise SetupError(
                f"the prompt {chain.prompt_id!r} is not in prompts.jsonl and splits.json beside it",
                file=chains,
                line=line,
                fix="the files were changed by hand; run `rlaif revise` again",
            )
        last = chain.revisions[-1]
        example = SFTExample(by_id[chain.prompt_id], last.text, last.finish_reason != "length")
        examples.append((split_of[chain.prompt_id], example))
    if not examples:
        raise SetupError(
            "no answer has a revision to train on",
            file=chains,
            fix="see in the chains why they ended, and run `rlaif revise` again",
        )
    return examples


def _plain(example: SFTExample) -> tuple[object, ...]:
    return example.prompt.model_dump(mode="json"), example.text, example.ended


def _fit(
    config: SFTConfig,
    start: Start,
    out: Path,
    train: Sequence[SFTExample],
    test: Sequence[SFTExample],
    seed: int,
) -> BaseModel:
    # torch is imported when there is something to train, not when a config is read.
    from rlaif.train import scoring, training

    with settings_of("sft"), interruptible(), Steps("sft training", "steps") as on_step:
        result = training.train_sft(start.weights, train, config, seed, out, on_step, say)
    with interruptible(), Steps("sft scoring", "examples") as on_step:
        before, after = (
            scoring.sft_loss(model, test, config.max_length, on_step)
            for model in (start.weights, str(out))
        )
    both = [
        (example.prompt.id, b, a)
        for example, b, a in zip(test, before, after, strict=True)
        if b is not None and a is not None
    ]
    return SFTSection(
        base=start.identity,
        steps=result.steps,
        seconds=result.seconds,
        losses=tuple(result.losses),
        examples=result.groups,
        dropped_examples=result.dropped_responses,
        tokens=result.response_tokens,
        held_out_before=_nats_a_token([(prompt, b) for prompt, b, _ in both], seed),
        held_out_after=_nats_a_token([(prompt, a) for prompt, _, a in both], seed),
        held_out_change=_nats_a_token(
            [(prompt, SFTLoss(a.nll - b.nll, b.tokens)) for prompt, b, a in both], seed
        ),
    )


def _nats_a_token(losses: Sequence[tuple[str, SFTLoss]], seed: int) -> Interval | None:
    """The mean over all tokens; whole prompts are resampled."""
    if not losses:
        return None
    # Each token with its answer's mean: the sums of an answer, and so the mean, stay the same.
    values = [
        (prompt, loss.nll / loss.tokens) for prompt, loss in losses for _ in range(loss.tokens)
    ]
    return clustered_mean([value for _, value in values], [prompt for prompt, _ in values], seed)

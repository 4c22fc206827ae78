"""Stage 1: K answers of the policy to every prompt."""

from __future__ import annotations

import math

from pydantic import Field

from rlaif.datasets import load_prompts
from rlaif.errors import TooManyFailures
from rlaif.files import write_jsonl
from rlaif.models.pool import ModelConfig
from rlaif.progress import progress
from rlaif.sample import sample
from rlaif.types import Record, Sampling
from rlaif.workspace import Workspace


class SampleConfig(Record):
    """Which prompts are answered, and how."""

    prompts: str
    """Prompt set: a JSONL file, or the name of one of ours (everyday, sensitive, smoke)."""
    limit: int | None = Field(default=None, ge=2)
    """Only the first so many prompts; none: all."""
    k: int = Field(default=4, ge=2)
    """Answers to each prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; at 0 all K answers are the same."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens; a longer one is cut and counted."""
    max_failed: float = Field(default=0.05, ge=0, le=1)
    """Exit code 3 when a larger share of the calls fails; what was answered is kept."""

    def sampling(self, seed: int) -> Sampling:
        """What shapes an answer, as it goes into each call."""
        return Sampling(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=seed
        )


async def run(config: SampleConfig, policy: ModelConfig, work: Workspace) -> None:
    """Writes prompts.jsonl and responses.jsonl. Raises TooManyFailures above `max_failed`."""
    prompts = load_prompts(config.prompts, config.limit)
    async with work.stage("sample") as bill, work.pool.open(policy, "policy.model", bill) as client:
        calls = len(prompts) * math.ceil(config.k / min(config.k, client.model.max_n))
        with progress("sampling", calls, "calls") as advance:
            responses, failed, unusable = await sample(
                prompts, config.k, config.sampling(work.seed), client, advance
            )
    asked = bill.calls_made + bill.calls_from_store + len(failed)
    write_jsonl(work.prompts, prompts)
    write_jsonl(work.responses, responses)
    cut = sum(r.finish_reason == "length" for r in responses)
    work.save_part(
        "sample",
        {
            "policy": client.model.identity,
            "prompts": len(prompts),
            "responses": len(responses),
            "unusable": unusable,
            "truncated_share": cut / len(responses) if responses else None,
        },
    )
    if len(failed) > config.max_failed * asked:
        raise TooManyFailures(
            f"{len(failed)} of {asked} calls to the policy failed, "
            f"sample.max_failed allows {config.max_failed:.0%}; the rest is kept"
        )

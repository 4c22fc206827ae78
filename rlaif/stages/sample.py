"""Stage 1: K answers of the policy to every prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pydantic import Field

from rlaif.datasets import open_prompts
from rlaif.errors import TooManyFailures
from rlaif.files import jsonl_writer
from rlaif.judge.design import Group
from rlaif.models.flow import Channel
from rlaif.models.pool import ModelConfig
from rlaif.progress import progress
from rlaif.sample import Answered, calls_a_prompt, sample_each
from rlaif.types import Record, Sampling
from rlaif.workspace import Workspace


class SampleConfig(Record):
    """Which prompts are answered, and how."""

    prompts: str
    """Prompt set: a JSONL file, or the name of one of ours (everyday, sensitive, harmful,
    smoke)."""
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


@dataclass
class _Count:
    """What has come so far."""

    calls: int = 0
    failed: int = 0
    responses: int = 0
    cut: int = 0
    unusable: Counter[str] = field(default_factory=Counter)

    def add(self, found: Answered) -> None:
        self.failed += len(found.failed)
        self.responses += len(found.responses)
        self.cut += sum(r.finish_reason == "length" for r in found.responses)
        self.unusable.update(found.unusable)


async def run(
    config: SampleConfig,
    policy: ModelConfig,
    work: Workspace,
    judged: Channel[Group] | None = None,
) -> None:
    """Writes prompts.jsonl and responses.jsonl. Each prompt with its responses also goes into
    `judged`, which is closed at the end. Raises TooManyFailures above `max_failed`."""
    prompts = open_prompts(config.prompts, config.limit)
    count = _Count()
    async with work.stage("sample") as bill, work.pool.open(policy, "policy.model", bill) as client:
        each = calls_a_prompt(config.k, client.model.max_n)
        with (
            jsonl_writer(work.prompts) as write_prompt,
            jsonl_writer(work.responses) as write_response,
            progress("sampling", len(prompts) * each, "calls") as advance,
        ):

            async def told(found: Answered) -> None:
                count.calls += each
                count.add(found)
                write_prompt(found.prompt)
                for response in found.responses:
                    write_response(response)
                advance(count.calls, client.note)
                if judged is not None and found.responses:
                    await judged.put((found.prompt, found.responses))

            await sample_each(prompts, config.k, config.sampling(work.seed), client, told)
    work.save_part(
        "sample",
        {
            "policy": client.model.identity,
            "prompts": len(prompts),
            "responses": count.responses,
            "unusable": dict(sorted(count.unusable.items())),
            "truncated_share": count.cut / count.responses if count.responses else None,
        },
    )
    if count.failed > config.max_failed * count.calls:
        raise TooManyFailures(
            f"{count.failed} of {count.calls} calls to the policy failed, "
            f"sample.max_failed allows {config.max_failed:.0%}; the rest is kept"
        )
    if judged is not None:
        await judged.close()

"""What stages share that ask a trained policy and measure how far it has moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rlaif.errors import TooManyFailures
from rlaif.interrupts import interruptible
from rlaif.models.client import Bill
from rlaif.models.names import parse_model
from rlaif.models.pool import ModelConfig
from rlaif.progress import progress
from rlaif.sample import Drawn, calls_a_prompt, sample
from rlaif.stages._training import Start, Steps
from rlaif.types import Prompt, Response, Sampling
from rlaif.workspace import Workspace

Engine = Literal["auto", "vllm", "transformers"]
"""What serves weights of ours."""


class Answers(NamedTuple):
    responses: list[Response]
    """With ids `<name>:<prompt id>/<index>`."""
    drawn: list[Drawn]
    """The tokens of each answer, where the sampling asks for them."""


def by_vllm(model: str, engine: Engine) -> bool:
    """Whether vLLM serves what is trained from a model, rather than transformers. auto: where it
    serves the model itself."""
    return engine == "vllm" or (engine == "auto" and parse_model(model, "dpo.base").has_weights)


def serve(weights: str, policy: ModelConfig, start: Start, engine: Engine) -> ModelConfig:
    """A model of our making, served as the config says; auto: by vLLM where it serves the policy's
    own weights, else by transformers."""
    scheme = "vllm" if by_vllm(start.model, engine) else "transformers"
    return policy.model_copy(update={"model": f"{scheme}/{weights}"})


def serve_start(policy: ModelConfig, base: str | None, start: Start, engine: Engine) -> ModelConfig:
    """What training starts from, served as `serve` serves what comes of it."""
    served = serve(start.weights, policy, start, engine)
    return policy if base is None and served.model.startswith("vllm/") else served


def with_tokens(sampling: Sampling) -> Sampling:
    """Asks for the tokens where these are draws from pi, which samples at another temperature or
    from a nucleus are not."""
    from_pi = sampling.temperature == 1.0 and sampling.top_p == 1.0
    return sampling.model_copy(update={"token_ids": from_pi})


async def answer(
    name: str,
    model: ModelConfig,
    prompts: Sequence[Prompt],
    k: int,
    sampling: Sampling,
    max_failed: float,
    bill: Bill,
    work: Workspace,
) -> Answers:
    """`k` answers to each prompt. Raises TooManyFailures above `max_failed`."""
    async with work.pool.open(model, f"{name} policy", bill) as client:
        with progress(f"{name} policy", len(prompts), "prompts") as advance:
            found = await sample(prompts, k, sampling, client, advance)
        calls = len(prompts) * calls_a_prompt(k, client.model.max_n)
    if len(found.failed) > max_failed * calls:
        raise TooManyFailures(
            f"{len(found.failed)} of {calls} calls to the {name} policy failed, "
            f"max_failed allows {max_failed:.0%}; the rest is kept"
        )
    return Answers(
        [r.model_copy(update={"id": f"{name}:{r.id}"}) for r in found.responses],
        found.drawn,
    )


def log_ratios(
    drawn: Sequence[Drawn], policy: str, reference: str, max_length: int
) -> list[tuple[str, float]]:
    """Prompt id and log pi - log pi_ref of each of the policy's own draws, in nats: their mean is
    KL(policy || reference). Draws longer than `max_length` with their prompt are left out."""
    if not drawn:
        return []
    from rlaif.train import scoring  # torch only where something is scored

    with interruptible(), Steps("KL, policy", "responses") as on_step:
        trained = scoring.sampled_logprobs(policy, drawn, max_length, on_step)
    with interruptible(), Steps("KL, reference", "responses") as on_step:
        before = scoring.sampled_logprobs(reference, drawn, max_length, on_step)
    return [
        (prompt.id, p - q)
        for (prompt, _), p, q in zip(drawn, trained, before, strict=True)
        if p is not None and q is not None
    ]

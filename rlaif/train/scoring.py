"""What stages may ask of models: rewards and log-probabilities of responses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlaif.errors import SetupError
from rlaif.train.collate import Batch
from rlaif.train.ensemble import members_of
from rlaif.train.fitting import OnStep
from rlaif.train.groups import EncodedGroup, encode, encode_prompt, fitting
from rlaif.train.loading import (
    device,
    gives_memory_back,
    in_precision,
    load_causal,
    load_tokenizer,
    pad_id,
)
from rlaif.train.scorers import (
    PACKING_TOLERANCE,
    RewardScorer,
    head_error,
    packs,
    response_log_probs,
    score_groups,
)
from rlaif.train.settings import Precision
from rlaif.train.sft import SFTExample, SFTLoss
from rlaif.types import Prompt


def score_reward(
    model_dir: str,
    items: Sequence[tuple[Prompt, Sequence[str]]],
    max_length: int,
    on_step: OnStep,
    dtype: Precision = "float32",
) -> list[list[float | None]]:
    """The reward of each response to each prompt; None if it is longer than `max_length`, which
    counts the prompt. Of an ensemble the mean of its members. `dtype`: of the forward pass.

    Raises SetupError if `model_dir` is no reward model.
    """
    return [
        [None if scores_M is None else sum(scores_M) / len(scores_M) for scores_M in scores_KM]
        for scores_KM in score_members(model_dir, items, max_length, on_step, dtype)
    ]


@gives_memory_back
def score_members(
    model_dir: str,
    items: Sequence[tuple[Prompt, Sequence[str]]],
    max_length: int,
    on_step: OnStep,
    dtype: Precision = "float32",
) -> list[list[list[float] | None]]:
    """As `score_reward`, the rewards of all M members for each response, (M,)."""
    tokenizer = load_tokenizer(model_dir)
    encoded = [
        encode(tokenizer, prompt, responses, (True,) * len(responses))
        for prompt, responses in items
    ]

    def of(model: PreTrainedModel) -> list[list[list[float] | None]]:
        rows = _score_items(RewardScorer(model), tokenizer, encoded, max_length, on_step)
        return [[None if v is None else v.reshape(-1).tolist() for v in row] for row in rows]

    # One after the other, so that one is held at a time.
    with in_precision(dtype):
        found, *others = map(of, members_of(model_dir, pad_id(tokenizer)))
    for more in others:
        for row, more_row in zip(found, more, strict=True):
            for scores_M, score_1 in zip(row, more_row, strict=True):
                if scores_M is not None and score_1 is not None:
                    scores_M += score_1
    return found


@gives_memory_back
def response_logprobs(
    model_dir: str,
    items: Sequence[tuple[Prompt, Sequence[str]]],
    max_length: int,
    on_step: OnStep,
    ended: Sequence[Sequence[bool]] | None = None,
    dtype: Precision = "float32",
) -> list[list[float | None]]:
    """log pi(response | prompt) in nats, summed over the response's tokens, its end included where
    it `ended` (one flag a response; None: all did). `dtype`: of the forward pass.

    None if it is longer than `max_length` with its prompt, or has no token. Raises SetupError if
    `model_dir` is no causal model.
    """
    tokenizer = load_tokenizer(model_dir)
    score = functools.partial(response_log_probs, load_policy(model_dir))
    if ended is None:
        ended = [(True,) * len(responses) for _, responses in items]
    encoded = [
        encode(tokenizer, prompt, responses, ended_K)
        for (prompt, responses), ended_K in zip(items, ended, strict=True)
    ]
    with in_precision(dtype):
        return _numbers(_score_items(score, tokenizer, encoded, max_length, on_step))


@gives_memory_back
def sft_loss(
    model_dir: str, examples: Sequence[SFTExample], max_length: int, on_step: OnStep
) -> list[SFTLoss | None]:
    """What `train_sft` minimises, of each example by itself; exp of the sum of `nll` over the sum
    of `tokens` is the perplexity.

    None for an example that training would drop. Raises SetupError if `model_dir` is no causal
    model.
    """
    tokenizer = load_tokenizer(model_dir)
    score = functools.partial(response_log_probs, load_policy(model_dir))
    encoded = [encode(tokenizer, e.prompt, [e.text], [e.ended]) for e in examples]
    log_probs = _numbers(_score_items(score, tokenizer, encoded, max_length, on_step))
    return [
        None if log_prob is None else SFTLoss(-log_prob, len(response_ids))
        for (_, (response_ids,)), (log_prob,) in zip(encoded, log_probs, strict=True)
    ]


@gives_memory_back
def sampled_logprobs(
    model_dir: str,
    samples: Sequence[tuple[Prompt, Sequence[int]]],
    max_length: int,
    on_step: OnStep,
) -> list[float | None]:
    """log pi(sample | prompt) in nats, a sum over the tokens as a policy drew them.

    A sample's text would not do: it can be of other tokens, or of characters that are none.
    None for a sample without a token or longer than `max_length`.
    """
    tokenizer = load_tokenizer(model_dir)
    score = functools.partial(response_log_probs, load_policy(model_dir))
    encoded = [(encode_prompt(tokenizer, prompt), [list(ids)]) for prompt, ids in samples]
    rows = _numbers(_score_items(score, tokenizer, encoded, max_length, on_step))
    return [value for (value,) in rows]


def load_policy(name: str) -> PreTrainedModel:
    """A causal model whose log-probabilities we compute as it does itself. Raises SetupError."""
    model = load_causal(name)
    error = head_error(model, device())
    if error > PACKING_TOLERANCE:
        raise SetupError(
            f"{name}: {type(model).__name__} changes its logits in a way that is not known here "
            f"(they differ by {error:.1e} of the largest)",
            fix="take another base model, and report this one",
        )
    return model


def _score_items(
    score: Callable[[Batch], torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[tuple[list[int], list[list[int]]]],
    max_length: int,
    on_step: OnStep,
) -> list[list[torch.Tensor | None]]:
    results: list[list[torch.Tensor | None]] = []
    groups: list[EncodedGroup] = []
    places: list[tuple[int, list[int]]] = []
    for item, (prompt_ids, response_ids) in enumerate(encoded):
        results.append([None] * len(response_ids))
        flags = fitting(prompt_ids, response_ids, max_length)
        fits = [k for k, fit in enumerate(flags) if fit]
        if fits:
            kept = [response_ids[k] for k in fits]
            groups.append(EncodedGroup(prompt_ids, kept, (), (0.0,) * len(kept)))
            places.append((item, fits))
    if groups:
        # Only speed depends on it here, and training has said so already. One response a prompt
        # leaves nothing to share.
        packed = any(len(group.response_ids) > 1 for group in groups) and packs(
            score, groups, pad_id(tokenizer), device(), on_log=lambda _: None
        )
        scores = score_groups(
            score,
            groups,
            pad_id(tokenizer),
            packed=packed,
            device=device(),
            on_group=lambda done, total: on_step(done, total, {}),
        )
        for (item, fits), scores_K in zip(places, scores, strict=True):
            for k, value in zip(fits, scores_K, strict=True):
                results[item][k] = value
    return results


def _numbers(rows: list[list[torch.Tensor | None]]) -> list[list[float | None]]:
    return [[None if value is None else value.item() for value in row] for row in rows]

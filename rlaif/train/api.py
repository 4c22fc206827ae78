"""What stages may ask of the training half; they import nothing else of it."""

from __future__ import annotations

import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rlaif.errors import SetupError
from rlaif.train.collate import Batch
from rlaif.train.ensemble import (
    MEMBERS,
    adapter_folders,
    load_adapters,
    load_heads,
    save_heads,
    widen,
)
from rlaif.train.fitting import OnLog, OnStep, TrainResult, fit
from rlaif.train.groups import (
    EncodedGroup,
    EncodedGroups,
    drawn,
    encode,
    encode_examples,
    encode_groups,
    encode_sample,
    fitting,
    one_vote,
)
from rlaif.train.loading import (
    device,
    load_causal,
    load_reward,
    load_tokenizer,
    pad_apart,
    pad_id,
    quiet,
)
from rlaif.train.lora import Adapted
from rlaif.train.loss import LIKELIHOOD, dpo_objective, reward_objective
from rlaif.train.saving import check_target, written_whole
from rlaif.train.scorers import (
    PACKING_TOLERANCE,
    DPOScorer,
    LikelihoodScorer,
    RewardScorer,
    head_error,
    packing_error,
    response_log_probs,
    score_groups,
)
from rlaif.train.settings import (
    DPOSettings,
    Precision,
    PreferenceSettings,
    RewardSettings,
    TrainSettings,
)
from rlaif.train.sft import SFTExample, SFTLoss
from rlaif.types import PreferenceGroup, Prompt

P = ParamSpec("P")
T = TypeVar("T")


def gives_memory_back(function: Callable[P, T]) -> Callable[P, T]:
    """Frees the function's models, on the host and on the accelerator, when it ends."""

    @functools.wraps(function)
    def freeing(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        finally:
            # Its frame is gone by now, but a trainer and its callbacks hold each other.
            gc.collect()
            if torch.accelerator.is_available():
                torch.get_device_module(device()).empty_cache()

    return freeing


@gives_memory_back
def train_reward_model(
    base: str,
    groups: Sequence[PreferenceGroup],
    settings: RewardSettings,
    seed: int,
    out: Path,
    on_step: OnStep,
    on_log: OnLog,
) -> TrainResult:
    """Trains a reward model on a base (or reward) model and writes it to `out`.

    `out` becomes a plain `AutoModelForSequenceClassification` directory with one label and its
    tokenizer; of several members it is the first, and `rlaif.train.ensemble` says where the others
    stand: adapters in orders of their own, or heads on one body, each with the groups that it drew
    (`drawn`). `losses` and `accuracies` are then those of the first, or of all heads. An earlier
    model there is replaced at the end. Adapters are merged into it, and stand by themselves in its
    folder `adapter`. Killed and called again with the same arguments it goes on from its last
    checkpoint, an ensemble of adapters from its first member. The same seed gives the same weights
    on the same machine. Raises
    SetupError for a base that is no model, groups without a trainable comparison or an unwritable
    `out`, and TrainingDiverged for a loss that is not finite.
    """
    check_target(out)
    tokenizer = load_tokenizer(base)
    pad_apart(tokenizer)
    encoded = _encoded(tokenizer, groups, settings, as_drawn=False)
    if settings.members > 1 and settings.lora is None:
        drawn_groups = [drawn(group, settings.members, seed) for group in encoded.groups]
        encoded = dataclasses.replace(encoded, groups=drawn_groups)
    one_by_one = settings.members if settings.lora else 1

    def train(member: int) -> tuple[PreTrainedModel, Adapted | None, TrainResult]:
        def on_member_step(step: int, total: int, figures: Mapping[str, float]) -> None:
            on_step(step + member * total, total * one_by_one, figures)

        return _train_member(
            base, encoded, tokenizer, settings, seed + member, out, on_member_step, on_log
        )

    model, adapted, result = train(0)
    with quiet(), written_whole(out) as new:
        if adapted is None and settings.members > 1:
            save_heads(model, new)
        _write(model, adapted, tokenizer, new)
        if adapted is not None:
            for member in range(1, one_by_one):
                on_log(f"training member {member + 1} of {one_by_one}")
                del model, adapted
                model, adapted, more = train(member)
                assert adapted is not None
                adapted.save(new / MEMBERS / str(member))
                result = dataclasses.replace(result, seconds=result.seconds + more.seconds)
    return result


def _train_member(
    base: str,
    encoded: EncodedGroups,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardSettings,
    seed: int,
    out: Path,
    on_step: OnStep,
    on_log: OnLog,
) -> tuple[PreTrainedModel, Adapted | None, TrainResult]:
    began = time.monotonic()
    set_seed(seed)
    model = load_reward(base, pad_id(tokenizer), new_head=True)
    if settings.members > 1 and settings.lora is None:
        widen(model, settings.members)
    model, adapted = _trainable(model, settings)
    scorer = RewardScorer(model)
    packed = packs(scorer, encoded.groups, pad_id(tokenizer), on_log)
    objective = reward_objective(settings)
    result = fit(
        scorer, objective, encoded, tokenizer, settings, seed, packed, out, on_step, on_log, began
    )
    return model, adapted, result


@gives_memory_back
def train_dpo(
    base: str,
    groups: Sequence[PreferenceGroup],
    settings: DPOSettings,
    seed: int,
    out: Path,
    on_step: OnStep,
    on_log: OnLog,
    references: Sequence[Sequence[float | None]] | None = None,
) -> TrainResult:
    """Trains a policy by DPO from `base`, which is also its reference, and writes it to `out`.

    `references`: log pi_ref of each group's responses in nats, as `response_logprobs` gives them
    for `base` with the groups' `ended`; None: they are computed here, once, by the weights that
    training starts from. No second model is held. A response that the token limit cut is trained
    on without an end, because the policy drew none. Otherwise as `train_reward_model`; `out`
    becomes a plain `AutoModelForCausalLM` directory.
    """
    began = time.monotonic()
    check_target(out)
    set_seed(seed)
    tokenizer = load_tokenizer(base)
    encoded = _encoded(tokenizer, groups, settings, as_drawn=True, references=references)
    model, adapted = _trainable(load_policy(base), settings)
    scorer = DPOScorer(
        model,
        settings.beta,
        reference=settings.reference,
        length_normalised=settings.length_normalised,
    )
    packed = packs(scorer, encoded.groups, pad_id(tokenizer), on_log)
    if settings.reference and references is None:
        responses = sum(len(group.response_ids) for group in encoded.groups)
        on_log(f"scoring {responses} responses under the start policy")
        encoded = _with_references(model, encoded, tokenizer, settings, packed=packed)
    objective = dpo_objective(settings)
    result = fit(
        scorer, objective, encoded, tokenizer, settings, seed, packed, out, on_step, on_log, began
    )
    save_model(model, adapted, tokenizer, out)
    return result


@gives_memory_back
def train_sft(
    base: str,
    examples: Sequence[SFTExample],
    settings: TrainSettings,
    seed: int,
    out: Path,
    on_step: OnStep,
    on_log: OnLog,
) -> TrainResult:
    """Trains a policy to give the examples' answers, from `base`, and writes it to `out`.

    The loss is the negative log-likelihood of the answers' tokens, the end included where the
    answer ended by itself, averaged over all tokens of an optimiser step. `settings.batch_groups`
    counts examples. Otherwise as `train_dpo`.
    """
    began = time.monotonic()
    check_target(out)
    set_seed(seed)
    tokenizer = load_tokenizer(base)
    encoded = encode_examples(tokenizer, examples, settings.max_length)
    if encoded.dropped_responses:
        on_log(f"{encoded.dropped_responses} examples are empty or too long and are left out")
    model, adapted = _trainable(load_policy(base), settings)
    scorer = LikelihoodScorer(model)
    packed = packs(scorer, encoded.groups, pad_id(tokenizer), on_log)
    result = fit(
        scorer, LIKELIHOOD, encoded, tokenizer, settings, seed, packed, out, on_step, on_log, began
    )
    save_model(model, adapted, tokenizer, out)
    return result


def score_reward(
    model_dir: str,
    items: Sequence[tuple[Prompt, Sequence[str]]],
    max_length: int,
    on_step: OnStep,
) -> list[list[float | None]]:
    """The reward of each response to each prompt; None if it is longer than `max_length`, which
    counts the prompt. Of an ensemble the mean of its members.

    Raises SetupError if `model_dir` is no reward model.
    """
    return [
        [None if scores_M is None else sum(scores_M) / len(scores_M) for scores_M in scores_KM]
        for scores_KM in score_members(model_dir, items, max_length, on_step)
    ]


@gives_memory_back
def score_members(
    model_dir: str,
    items: Sequence[tuple[Prompt, Sequence[str]]],
    max_length: int,
    on_step: OnStep,
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

    found = of(load_heads(model_dir, pad_id(tokenizer)))
    for folder in adapter_folders(model_dir):
        more = of(load_adapters(folder, pad_id(tokenizer)))
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
    samples: Sequence[tuple[Prompt, str, bool]],
    max_length: int,
    on_step: OnStep,
) -> list[float | None]:
    """log pi(sample | prompt) in nats, over the tokens that a policy draws: those of the text, and
    the end token where the flag says that the sample ended by itself.

    `response_logprobs` is not that: it also counts what the chat template adds behind an end.
    None for a sample without a token or longer than `max_length`.
    """
    tokenizer = load_tokenizer(model_dir)
    score = functools.partial(response_log_probs, load_policy(model_dir))
    encoded = [encode_sample(tokenizer, prompt, text, ended) for prompt, text, ended in samples]
    rows = _numbers(_score_items(score, tokenizer, encoded, max_length, on_step))
    return [value for (value,) in rows]


def _encoded(
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[PreferenceGroup],
    settings: PreferenceSettings,
    *,
    as_drawn: bool,
    references: Sequence[Sequence[float | None]] | None = None,
) -> EncodedGroups:
    encoded = encode_groups(
        tokenizer, groups, settings.max_length, as_drawn=as_drawn, references=references
    )
    if settings.vote == "comparison":
        return encoded
    return dataclasses.replace(encoded, groups=[one_vote(group) for group in encoded.groups])


def _trainable(
    model: PreTrainedModel, settings: TrainSettings
) -> tuple[PreTrainedModel, Adapted | None]:
    """The model to train, and the adapters that were put into it."""
    if settings.lora is None:
        return model, None
    adapted = Adapted(model, settings.lora)
    return adapted.model, adapted


def in_precision(dtype: Precision) -> torch.autocast:
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def _with_references(
    model: PreTrainedModel,
    encoded: EncodedGroups,
    tokenizer: PreTrainedTokenizerBase,
    settings: DPOSettings,
    *,
    packed: bool,
) -> EncodedGroups:
    with in_precision(settings.dtype):
        references = score_groups(
            functools.partial(response_log_probs, model),
            encoded.groups,
            pad_id(tokenizer),
            packed=packed,
            device=device(),
            on_group=lambda done, total: None,
        )
    with_reference = [
        dataclasses.replace(group, reference_K=tuple(reference_K.tolist()))
        for group, reference_K in zip(encoded.groups, references, strict=True)
    ]
    return dataclasses.replace(encoded, groups=with_reference)


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


def packs(
    score: Callable[[Batch], torch.Tensor],
    groups: Sequence[EncodedGroup],
    pad_token_id: int,
    on_log: OnLog,
    on: torch.device | None = None,
) -> bool:
    """Whether packing leaves the scores as they are; says so if it does not. `on`: where the model
    is; None: on `device()`."""
    try:
        error = packing_error(score, groups, pad_token_id, on or device())
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError) as e:
        cause = (str(e).strip() or type(e).__name__).splitlines()[0]
        on_log(f"this model takes no packed groups ({cause}); training one response a row")
        return False
    if error <= PACKING_TOLERANCE:
        return True
    on_log(
        f"packing changes this model's scores by {error:.1e} of the largest; training one response "
        "a row"
    )
    return False


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
            score, groups, pad_id(tokenizer), on_log=lambda _: None
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


def save_model(
    model: PreTrainedModel,
    adapted: Adapted | None,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
) -> None:
    with quiet(), written_whole(out) as new:
        _write(model, adapted, tokenizer, new)


def _write(
    model: PreTrainedModel,
    adapted: Adapted | None,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    """A plain model; adapters also by themselves."""
    if adapted is not None:
        adapted.save(folder / "adapter")
        model = adapted.merged()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

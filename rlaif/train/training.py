"""The trainings that stages ask for; what they may ask of trained models is in `scoring`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rlaif.train.ensemble import MEMBERS, save_heads, widen
from rlaif.train.fitting import OnLog, OnStep, TrainResult, fit, forget, kept_folder
from rlaif.train.groups import EncodedGroups, drawn, encode_examples, encode_groups, one_vote
from rlaif.train.launching import launched
from rlaif.train.loading import (
    device,
    free_memory,
    gives_memory_back,
    in_precision,
    load_reward,
    load_tokenizer,
    pad_apart,
    pad_id,
    quiet,
)
from rlaif.train.lora import Adapted
from rlaif.train.loss import LIKELIHOOD, dpo_objective, reward_objective
from rlaif.train.memory import Processes, Work, check
from rlaif.train.ranks import least, rank, sharded, world
from rlaif.train.saving import check_target, written_whole
from rlaif.train.scorers import (
    DPOScorer,
    LikelihoodScorer,
    RewardScorer,
    packs,
    response_log_probs,
    score_groups,
)
from rlaif.train.scoring import load_policy
from rlaif.train.settings import (
    DPOSettings,
    PreferenceSettings,
    RewardSettings,
    TrainSettings,
    require_trackers,
)
from rlaif.train.sft import SFTExample
from rlaif.types import PreferenceGroup


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
    checkpoint; members that were trained are not trained again. The same seed gives the same
    weights on the same machine. Raises SetupError for a base that is no model, groups without a
    trainable comparison or an unwritable `out`, and TrainingDiverged for a loss that is not finite.
    """
    check_target(out)
    require_trackers(settings)
    if settings.launch is not None:
        return launched(base, settings, seed, out, on_step, on_log, groups=groups)
    tokenizer = load_tokenizer(base)
    pad_apart(tokenizer)
    encoded = _encoded(tokenizer, groups, settings, as_drawn=False)
    if settings.members > 1 and settings.lora is None:
        drawn_groups = [drawn(group, settings.members, seed) for group in encoded.groups]
        encoded = dataclasses.replace(encoded, groups=drawn_groups)
    _check_memory(base, encoded, settings, on_log, reward=True, members=settings.members)
    if settings.lora is None or settings.members == 1:
        model, adapted, result = _train_member(
            base, encoded, tokenizer, settings, seed, out, on_step, on_log
        )
        others = []
    else:
        others = [kept_folder(out, member) / "adapter" for member in range(1, settings.members)]
        seconds = 0.0
        # The first is last, because it is written whole.
        for done, member in enumerate([*range(1, settings.members), 0]):
            on_log(f"training member {done + 1} of {settings.members}")

            def on_member_step(
                step: int, total: int, figures: Mapping[str, float], done: int = done
            ) -> None:
                on_step(step + done * total, total * settings.members, figures)

            model, adapted, result = _train_member(
                base, encoded, tokenizer, settings, seed, out, on_member_step, on_log, member
            )
            assert adapted is not None
            seconds += result.seconds
            if member > 0:
                if rank() == 0:
                    adapted.save(kept_folder(out, member) / "adapter")
                del model, adapted
        result = dataclasses.replace(result, seconds=seconds)
    with quiet(), _written(out) as new:
        if new is not None:
            if adapted is None and settings.members > 1:
                save_heads(model, new)
            _write(model, adapted, tokenizer, new)
            for member, folder in enumerate(others, start=1):
                shutil.copytree(folder, new / MEMBERS / str(member))
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
    member: int | None = None,
) -> tuple[PreTrainedModel, Adapted | None, TrainResult]:
    """`member`: of an ensemble of adapters."""
    began = time.monotonic()
    seed += member or 0
    set_seed(seed)
    model = load_reward(base, pad_id(tokenizer), new_head=True)
    if settings.members > 1 and settings.lora is None:
        widen(model, settings.members)
    model, adapted = _trainable(model, settings)
    scorer = RewardScorer(model)
    packed = packs(scorer, encoded.groups, pad_id(tokenizer), device(), on_log)
    result = fit(
        scorer,
        reward_objective(settings),
        encoded,
        tokenizer,
        settings,
        seed,
        packed,
        out,
        on_step,
        on_log,
        began,
        member,
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
    require_trackers(settings)
    if settings.launch is not None:
        return launched(
            base, settings, seed, out, on_step, on_log, groups=groups, references=references
        )
    set_seed(seed)
    tokenizer = load_tokenizer(base)
    encoded = _encoded(tokenizer, groups, settings, as_drawn=True, references=references)
    _check_memory(base, encoded, settings, on_log, reward=False)
    model, adapted = _trainable(load_policy(base), settings)
    scorer = DPOScorer(
        model,
        settings.beta,
        reference=settings.reference,
        length_normalised=settings.length_normalised,
    )
    # Not by the scores: less their reference they begin at zero and differ by rounding alone.
    log_probs = functools.partial(response_log_probs, model)
    packed = packs(log_probs, encoded.groups, pad_id(tokenizer), device(), on_log)
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
    require_trackers(settings)
    if settings.launch is not None:
        return launched(base, settings, seed, out, on_step, on_log, examples=examples)
    set_seed(seed)
    tokenizer = load_tokenizer(base)
    encoded = encode_examples(tokenizer, examples, settings.max_length)
    if encoded.dropped_responses:
        on_log(f"{encoded.dropped_responses} examples are empty or too long and are left out")
    _check_memory(base, encoded, settings, on_log, reward=False)
    model, adapted = _trainable(load_policy(base), settings)
    scorer = LikelihoodScorer(model)
    packed = packs(scorer, encoded.groups, pad_id(tokenizer), device(), on_log)
    result = fit(
        scorer, LIKELIHOOD, encoded, tokenizer, settings, seed, packed, out, on_step, on_log, began
    )
    save_model(model, adapted, tokenizer, out)
    return result


def _check_memory(
    base: str,
    encoded: EncodedGroups,
    settings: TrainSettings,
    on_log: OnLog,
    *,
    reward: bool,
    members: int = 1,
) -> None:
    """Raises SetupError where the base cannot be trained in the memory that is free: in all
    processes alike, before any of them loads it."""
    longest = sorted((group.packed_length for group in encoded.groups), reverse=True)
    single = max(group.longest for group in encoded.groups)
    share = sum(longest[: settings.batch_groups]) // world()
    work = Work(
        tokens=max(min(settings.tokens_at_once, share), single),
        width=max(min(settings.tokens_at_once, longest[0]), single),
        longest=single,
    )
    told = check(
        Path(base).expanduser(),
        settings,
        work,
        least(free_memory()),
        reward=reward,
        members=members,
        processes=Processes(world(), sharded(), device().type == "cpu"),
    )
    if told is not None:
        on_log(f"memory may be short: {told}")


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


def save_model(
    model: PreTrainedModel,
    adapted: Adapted | None,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
) -> None:
    with quiet(), _written(out) as new:
        if new is not None:
            _write(model, adapted, tokenizer, new)


@contextlib.contextmanager
def _written(out: Path) -> Iterator[Path | None]:
    """As `written_whole`, in the first process, and checkpoints are needed no more; None in the
    others, which write nothing."""
    if rank() > 0:
        yield None
        return
    with written_whole(out) as new:
        yield new
    forget(out)


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

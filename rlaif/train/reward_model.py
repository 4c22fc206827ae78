"""A reward model in memory: prompts and responses in, scores out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from rlaif.errors import SetupError
from rlaif.gold.sources import shown
from rlaif.progress import say
from rlaif.train import loading
from rlaif.train.collate import pieces
from rlaif.train.ensemble import load_members
from rlaif.train.fitting import OnLog
from rlaif.train.groups import EncodedGroup, encode, fitting
from rlaif.train.scale import (
    Array,
    Best,
    How,
    RewardScale,
    Score,
    best,
    combined,
    p_preferred,
    read_scale,
)
from rlaif.train.scorers import TOKENS_AT_ONCE, RewardScorer, packs, score_groups
from rlaif.train.settings import Precision, ScoringSettings
from rlaif.types import Message, Prompt
from rlaif.yamlfile import validate

WINDOW_TOKENS = 16 * TOKENS_AT_ONCE
"""Tokens that are tokenised ahead, so that like lengths can run together."""

Asked = str | Sequence[Message | Mapping[str, str]] | Prompt
"""A prompt: a user's text, or a conversation that ends with a user's turn."""


class RewardModel:
    """A reward model with all its members, loaded once.

        model = RewardModel.load("outputs/smoke/reward_model")
        model.score("Why is the sky blue?", ["Light scatters.", "Ask somebody else."])

    `RewardModel.load` makes one.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[RewardScorer],
        tokenizer: PreTrainedTokenizerBase,
        scale: RewardScale | None,
        *,
        how: How,
        penalty: float,
        max_length: int,
        device: torch.device,
        dtype: Precision,
    ) -> None:
        self.name = name
        """Folder or hub name."""
        self.scale = scale
        """None for a reward model of another's making: its scores are raw."""
        self.how = how
        self.penalty = penalty
        self.max_length = max_length
        """Tokens that prompt and response may have together."""
        self._members = members
        self._tokenizer = tokenizer
        self._device = device
        self._dtype = dtype
        self._packed = True
        self._longest_checked = 0

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        how: How = "mean",
        penalty: float = 1.0,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        dtype: Precision = "float32",
        on_log: OnLog = say,
    ) -> RewardModel:
        """The reward model of a folder, or of a hub name: one that `rlaif train-rm` wrote, with its
        ensemble and scale, or any `AutoModelForSequenceClassification` with one label, which
        `on_log` is told gives raw scores.

        `how` an ensemble's members become one score, with `penalty`: see `scale.combined`.
        `max_length`: tokens that prompt and response may have together; None: what the model's
        positions allow. `device`: None is the accelerator, if there is one. `dtype`: of the forward
        pass; weights stay in float32. Raises SetupError for what is no reward model, for a setting
        that `ScoringSettings` does not take, and for a `how` other than mean where there is one
        member.
        """
        name = str(folder)
        given = {"how": how, "penalty": penalty, "max_length": max_length, "dtype": dtype}
        asked = validate(ScoringSettings, given, None, f"RewardModel.load({name!r})")
        tokenizer = loading.load_tokenizer(name)
        place = loading.device() if device is None else torch.device(device)
        models = load_members(name, loading.pad_id(tokenizer))
        for model in models:
            torch.nn.Module.to(model, place)
        members = [RewardScorer(model) for model in models]
        heads = sum(_heads(model) for model in models)
        if heads == 1 and asked.how != "mean":
            raise SetupError(
                f"found {asked.how!r}, and {name} is no ensemble",
                field="how",
                fix="leave it out; reward_model.members=4 trains an ensemble",
            )
        scale = read_scale(loading.beside_weights(name))
        if scale is None:
            on_log(f"{name}: no reward.json says what its scores mean; they are raw")
        elif len(scale.mean) != heads:
            raise SetupError(
                f"reward.json is of {len(scale.mean)} members, the weights are of {heads}",
                file=name,
                fix="train it again",
            )
        return cls(
            name,
            members,
            tokenizer,
            scale,
            how=asked.how,
            penalty=asked.penalty,
            max_length=asked.max_length or _context(models[0].config, name),
            device=place,
            dtype=asked.dtype,
        )

    def score(self, prompt: Asked, responses: Sequence[str]) -> list[Score | None]:
        """The score of each of the K responses to a prompt, (K,); None for one that is longer than
        `max_length` with its prompt. Raises SetupError as `score_many` does."""
        (scores_K,) = self.score_many([(prompt, responses)])
        return scores_K

    def score_many(
        self, items: Iterable[tuple[Asked, Sequence[str]]]
    ) -> Iterator[list[Score | None]]:
        """As `score`, for any number of prompts with their responses, in their order.

        Items are taken as they are needed, some `WINDOW_TOKENS` at once, and within these like
        lengths run together; a prompt is computed once for its responses. How items fall into
        batches changes no score beyond rounding. Raises SetupError for a prompt that is no
        conversation, one that the chat template refuses, responses that are no texts, and a score
        that is not finite.
        """
        window: list[tuple[list[int], list[list[int]]]] = []
        tokens = 0
        for prompt, responses in items:
            prompt_ids, response_ids = self._encoded(as_prompt(prompt), as_texts(responses))
            window.append((prompt_ids, response_ids))
            tokens += len(prompt_ids) + sum(map(len, response_ids))
            if tokens >= WINDOW_TOKENS:
                yield from self._scored(window)
                window, tokens = [], 0
        yield from self._scored(window)

    def best_of(self, prompt: Asked, responses: Sequence[str]) -> Best:
        """The best of the K responses to a prompt, and the scores of all. Raises SetupError as
        `score_many` does."""
        return best(self.score(prompt, responses))

    def p_preferred(self, first: Score, second: Score) -> float:
        """P(the first response is preferred), calibrated on held-out labels where the model's
        `scale` has a temperature; else Bradley-Terry's, of raw scores as they are."""
        temperature = None if self.scale is None else self.scale.temperature
        return float(p_preferred(np.subtract(first.raw_M, second.raw_M), temperature))

    def _encoded(
        self, prompt: Prompt, responses: Sequence[str]
    ) -> tuple[list[int], list[list[int]]]:
        if not responses:
            return [], []
        try:
            return encode(self._tokenizer, prompt, responses, (True,) * len(responses))
        except jinja2.TemplateError as e:
            raise SetupError(
                f"the chat template of {self.name} refuses the conversation: {e}",
                fix="mend the conversation, or its chat_template.jinja",
            ) from e

    def _scored(
        self, window: Sequence[tuple[list[int], list[list[int]]]]
    ) -> Iterator[list[Score | None]]:
        fits = [fitting(*encoded, self.max_length) for encoded in window]
        groups = []
        for (prompt_ids, response_ids), fits_K in zip(window, fits, strict=True):
            kept = [ids for ids, fit in zip(response_ids, fits_K, strict=True) if fit]
            if kept:
                groups.append(EncodedGroup(prompt_ids, kept, (), (0.0,) * len(kept)))
        scores = iter(self._of_groups(groups))
        for fits_K in fits:
            yield [next(scores) if fit else None for fit in fits_K]

    def _of_groups(self, groups: Sequence[EncodedGroup]) -> list[Score]:
        if not groups:
            return []
        packed = self._packs(groups)
        parts = [p for group in groups for p in pieces(group, TOKENS_AT_ONCE, packed=packed)]
        raw_NM = np.concatenate([self._raw(member, parts, packed) for member in self._members], 1)
        if not np.isfinite(raw_NM).all():
            raise SetupError(
                "gives a response a score that is infinite or NaN",
                file=self.name,
                fix="train it again" if self._dtype == "float32" else "score in float32",
            )
        scores_NM = raw_NM if self.scale is None else self.scale.normalised(raw_NM)
        scores_N = combined(scores_NM, self.how, self.penalty)
        return [
            Score(score, tuple(members_M), tuple(raw_M))
            for score, members_M, raw_M in zip(
                scores_N.tolist(), scores_NM.tolist(), raw_NM.tolist(), strict=True
            )
        ]

    def _raw(self, member: RewardScorer, groups: Sequence[EncodedGroup], packed: bool) -> Array:
        with torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self._dtype == "bfloat16"
        ):
            scores = score_groups(
                member,
                groups,
                loading.pad_id(self._tokenizer),
                packed=packed,
                device=self._device,
                on_group=lambda done, total: None,
            )
        # One head gives (K,), several give (K, M).
        return np.concatenate([s.double().numpy().reshape(len(s), -1) for s in scores])

    def _packs(self, groups: Sequence[EncodedGroup]) -> bool:
        """Whether packing leaves the scores as they are: asked again for every longer group, since
        a sliding window shows only beyond its width."""
        shared = [group for group in groups if len(group.response_ids) > 1]
        longest = max((group.longest for group in shared), default=0)
        if self._packed and longest > self._longest_checked:
            self._longest_checked = longest
            # Only speed depends on it here.
            self._packed = packs(
                self._members[0],
                shared,
                loading.pad_id(self._tokenizer),
                self._device,
                on_log=lambda _: None,
            )
        return self._packed and bool(shared)


def as_prompt(asked: Asked) -> Prompt:
    """A prompt that may be the user's text, or messages. Raises SetupError where it does not end
    with a user's turn."""
    if isinstance(asked, Prompt):
        return asked
    fix = "give a text, or messages with role and content that end with the user's"
    turns = (
        [{"role": "user", "content": asked}]
        if isinstance(asked, str)
        else _several(asked, "prompt", fix)
    )
    plain = [m.model_dump() if isinstance(m, Message) else m for m in turns]
    try:
        return Prompt.model_validate({"id": "", "messages": plain})
    except ValidationError as e:
        first = e.errors()[0]
        raise SetupError(
            first["msg"].removeprefix("Value error, "),
            field=".".join(map(str, first["loc"])) or "prompt",
            fix=fix,
        ) from e


def as_texts(responses: Sequence[str]) -> list[str]:
    """The responses to a prompt. Raises SetupError where they are no texts, or one text alone."""
    fix = "give a list of texts"
    texts = _several(responses, "responses", fix)
    for text in texts:
        if not isinstance(text, str):
            raise SetupError(f"found {shown(text)} among them", field="responses", fix=fix)
    return texts


def _several(given: Any, field: str, fix: str) -> list[Any]:
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise SetupError(f"found {shown(given)}", field=field, fix=fix)
    return [*given]


def _heads(model: Any) -> int:
    heads: int = model.score.out_features
    return heads


def _context(config: Any, name: str) -> int:
    context = config.get_text_config().to_dict().get("max_position_embeddings")
    if context is None:
        raise SetupError(
            "does not say how many tokens it takes", file=name, fix="give max_length (--max-length)"
        )
    return int(context)

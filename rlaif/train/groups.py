"""Preference groups, and examples for SFT, as token ids."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlaif.errors import SetupError
from rlaif.train.sft import SFTExample
from rlaif.types import PreferenceGroup, Prompt, WeightedComparison


@dataclass(frozen=True)
class EncodedGroup:
    """A prompt and its K responses, tokenised, and the comparisons between them: with K = 1 and
    none, an example for SFT."""

    prompt_ids: list[int]
    response_ids: list[list[int]]
    """K lists; prompt and response concatenated are the whole conversation."""
    comparisons: tuple[WeightedComparison, ...]
    """Indices are into `response_ids`."""
    reference_K: tuple[float, ...]
    """log pi_ref of each response, in nats; zeros where there is no reference."""
    name: str = ""
    """The prompt's id."""
    draws: tuple[int, ...] = ()
    """How often each member of an ensemble drew this group; empty: there is one member."""

    @property
    def packed_length(self) -> int:
        """Tokens of the prompt once and of all responses."""
        return len(self.prompt_ids) + sum(map(len, self.response_ids))

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest response."""
        return len(self.prompt_ids) + max(map(len, self.response_ids))


@dataclass(frozen=True)
class EncodedGroups:
    """Groups that can be trained on, and what could not."""

    groups: list[EncodedGroup]
    dropped_responses: int
    """Responses of more than `max_length` tokens with their prompt, or of none."""


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    responses: Sequence[str],
    ended: Sequence[bool],
) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prompt and of each response, as TRL splits a conversational row.

    A response is what follows the prompt in the rendered conversation, its end-of-turn tokens
    included; one that has not `ended` is its text right behind the opened turn, with no end that
    nobody drew. Where a response's first characters merge with the prompt's last token, the prompt
    ends before that token for all K responses; the token sequences are never changed. Raises
    SetupError if the chat template renders the prompt differently when an answer follows.
    """
    messages = [message.model_dump() for message in prompt.messages]
    opening = _render(tokenizer, messages, answered=False)
    texts = [
        _render(tokenizer, [*messages, {"role": "assistant", "content": text}], answered=True)
        if whole
        else opening + text
        for text, whole in zip(responses, ended, strict=True)
    ]
    if not all(text.startswith(opening) for text in texts):
        raise SetupError(
            f"the chat template of {tokenizer.name_or_path} renders a prompt differently once it "
            "is answered, so where the response begins is unknown",
            fix="use a model or a chat_template.jinja whose prompt is a prefix of the conversation",
        )
    prompt_ids, *full_ids = tokenizer([opening, *texts], add_special_tokens=False)["input_ids"]
    shared = min(_common_prefix(prompt_ids, ids) for ids in full_ids)
    return prompt_ids[:shared], [ids[shared:] for ids in full_ids]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of the prompt up to where a policy's answer begins."""
    opening = _render(tokenizer, [m.model_dump() for m in prompt.messages], answered=False)
    ids: list[int] = tokenizer(opening, add_special_tokens=False)["input_ids"]
    return ids


def encode_groups(
    tokenizer: PreTrainedTokenizerBase,
    groups: Iterable[PreferenceGroup],
    max_length: int,
    *,
    as_drawn: bool,
    references: Sequence[Sequence[float | None]] | None = None,
) -> EncodedGroups:
    """Encodes groups; a response that is too long is dropped with its comparisons, never cut.

    `as_drawn` leaves the end-of-turn off the responses that a token limit cut: a policy must not
    learn to end there. Without it every response is a whole conversation, which is what a reward
    model is asked about. `references`: log pi_ref of each group's responses, None for one that is
    too long. A group with fewer than two responses or no comparison left is dropped. Raises
    SetupError if none remains, or as `encode` does.
    """
    encoded, dropped = [], 0
    for number, group in enumerate(groups):
        ended = group.ended if as_drawn else (True,) * len(group.responses)
        prompt_ids, response_ids = encode(tokenizer, group.prompt, group.responses, ended)
        fits = fitting(prompt_ids, response_ids, max_length)
        dropped += fits.count(False)
        place = {k: sum(fits[:k]) for k, fit in enumerate(fits) if fit}
        comparisons = tuple(
            c.model_copy(update={"first": place[c.first], "second": place[c.second]})
            for c in group.comparisons
            if c.first in place and c.second in place
        )
        if comparisons:
            kept = [response_ids[k] for k in place]
            reference_K = (
                (0.0,) * len(kept) if references is None else _known(references[number], place)
            )
            encoded.append(
                EncodedGroup(prompt_ids, kept, comparisons, reference_K, group.prompt.id)
            )
    if not encoded:
        raise SetupError(
            f"no group is left to train on: {dropped} responses are empty or longer than "
            f"{max_length} tokens"
            if dropped
            else "there is no group to train on",
            field="max_length" if dropped else "",
            fix="raise max_length" if dropped else "label some comparisons first",
        )
    return EncodedGroups(encoded, dropped)


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[SFTExample], max_length: int
) -> EncodedGroups:
    """Encodes examples for SFT; one that is too long is dropped, never cut.

    An answer that a token limit cut is left without an end. Raises SetupError if none remains, or
    as `encode` does.
    """
    encoded, dropped = [], 0
    for prompt, text, ended in examples:
        prompt_ids, response_ids = encode(tokenizer, prompt, [text], [ended])
        if all(fitting(prompt_ids, response_ids, max_length)):
            encoded.append(EncodedGroup(prompt_ids, response_ids, (), (0.0,), prompt.id))
        else:
            dropped += 1
    if not encoded:
        raise SetupError(
            f"no example is left to train on: {dropped} answers are empty or longer than "
            f"{max_length} tokens with their prompts"
            if dropped
            else "there is no example to train on",
            field="max_length" if dropped else "",
            fix="raise max_length" if dropped else "revise some answers first",
        )
    return EncodedGroups(encoded, dropped)


def one_vote(group: EncodedGroup) -> EncodedGroup:
    """The group with the weights of its comparisons adding up to 1 (Ouyang et al. 2022, eq. 1)."""
    total = sum(c.weight for c in group.comparisons)
    weighted = tuple(c.model_copy(update={"weight": c.weight / total}) for c in group.comparisons)
    return replace(group, comparisons=weighted)


def drawn(group: EncodedGroup, members: int, seed: int) -> EncodedGroup:
    """The group with a draw for each member: Poisson of mean 1, which is what a bootstrap of many
    groups gives to each of them (Oza and Russell 2001)."""
    generator = np.random.default_rng([seed, zlib.crc32(group.name.encode())])
    return replace(group, draws=tuple(generator.poisson(1.0, members).tolist()))


def _known(reference_K: Sequence[float | None], ks: Iterable[int]) -> tuple[float, ...]:
    values = [reference_K[k] for k in ks]
    known = tuple(value for value in values if value is not None)
    if len(known) != len(values):
        raise ValueError("a response that fits has no reference: it was scored under another limit")
    return known


def fitting(prompt_ids: list[int], response_ids: list[list[int]], max_length: int) -> list[bool]:
    """Which of the K responses have a token and, with their prompt, no more than `max_length`."""
    return [bool(ids) and len(prompt_ids) + len(ids) <= max_length for ids in response_ids]


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, answered: bool
) -> str:
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=not answered
    )
    return str(text)


def _common_prefix(left: list[int], right: list[int]) -> int:
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return min(len(left), len(right))

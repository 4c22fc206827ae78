"""A model directory as a chat model, without a server: for smoke runs and tiny models."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rlaif.errors import CallRejected
from rlaif.models.base import ChatModel
from rlaif.train.loading import device, load_causal, load_tokenizer
from rlaif.types import ChatReply, ChatRequest, Choice, TokenLogprob

# Sampling draws from torch's global generator, which all instances share.
_LOCK = threading.Lock()


class TransformersModel(ChatModel):
    """Answers by `model.generate` from a directory: the same request, the same answer.

    Raises SetupError if the directory holds no causal language model.
    """

    gives_logprobs = True
    max_n = 128

    def __init__(self, directory: str, identity: str) -> None:
        self.identity = identity
        self._tokenizer = load_tokenizer(directory)
        self._model: Any = load_causal(directory)
        ends = self._model.generation_config.eos_token_id
        self._ends = sorted(
            {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        )
        # Otherwise `generate` fills what a request leaves open (top_k, penalties) from the file.
        self._model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]

    async def ask(self, request: ChatRequest) -> ChatReply:
        """Raises CallRejected if prompt and answer do not fit into the model's context, and for a
        menu: `generate` is not constrained."""
        if request.menu:
            raise CallRejected("this model's answers cannot be kept to a menu")
        return await asyncio.to_thread(self._answer, request)

    def _answer(self, request: ChatRequest) -> ChatReply:
        sampling = request.sampling
        text = self._tokenizer.apply_chat_template(
            [message.model_dump() for message in request.messages],
            add_generation_prompt=True,
            tokenize=False,
        )
        prompt = self._tokenizer(text, add_special_tokens=False, return_tensors="pt").to(device())
        prompt_tokens = prompt["input_ids"].shape[1]
        limit = self._model.config.get_text_config().max_position_embeddings
        if prompt_tokens + sampling.max_tokens > limit:
            raise CallRejected(
                f"{prompt_tokens} prompt tokens and {sampling.max_tokens} asked for exceed the "
                f"model's context of {limit}"
            )
        first = _FirstLogits()
        with _LOCK, torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(_seed(request))
            output_NT = self._model.generate(
                **prompt,
                generation_config=self._config(request),
                logits_processor=LogitsProcessorList([first]),
            )
        answers_NT = output_NT[:, prompt_tokens:].tolist()
        alternatives = self._alternatives(first.logits_V, sampling.top_logprobs)
        if len(answers_NT) < sampling.n:  # Greedy: every sample would be the same.
            answers_NT = answers_NT * sampling.n
        choices, completion_tokens = [], 0
        for ids in answers_NT:
            length = next((i + 1 for i, token in enumerate(ids) if token in self._ends), None)
            completion_tokens += length or len(ids)
            choices.append(
                Choice(
                    text=self._tokenizer.decode(ids[:length], skip_special_tokens=True),
                    finish_reason="length" if length is None else "stop",
                    first_token=alternatives,
                    token_ids=tuple(ids[:length]) if sampling.token_ids else (),
                )
            )
        return ChatReply(
            choices=tuple(choices),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    def _config(self, request: ChatRequest) -> GenerationConfig:
        sampling = request.sampling
        drawn = (
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            if sampling.temperature > 0
            else {}
        )
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=sampling.temperature > 0,
            max_new_tokens=sampling.max_tokens,
            num_return_sequences=sampling.n if sampling.temperature > 0 else 1,
            eos_token_id=self._ends,
            pad_token_id=self._tokenizer.pad_token_id,
            **drawn,
        )

    def _alternatives(self, logits_V: torch.Tensor, count: int) -> tuple[TokenLogprob, ...]:
        top = logits_V.float().log_softmax(-1).topk(count)
        return tuple(
            TokenLogprob(token=self._tokenizer.decode([token]), logprob=logprob)
            for token, logprob in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        )


class _FirstLogits(LogitsProcessor):
    """Keeps the first token's logits as the model gave them, before temperature and top_p."""

    logits_V: torch.Tensor

    def __init__(self) -> None:
        self._seen = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._seen:
            self._seen = True
            self.logits_V = scores[0].clone()
        return scores


def _seed(request: ChatRequest) -> int:
    # Whether the tokens are told changes no answer.
    asked = request.model_dump_json(exclude={"sampling": {"token_ids"}})
    return int.from_bytes(hashlib.sha256(asked.encode()).digest()[:7], "big")

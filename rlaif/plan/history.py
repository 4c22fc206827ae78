"""What answered calls tell of calls to come: this run's first, then those of runs beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from rlaif.callstore import CallStore, StoredCall, call_key
from rlaif.errors import StoreError
from rlaif.plan.figures import Figure, exactly, mean_to_come
from rlaif.progress import say
from rlaif.types import ChatReply, ChatRequest

MOST = 4000
"""Calls of one model that are looked at in one store."""
TOKENS_A_CHARACTER = Figure(1 / 5.5, 1 / 4.2, 1 / 3.0)
"""Where no call tells. English in common tokenizers, with the tokens of the chat template."""
SHARE_OF_LIMIT = Figure(0.1, 0.5, 1.0)
"""How much of its token limit an answer takes, where no call tells."""

OWN_S = Figure(0.0003, 0.0008, 0.003)
"""Seconds of our own for a call: to word it, store it and read it; see benchmarks/plan.py."""


class Shape(NamedTuple):
    """What calls of one kind share: the same question to the same model."""

    max_tokens: int
    logprobs: bool
    menu: bool
    seeded: bool
    """Calls to the policy carry the run's seed, those to a judge do not."""
    tail: str
    """How the prompt ends, where a template says it; else empty."""


def shape_of(request: ChatRequest, tails: Iterable[str]) -> Shape:
    """`tails`: how templates end."""
    sampling = request.sampling
    content = request.messages[-1].content
    return Shape(
        sampling.max_tokens,
        sampling.top_logprobs > 0,
        bool(request.menu),
        sampling.seed is not None,
        next((tail for tail in tails if content.endswith(tail)), ""),
    )


def characters(request: ChatRequest) -> int:
    """Characters of a prompt."""
    return sum(len(message.content) for message in request.messages)


OWN = "this run"


class Told(NamedTuple):
    """What there is to go by for calls of one kind."""

    calls: list[StoredCall]
    """Answered ones of the same kind; empty: none, and all below is assumed."""
    of_model: list[StoredCall]
    """Answered ones of the same model, of whatever kind."""
    where: str
    """Where the calls were found, for people."""

    def tokens_a_character(self, coming: int) -> Figure:
        """Prompt tokens a character of the prompt, template tokens counted in."""
        seen = self.calls or self.of_model
        if not seen:
            return TOKENS_A_CHARACTER
        spread = mean_to_come(
            [call.reply.prompt_tokens / max(characters(call.request), 1) for call in seen], coming
        )
        tokens = sum(call.reply.prompt_tokens for call in seen)
        point = tokens / max(sum(characters(call.request) for call in seen), 1)
        if not self.calls:  # another kind of prompt: its words are others
            return Figure(point * 0.75, point, point * 1.33)
        return Figure(
            max(point - (spread.point - spread.low), 0.0),
            point,
            point + spread.high - spread.point,
        )

    def answered_tokens(self, max_tokens: int, coming: int) -> Figure:
        """Tokens of one answer."""
        if max_tokens == 1:
            return exactly(1.0)
        if not self.calls:
            found = SHARE_OF_LIMIT.times(exactly(max_tokens))
        else:
            found = mean_to_come(
                [call.reply.completion_tokens / len(call.reply.choices) for call in self.calls],
                coming,
            )
        return found.within(1.0, max_tokens)

    def length(self, max_tokens: int, coming: int) -> Figure:
        """Characters of one answer."""
        if not self.calls:
            low, point, high = self.tokens_a_character(coming)
            a_token = Figure(1 / high, 1 / point, 1 / max(low, 1e-9))
            return self.answered_tokens(max_tokens, coming).times(a_token)
        return mean_to_come(
            [
                sum(len(choice.text) for choice in call.reply.choices) / len(call.reply.choices)
                for call in self.calls
            ],
            coming,
        )

    def cached(self) -> tuple[float, float]:
        """Shares of the prompt tokens that were read from, and written into, a cache."""
        prompt = sum(call.reply.prompt_tokens for call in self.calls)
        if not prompt:
            return 0.0, 0.0
        return (
            sum(call.reply.cached_tokens for call in self.calls) / prompt,
            sum(call.reply.cache_write_tokens for call in self.calls) / prompt,
        )

    def seconds(self, calls: int, concurrency: int) -> Figure | None:
        """Wall time of so many calls; None where nothing tells.

        At best they run side by side as many as may be in flight, each as quick as those seen; at
        worst the machine gives no more answers a second than it gave then. Which of the two, those
        seen tell the better the more of them there were: a few never filled the machine, two
        windows of them did, and then it gives what it gave. (Another run may have asked fewer at
        once: its calls count by how many of the window they were.)
        """
        seen = self.calls
        if not seen or not calls:
            return exactly(0.0) if not calls else None
        alone = sum(call.seconds for call in seen) / len(seen)
        side_by_side = calls * alone / min(concurrency, calls)
        # Kinds that were in flight together (critiques and verdicts) share the time in which they
        # were: each has its part of it, or their sum would count it twice.
        spent = sum(call.seconds for call in seen)
        of_all = spent / (sum(call.seconds for call in self.of_model) or 1.0)
        spans = [(call.answered - call.seconds, call.answered) for call in self.of_model]
        busy = _busy(spans) * of_all
        as_then = calls * busy / len(seen)
        low, high = sorted((side_by_side, as_then))
        low = max(low, alone)
        high = max(high, low)
        filled = min(1.0, len(seen) / (2 * concurrency))
        if self.where != OWN and busy:
            filled *= min(1.0, spent / busy / concurrency)
        toward_high = (1 + filled) / 2 if as_then >= side_by_side else 0.5
        point = low * (high / low) ** toward_high
        asking = Figure(low / 1.25, point, high * 1.25)
        return asking + OWN_S.times(exactly(calls))


def _busy(spans: list[tuple[float, float]]) -> float:
    """Seconds in which at least one of the calls was in flight."""
    found, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        found += max(end - max(start, until), 0.0)
        until = max(until, end)
    return found


class History:
    """Stored calls of this run and of others beside it. Opens no store that is not there."""

    def __init__(self, own: Path, others: Iterable[Path]) -> None:
        """`own` and `others` are run directories. Raises StoreError for an `own` store that cannot
        be read; another run's is left out."""
        self._own = _opened(own)
        self._others: list[tuple[str, CallStore]] = []
        for directory in others:
            try:
                store = _opened(directory)
            except StoreError as e:
                say(f"left out: {e}")
                continue
            if store is not None:
                self._others.append((directory.name, store))
        self._known: dict[str, list[tuple[str, list[StoredCall]]]] = {}
        self._told: dict[tuple[tuple[str, ...], Shape, int], Told] = {}
        self.tails: tuple[str, ...] = ()
        """How templates end."""

    def know(self, tails: Iterable[str]) -> None:
        """Takes how templates end, the longest first: one may end another."""
        self.tails = tuple(sorted(set(tails) - {""}, key=lambda tail: (-len(tail), tail)))

    def reply(self, request: ChatRequest) -> ChatReply | None:
        """What this run was answered already."""
        return None if self._own is None else self._own.get(call_key(request))

    def told(self, models: tuple[str, ...], request: ChatRequest) -> Told:
        """What there is to go by for calls like this one, of the first of the models (identities)
        that any store knows this kind of call of: this run's, else those of the run whose calls are
        most like it in answers a call and length of the prompt, and of such runs the one with the
        most of them."""
        kind = (models, shape_of(request, self.tails), request.sampling.n)
        if kind not in self._told:
            self._told[kind] = self._find(models, request)
        return self._told[kind]

    def _find(self, models: tuple[str, ...], request: ChatRequest) -> Told:
        shape = shape_of(request, self.tails)
        every: list[StoredCall] = []
        for model in models:
            found = []
            for where, calls in self._of(model):
                every = every or calls
                of_kind = [call for call in calls if shape_of(call.request, self.tails) == shape]
                if of_kind:
                    found.append(Told(_of_nearest_n(of_kind, request.sampling.n), calls, where))
            if found:
                return min(found, key=lambda told: (told.where != OWN, *_unlike(told, request)))
        return Told([], every, "")

    def _of(self, model: str) -> list[tuple[str, list[StoredCall]]]:
        if model not in self._known:
            stores = [(OWN, self._own)] if self._own is not None else []
            found = [
                (where, store.of_model(model, MOST)) for where, store in [*stores, *self._others]
            ]
            self._known[model] = [(where, calls) for where, calls in found if calls]
        return self._known[model]

    def close(self) -> None:
        for store in (self._own, *(store for _, store in self._others)):
            if store is not None:
                store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _of_nearest_n(calls: Sequence[StoredCall], n: int) -> list[StoredCall]:
    """Those that asked for a number of answers nearest to `n`."""
    apart = [abs(math.log2(call.request.sampling.n / n)) for call in calls]
    nearest = min(apart)
    return [call for call, far in zip(calls, apart, strict=True) if far == nearest]


def _unlike(told: Told, request: ChatRequest) -> tuple[int, int, int]:
    """How little another run's calls are like this one, in half octaves; the more of them there
    are, the less."""
    mean = sum(characters(call.request) for call in told.calls) / len(told.calls)
    lengths = (mean + 1) / (characters(request) + 1)
    answers = told.calls[0].request.sampling.n / request.sampling.n
    apart = [round(2 * abs(math.log2(ratio))) for ratio in (answers, lengths)]
    return apart[0], apart[1], -len(told.calls)


def _opened(directory: Path) -> CallStore | None:
    path = directory / "calls.sqlite"
    return CallStore(path) if path.is_file() else None


def beside(directory: Path) -> list[Path]:
    """Run directories under outputs/, other than this one, that hold calls to learn from."""
    return sorted(
        path.parent
        for path in Path("outputs").glob("**/calls.sqlite")
        if path.parent.resolve() != directory.resolve()
    )

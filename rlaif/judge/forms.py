"""The ways to ask: which calls stand behind one judgment, and how their answers are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlaif.constitution import Principle
from rlaif.errors import SetupError
from rlaif.judge.aggregate import Pair
from rlaif.judge.config import NEED_LOGPROBS, SINGLE, TEMPLATE, AskConfig, Mode
from rlaif.judge.read import (
    Verdict,
    p_greater,
    read_score,
    read_structured,
    read_text,
    read_verdict,
    read_votes,
)
from rlaif.templates import Template
from rlaif.types import ChatReply, ChatRequest, Choice, Message, Order, Response, Sampling

TOP_LOGPROBS = 20
SHARED = frozenset({"conversation", "principle", "labels"})
PAIRED = SHARED | {"response_a", "response_b"}
VARIABLES: Mapping[Mode, frozenset[str]] = {
    "pairwise": PAIRED,
    "critique": PAIRED | {"critique_a", "critique_b"},
    "reasoning": PAIRED | {"rationale"},
    "structured": PAIRED,
    "votes": PAIRED,
    "pointwise": SHARED | {"response"},
    "score": (SHARED - {"labels"}) | {"response", "lowest", "highest"},
}
"""What each mode gives to its verdict's template."""
QUOTES: Mapping[Mode, tuple[str, ...]] = {
    "critique": ("critique_a", "critique_b"),
    "reasoning": ("rationale",),
}
"""Variables that hold what the judge itself said before its verdict."""


class Ask(NamedTuple):
    """One judgment to be made."""

    pair: Pair
    principle: Principle
    order: Order
    shares: bool = True
    """Whether the same pair is asked about under other principles, too: only then is it worth a
    provider's price for keeping it in a cache."""

    @property
    def shown(self) -> tuple[Response, Response]:
        """The responses as A and B."""
        if self.order == "swapped":
            return self.pair.second, self.pair.first
        return self.pair.first, self.pair.second


class Asked(NamedTuple):
    """What a form must know of the model that it asks (see `ChatModel`)."""

    identity: str
    gives_logprobs: bool
    max_n: int


class Reading(NamedTuple):
    """What came of one judgment's calls; in terms of the responses as shown."""

    p_first_shown: float | None
    label_mass: float | None
    reason: str
    scores: tuple[float, float] | None = None


class Form:
    """How one judge is asked: templates are found and checked when it is made."""

    def __init__(self, config: AskConfig, model: Asked) -> None:
        """Raises SetupError for a template that is not there or not in order."""
        mode = config.mode
        self.config = config
        self.model = model
        self.reads_logprobs = (
            model.gives_logprobs and config.logprobs and mode not in ("structured", "votes")
        )
        self._verdict = Template(config.template or TEMPLATE[mode], VARIABLES[mode])
        self._critique = Template("critique", {"conversation", "response", "principle"})
        self._reason = Template("reason", PAIRED)
        if mode in SINGLE:
            self.orders: tuple[Order, ...] = ("none",)
        else:
            self.orders = ("forward", "swapped") if config.both_orders else ("forward",)

    @property
    def cannot(self) -> str:
        """Why this judge cannot be asked so; empty if it can."""
        if self.config.mode not in NEED_LOGPROBS or self.reads_logprobs:
            return ""
        why = "logprobs is false" if self.model.gives_logprobs else "it gives none"
        return (
            f"mode {self.config.mode} needs the log-probabilities of {self.model.identity}: {why}"
        )

    def check(self, field: str) -> None:
        """Raises SetupError if this judge cannot be asked so; `field` names its model."""
        if self.cannot:
            raise SetupError(
                self.cannot,
                field=f"{field.removesuffix('.model')}.mode",
                fix="pairwise, critique, reasoning, structured and votes need none",
            )

    @property
    def first_tokens(self) -> tuple[str, ...]:
        """Texts whose first tokens must differ for a verdict to be read; none where text is."""
        if not self.reads_logprobs:
            return ()
        if self.config.mode == "score":
            return tuple(str(n) for n in range(1, self.config.score_max + 1))
        return self.config.offered

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates that this mode uses."""
        first = {"critique": (self._critique,), "reasoning": (self._reason,)}
        return (*first.get(self.config.mode, ()), self._verdict)

    def before(self, ask: Ask) -> list[ChatRequest]:
        """The calls whose texts the verdict's prompt quotes."""
        tokens = self.config.critique_tokens
        if self.config.mode == "critique":
            return [
                self._request(
                    self._critique, tokens, self._single(ask, response), shares=ask.shares
                )
                for response in ask.shown
            ]
        if self.config.mode == "reasoning":
            return [self._request(self._reason, tokens, self._paired(ask), shares=ask.shares)]
        return []

    def verdict(self, ask: Ask, quoted: Sequence[str]) -> list[ChatRequest]:
        """The verdict's calls; `quoted` are the texts that `before` brought."""
        config = self.config
        tokens, logprobs = (1, TOP_LOGPROBS) if self.reads_logprobs else (0, 0)
        if config.mode in SINGLE:
            return [
                self._request(
                    self._verdict,
                    tokens or config.text_verdict_tokens,
                    self._single(ask, response),
                    shares=ask.shares,
                    logprobs=logprobs,
                )
                for response in ask.shown
            ]
        quotes = dict(zip(QUOTES.get(config.mode, ()), quoted, strict=True))
        variables = {**self._paired(ask), **quotes}
        if config.mode == "votes":
            per_call = min(config.votes, self.model.max_n)
            return [
                self._request(
                    self._verdict,
                    config.vote_tokens,
                    variables,
                    shares=ask.shares,
                    n=min(per_call, config.votes - start),
                    repeat=start // per_call,
                )
                for start in range(0, config.votes, per_call)
            ]
        if config.mode == "structured":
            return [
                self._request(
                    self._verdict,
                    config.menu_tokens,
                    variables,
                    shares=ask.shares,
                    menu=config.offered,
                )
            ]
        return [
            self._request(
                self._verdict,
                tokens or config.text_verdict_tokens,
                variables,
                shares=ask.shares,
                logprobs=logprobs,
            )
        ]

    def read(self, ask: Ask, replies: Sequence[ChatReply]) -> Reading:
        """Reads the replies to the calls of `verdict`."""
        reading = self._read([r.text for r in ask.shown], replies)
        clamp, p = self.config.clamp, reading.p_first_shown
        if clamp is None or p is None:
            return reading
        return reading._replace(p_first_shown=min(max(p, 0.5 - clamp), 0.5 + clamp))

    def _read(self, shown: Sequence[str], replies: Sequence[ChatReply]) -> Reading:
        mode, labels, floor = self.config.mode, self.config.offered, self.config.min_label_mass
        choices = [reply.choices[0] for reply in replies]
        if mode == "score":
            return self._scored(choices)
        if mode == "pointwise":
            return _pointwise([read_verdict(choice, labels, floor, shown) for choice in choices])
        if mode == "votes":
            every = [choice for reply in replies for choice in reply.choices]
            verdict = read_votes(every, labels, shown)
        elif mode == "structured":
            verdict = read_structured(choices[0], labels)
        elif self.reads_logprobs:
            verdict = read_verdict(choices[0], labels, floor, shown)
        else:
            verdict = read_text(choices[0], labels, shown)
        return Reading(verdict.p_first_label, verdict.label_mass, verdict.reason)

    def _scored(self, choices: Sequence[Choice]) -> Reading:
        scale = (1, self.config.score_max)
        first, second = (
            read_score(choice.first_token, scale, self.config.min_label_mass) for choice in choices
        )
        mass = min(first.label_mass, second.label_mass)
        if first.distribution is None or second.distribution is None:
            return Reading(None, mass, first.reason or second.reason)
        assert first.expected is not None
        assert second.expected is not None
        p = p_greater(first.distribution, second.distribution)
        return Reading(p, mass, "", (first.expected, second.expected))

    def _request(
        self,
        template: Template,
        tokens: int,
        variables: Mapping[str, Any],
        *,
        shares: bool,
        logprobs: int = 0,
        n: int = 1,
        repeat: int = 0,
        menu: tuple[str, ...] = (),
    ) -> ChatRequest:
        messages = template.render(variables)
        if not shares:
            messages = tuple(Message(role=m.role, content=m.content) for m in messages)
        return ChatRequest(
            model=self.model.identity,
            messages=messages,
            sampling=Sampling(
                max_tokens=tokens,
                temperature=self.config.temperature,
                top_logprobs=logprobs,
                n=n,
            ),
            repeat=repeat,
            menu=menu,
        )

    def _single(self, ask: Ask, response: Response) -> dict[str, Any]:
        return {
            "conversation": ask.pair.prompt.messages,
            "response": response.text,
            "principle": ask.principle,
            "labels": self.config.offered,
            "lowest": 1,
            "highest": self.config.score_max,
        }

    def _paired(self, ask: Ask) -> dict[str, Any]:
        shown_a, shown_b = ask.shown
        return {
            "conversation": ask.pair.prompt.messages,
            "response_a": shown_a.text,
            "response_b": shown_b.text,
            "principle": ask.principle,
            "labels": self.config.offered,
        }


def _pointwise(read: Sequence[Verdict]) -> Reading:
    """P(first preferred) = sigmoid(logit p_yes(first) - logit p_yes(second))."""
    masses = [v.label_mass for v in read if v.label_mass is not None]
    mass = min(masses) if masses else None
    logits = []
    for verdict in read:
        if verdict.p_first_label is None:
            return Reading(None, mass, verdict.reason)
        if verdict.label_mass is None:
            # A yes in text has no odds to compare with another yes.
            return Reading(None, None, "no_logprobs")
        # A label outside the returned alternatives reads as exactly 0; its log-odds are unknown
        # but finite, and a double holds nothing beyond this.
        p = min(max(verdict.p_first_label, 1e-12), 1 - 1e-12)
        logits.append(math.log(p) - math.log1p(-p))
    return Reading(1 / (1 + math.exp(logits[1] - logits[0])), mass, "")

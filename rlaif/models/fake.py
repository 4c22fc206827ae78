"""Scripted models: deterministic, instant, in the package. They read the real prompts.

    fake/policy     samples texts of varying length
    fake/shorter    a judge that prefers the shorter response
    fake/longer     a judge that prefers the longer response
    fake/first      a judge that prefers whatever is shown first
    fake/refuse     a judge that always refuses
    fake/faulty     `shorter`, with a share of its answers broken in every way we have seen

Options follow a question mark, joined by `&`: `fake/shorter?logprobs=no` answers in text only,
`fake/faulty?rate=0.3` sets the share, `fake/shorter?delay=0.02` takes that many seconds a call.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import math
import random
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from rlaif.errors import CallRateLimited, CallRejected, CallTransient, SetupError
from rlaif.files import canonical
from rlaif.models.base import ChatModel
from rlaif.templates import fenced_blocks
from rlaif.types import ChatReply, ChatRequest, Choice, TokenLogprob

KINDS = ("policy", "shorter", "longer", "first", "refuse", "faulty")
MENU = re.compile(r"Answer with one (?:letter|word) and nothing else: (\w+) or (\w+)\.")
REFUSAL = "I'm sorry, but I can't compare these."
FAULTS = (
    "empty",
    "refusal",
    "both labels",
    "off the menu",
    "quoted label",
    "rejected",
    "rate limited",
    "server error",
)
# A response counts as shorter from a fifth on (exp(-0.25) = 0.78 of the other's characters), with
# odds of 12 to 1; less is a tie. Answers that the token limit cut differ by less than that, by
# nothing but how many characters their tokens happen to have.
INDIFFERENT_LOG_RATIO = 0.25
STEEPNESS = 10.0
LABEL_MASS = 0.98
WORDS = tuple(
    word
    for line in (
        "the answer is plain once you look at how each part moves and what it needs to do",
        "so take one step then rest and see if it holds before you go on with care",
    )
    for word in line.split()
)


class FakeModel(ChatModel):
    """One of the scripted models above; `name` is what stands behind `fake/`."""

    max_n = 128

    def __init__(self, name: str, field: str = "model") -> None:
        kind, _, query = name.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            raise SetupError(
                f"no fake model {kind!r}",
                field=field,
                fix=f"did you mean fake/{near[0]}?" if near else f"known: {', '.join(KINDS)}",
            )
        unknown = sorted(set(options) - {"logprobs", "rate", "delay"})
        if unknown:
            raise SetupError(
                f"fake models have no option {unknown[0]!r}",
                field=field,
                fix="options are logprobs, rate and delay",
            )
        # The delay changes no answer, so it is no part of the identity.
        told = [f"{key}={value}" for key, value in options.items() if key != "delay"]
        self.identity = f"fake/{kind}" + (f"?{'&'.join(told)}" if told else "")
        self.gives_logprobs = options.get("logprobs", "yes") != "no"
        self._kind = kind
        self._fault_rate = _number(options, "rate", "0.3" if kind == "faulty" else "0", field)
        self._delay_s = _number(options, "delay", "0", field)
        self._attempts: dict[str, int] = {}

    async def ask(self, request: ChatRequest) -> ChatReply:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        if self._kind == "policy":
            choices = [self._sample(request, i) for i in range(request.sampling.n)]
        else:
            choices = [self._verdict(request) for _ in range(request.sampling.n)]
        return ChatReply(
            choices=tuple(choices),
            prompt_tokens=sum(len(m.content.split()) for m in request.messages),
            completion_tokens=sum(len(c.text.split()) for c in choices),
        )

    def _sample(self, request: ChatRequest, index: int) -> Choice:
        rng = _rng(request, index)
        wanted = rng.randint(3, 60)
        limit = request.sampling.max_tokens
        words = [rng.choice(WORDS) for _ in range(min(wanted, limit))]
        finish = "length" if wanted > limit else "stop"
        return Choice(text=" ".join(words).capitalize() + ".", finish_reason=finish)

    def _verdict(self, request: ChatRequest) -> Choice:
        menus = list(MENU.finditer(request.messages[-1].content))
        if not menus:
            return Choice(text="It answers what was asked, at some length.", finish_reason="stop")
        # The last one is ours: an earlier one stands in a response that imitates the prompt.
        labels = (menus[-1][1], menus[-1][2])
        if self._kind == "refuse":
            return Choice(text=REFUSAL, finish_reason="stop", first_token=self._token("I"))
        if _rng(request, 0).random() < self._fault_rate:
            fault = _rng(request, 1).choice(FAULTS)
            broken = self._broken(request, fault, labels)
            if broken is not None:
                return broken
        p_first = 1 / (1 + math.exp(-self._log_odds(request)))
        return self._answer(labels, p_first)

    def _log_odds(self, request: ChatRequest) -> float:
        """Log-odds of the first label: the first response, or `yes` for a single one."""
        text = "\n".join(m.content for m in request.messages)
        shown = [b.text for b in fenced_blocks(text) if b.title.startswith("Response")]
        sizes = [math.log(1 + len(t)) for t in shown]
        if self._kind == "first":
            return 4.0
        sign = 1.0 if self._kind == "longer" else -1.0
        if len(sizes) == 1:
            return sign * STEEPNESS * (sizes[0] - math.log(100))
        gap = sizes[0] - sizes[1]
        return 0.0 if abs(gap) < INDIFFERENT_LOG_RATIO else sign * STEEPNESS * gap

    def _answer(self, labels: tuple[str, str], p_first: float) -> Choice:
        text = labels[0] if p_first >= 0.5 else labels[1]
        if not self.gives_logprobs:
            return Choice(text=text, finish_reason="stop")
        masses = {labels[0]: LABEL_MASS * p_first, labels[1]: LABEL_MASS * (1 - p_first)}
        tokens = [
            TokenLogprob(token=label, logprob=math.log(mass))
            for label, mass in sorted(masses.items(), key=lambda item: -item[1])
            if mass > 0
        ]
        return Choice(text=text, finish_reason="stop", first_token=tuple(tokens))

    def _token(self, text: str) -> tuple[TokenLogprob, ...]:
        return (TokenLogprob(token=text, logprob=-0.01),) if self.gives_logprobs else ()

    def _broken(self, request: ChatRequest, fault: str, labels: tuple[str, str]) -> Choice | None:
        """The fault's answer or exception; None where a retry has passed it."""
        if fault in ("rate limited", "server error"):
            key = hashlib.sha256(canonical(request.model_dump(mode="json")).encode()).hexdigest()
            self._attempts[key] = self._attempts.get(key, 0) + 1
            if self._attempts[key] > 1:
                return None
            if fault == "rate limited":
                raise CallRateLimited("429: slow down", wait_s=0.01)
            raise CallTransient("500: internal error")
        if fault == "rejected":
            raise CallRejected("400: this prompt is refused")
        text = {
            "empty": "",
            "refusal": REFUSAL,
            "both labels": f"{labels[0]} and {labels[1]} are equally good",
            "off the menu": "Z",
            "quoted label": f'The response says "{labels[0]}", which settles nothing',
        }[fault]
        first_word = text.split(" ")[0]
        # "A and B …" starts with a label: with log-probabilities it is a vote, so it is only a
        # fault for a reader of text.
        if self.gives_logprobs and first_word in labels:
            return None
        return Choice(text=text, finish_reason="stop", first_token=self._token(first_word))


def _number(options: Mapping[str, str], name: str, default: str, field: str) -> float:
    try:
        return float(options.get(name, default))
    except ValueError as e:
        raise SetupError(f"the option {name} must be a number", field=field) from e


def _rng(request: ChatRequest, index: int) -> random.Random:
    conversation = [m.model_dump() for m in request.messages]
    basis = canonical([conversation, request.sampling.seed, request.repeat, index])
    return random.Random(hashlib.sha256(basis.encode()).digest())

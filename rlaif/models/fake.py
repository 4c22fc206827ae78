"""Scripted models: deterministic, instant, in the package. They read the real prompts.

    fake/policy     samples texts of varying length
    fake/shorter    a judge that prefers the shorter response
    fake/longer     a judge that prefers the longer response
    fake/first      a judge that prefers whatever is shown first
    fake/noisy      `shorter`, turned round on a share of the pairs, in both orders alike
    fake/refuse     a judge that always refuses
    fake/faulty     `shorter`, with a share of its answers broken in every way we have seen
    fake/knows      a judge that knows the tests of a constitution by heart, and refuses all else

Options follow a question mark, joined by `&`:

    logprobs=no     answers in text only
    rate=0.3        the share of broken answers (for noisy: of pairs turned round)
    stuck=yes       calls that fail in passing (a timeout, a 500, …) never pass
    seed=1          other samples, votes, faults and noise
    delay=0.02      takes that many seconds a call; changes no answer

and for `knows`:

    constitution=hhh    whose tests; must be there. A path or a name, as everywhere
    wrong=0.2           the share of what it knows that it answers the wrong way round, in both
                        orders alike

A judge answers by the last line of these in its prompt (an earlier one stands in a response that
imitates the prompt), and with prose where there is none:

    Answer with one letter and nothing else: A or B.        (also: one word, one number)
    Answer with one number and nothing else: from 1 (worst) to 9 (best).
    End with your verdict in double brackets: [[A]] or [[B]].

A request with a menu is answered with a JSON object, whatever its prompt says.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl

from rlaif.constitution import load_constitution
from rlaif.errors import CallRateLimited, CallRejected, CallTransient, SetupError
from rlaif.files import canonical, digest
from rlaif.models.base import ChatModel
from rlaif.models.scripted import Known
from rlaif.templates import fenced_blocks
from rlaif.types import ChatReply, ChatRequest, Choice, TokenLogprob

KINDS = ("policy", "shorter", "longer", "first", "noisy", "refuse", "faulty", "knows")
OPTIONS = ("logprobs", "rate", "stuck", "seed", "delay")
KNOWS_OPTIONS = ("constitution", "wrong")
Form = Literal["word", "score", "votes", "structured"]
QUESTIONS: Mapping[Form, re.Pattern[str]] = {
    "word": re.compile(
        r"Answer with one (?:letter|word|number) and nothing else: (\w+) or (\w+)\."
    ),
    "score": re.compile(
        r"Answer with one number and nothing else: from (\d+) \(worst\) to (\d+) \(best\)\."
    ),
    "votes": re.compile(
        r"End with your verdict in double brackets: \[\[(\w+)\]\] or \[\[(\w+)\]\]\."
    ),
}
PROSE = "It answers what was asked, at some length."
REFUSAL = "I'm sorry, but I can't compare these."
BROKEN_ANSWERS = (
    "empty",
    "refusal",
    "truncated",
    "both labels",
    "same label twice",
    "off the menu",
    "quoted label",
    "wrong language",
)
# None begins with a label: as a first token that would be a verdict.
BOTH_LABELS = (
    "Both {0} and {1} are equally good.",
    "The answer: {0} and {1} are equally good.",
    "Verdict: {0} or {1}",
    "Answer: {0}/{1}",
    "The choice: {0} vs {1}",
    "Verdict: {0} = {1}",
    "The verdict is {0} 50% and {1} 50%",
    "Winner: {0} tie",
    "I refuse. As for format: Verdict: {0} or {1}",
    "It is false that response {0} is better than {1}.",
)
BOTH_IN_BRACKETS = ("[[{0}]] [[{1}]]", "So be it: [[{0}]][[{1}]]")
# What passes when the call is asked again. Where there is a menu, invalid JSON is an answer.
PASSING = ("rate limited", "server error", "timeout", "cut stream", "invalid JSON")
FAULTS = (*BROKEN_ANSWERS, *PASSING, "rejected")
# A response counts as shorter from a fifth on (exp(-0.25) = 0.78 of the other's characters), with
# odds of 12 to 1; less is a tie. Answers that the token limit cut differ by less than that, by
# nothing but how many characters their tokens happen to have.
INDIFFERENT_LOG_RATIO = 0.25
STEEPNESS = 10.0
# A single response of so many characters is neither short nor long.
MEDIUM = 100
LABEL_MASS = 0.98
# Log-odds of a judge that has no doubt: 0.982 to 0.018.
SURE = 4.0
FIRST_SCORES = 7
WORDS = tuple(
    word
    for line in (
        "the answer is plain once you look at how each part moves and what it needs to do",
        "so take one step then rest and see if it holds before you go on with care",
    )
    for word in line.split()
)


class Question(NamedTuple):
    """What a prompt asks a judge for."""

    form: Form
    labels: tuple[str, str]
    """The two on offer; for a score, the ends of the scale."""


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
        allowed = (*KNOWS_OPTIONS, *OPTIONS) if kind == "knows" else OPTIONS
        unknown = sorted(set(options) - set(allowed))
        if unknown:
            raise SetupError(
                f"{'fake/knows has' if kind == 'knows' else 'fake models have'} no option "
                f"{unknown[0]!r}",
                field=field,
                fix=f"options are {', '.join(allowed[:-1])} and {allowed[-1]}",
            )
        self._known = _known(options, field) if kind == "knows" else None
        if self._known is not None:
            # Other tests are other answers, and the same tests in another file the same ones.
            options["constitution"] = self._known.fingerprint
        # The delay changes no answer, so it is no part of the identity.
        told = [f"{key}={value}" for key, value in options.items() if key != "delay"]
        self.identity = f"fake/{kind}" + (f"?{'&'.join(told)}" if told else "")
        self.gives_logprobs = _flag(options, "logprobs", "yes", field)
        self._kind = kind
        rate = {"faulty": "0.3", "noisy": "0.2"}.get(kind, "0")
        self._rate = _number(options, "rate", rate, field)
        turned = self._rate if kind == "noisy" else 0.0
        self._turned = _number(options, "wrong", str(turned), field)
        self._stuck = _flag(options, "stuck", "no", field)
        self._seed = options.get("seed", "")
        self._delay_s = _number(options, "delay", "0", field)
        self._failed: set[str] = set()

    async def first_tokens(self, texts: Sequence[str]) -> list[int] | None:
        """As most tokenizers do it: digits one by one, a short word whole."""
        heads = [text[0] if text[0].isdigit() else text for text in texts]
        return [int.from_bytes(head.encode()) for head in heads]

    async def ask(self, request: ChatRequest) -> ChatReply:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        indices = range(request.sampling.n)
        question = _question(request)
        if self._kind == "policy":
            choices = [self._sample(request, i) for i in indices]
        elif question is None:
            choices = [Choice(text=PROSE, finish_reason="stop") for _ in indices]
        else:
            self._fail(request)
            choices = [self._verdict(request, question, i) for i in indices]
        return ChatReply(
            choices=tuple(choices),
            prompt_tokens=sum(len(m.content.split()) for m in request.messages),
            completion_tokens=sum(len(c.text.split()) for c in choices),
        )

    def _sample(self, request: ChatRequest, index: int) -> Choice:
        rng = self._rng(request, index)
        wanted = rng.randint(3, 60)
        limit = request.sampling.max_tokens
        words = [rng.choice(WORDS) for _ in range(min(wanted, limit))]
        finish = "length" if wanted > limit else "stop"
        return Choice(text=" ".join(words).capitalize() + ".", finish_reason=finish)

    def _verdict(self, request: ChatRequest, question: Question, index: int) -> Choice:
        if self._kind == "refuse" or (self._known is not None and self._recall(request) is None):
            return self._said(request, REFUSAL)
        fault = self._fault(request, index)
        if fault in BROKEN_ANSWERS or (fault == "invalid JSON" and request.menu):
            return self._broken(request, question, fault, index)
        if question.form == "score":
            return self._score(request, *map(int, question.labels))
        p_first = 1 / (1 + math.exp(-self._log_odds(request)))
        if question.form == "word":
            masses = (LABEL_MASS * p_first, LABEL_MASS * (1 - p_first))
            return self._likeliest(request, question.labels, masses)
        likelier = question.labels[0] if p_first >= 0.5 else question.labels[1]
        if question.form == "structured":
            return self._said(request, json.dumps({"verdict": likelier}))
        # A judge that looks at nothing but the position has no second thoughts.
        first = self._kind == "first" or self._rng(request, f"vote {index}").random() < p_first
        vote = question.labels[0] if first else question.labels[1]
        return self._said(request, f"Both have merits, and one of them has more. [[{vote}]]")

    def _log_odds(self, request: ChatRequest) -> float:
        """Log-odds of the first label: the first response, or `yes` for a single one."""
        if self._kind == "first":
            return SURE
        if self._known is not None:
            return SURE * (self._recall(request) or 0)
        shown = self._shown(request)
        sizes = [math.log(1 + len(text)) for text in shown]
        if len(sizes) == 1:
            return self._sign(shown) * STEEPNESS * (sizes[0] - math.log(MEDIUM))
        gap = sizes[0] - sizes[1]
        if abs(gap) < INDIFFERENT_LOG_RATIO:
            return 0.0
        return self._sign(shown) * STEEPNESS * gap

    def _asked(self, request: ChatRequest) -> tuple[str, list[str]]:
        """The part of the prompt that shows the responses, and those. Raises SetupError where a
        template hides them."""
        # Turns before an assistant's are examples, unless nothing is shown after it: then the
        # assistant's is what the judge thought so far.
        parts: list[list[str]] = [[]]
        for message in request.messages:
            if message.role == "assistant":
                parts.append([])
            else:
                parts[-1].append(message.content)
        shown: list[str] = []
        text = ""
        while parts and not shown:
            text = "\n".join(parts.pop())
            shown = [b.text for b in fenced_blocks(text) if b.title.startswith("Response")]
        if len(shown) not in (1, 2):
            raise SetupError(
                f"fake/{self._kind} finds {len(shown)} responses in its prompt",
                fix="a template shows one or two, each fenced under a line that starts with "
                "Response",
            )
        return text, shown

    def _shown(self, request: ChatRequest) -> list[str]:
        """The responses in the prompt. Raises SetupError where a template hides them."""
        return self._asked(request)[1]

    def _recall(self, request: ChatRequest) -> int | None:
        """What the tests say of the responses (see `Known.sign`), or its opposite."""
        assert self._known is not None
        text, shown = self._asked(request)
        sign = self._known.sign(text, shown)
        return -sign if sign is not None and self._turns(shown) else sign

    def _turns(self, shown: Sequence[str]) -> bool:
        """Whether this pair is one of those that the judge turns round."""
        # Sorted: both orders are one pair, and are turned round together.
        return random.Random(digest([self._seed, sorted(shown)])).random() < self._turned

    def _sign(self, shown: Sequence[str]) -> float:
        """1 if longer is better, -1 if shorter is."""
        return 1.0 if self._kind == "longer" or self._turns(shown) else -1.0

    def _score(self, request: ChatRequest, low: int, high: int) -> Choice:
        """A bell of a quarter of the half scale, around a centre that length moves."""
        half = (high - low) / 2
        if self._kind == "first":
            centre = float(min(max(low, FIRST_SCORES), high))
        elif self._known is not None:
            centre = low + half + (self._recall(request) or 0) * half / 2
        else:
            shown = self._shown(request)
            longer = math.log(1 + len(shown[0])) - math.log(MEDIUM)
            centre = low + half + self._sign(shown) * half * math.tanh(longer / 2)
        scale = range(low, high + 1)
        weights = [math.exp(-0.5 * ((score - centre) / (half / 4)) ** 2) for score in scale]
        masses = [LABEL_MASS * weight / sum(weights) for weight in weights]
        return self._likeliest(request, [str(score) for score in scale], masses)

    def _likeliest(
        self, request: ChatRequest, words: Sequence[str], masses: Sequence[float]
    ) -> Choice:
        """The likeliest of some words of one token each."""
        ranked = sorted(zip(words, masses, strict=True), key=lambda item: -item[1])
        tokens = [TokenLogprob(token=w, logprob=math.log(mass)) for w, mass in ranked if mass > 0]
        return self._said(request, ranked[0][0], tokens)

    def _said(
        self,
        request: ChatRequest,
        text: str,
        tokens: Sequence[TokenLogprob] = (),
        finish: str = "stop",
    ) -> Choice:
        """`tokens` are the alternatives of the first token; none: it is the first word."""
        told = tokens or [TokenLogprob(token=text.split(" ")[0], logprob=-0.01)]
        wanted = request.sampling.top_logprobs if self.gives_logprobs else 0
        return Choice(text=text, finish_reason=finish, first_token=tuple(told[:wanted]))

    def _fault(self, request: ChatRequest, index: int) -> str:
        """What is wrong with one answer, or with the call (only in the first); empty: nothing."""
        if self._kind == "noisy":
            return ""
        rng = self._rng(request, f"fault {index}")
        drawn = rng.choice(FAULTS if index == 0 else BROKEN_ANSWERS)
        return drawn if rng.random() < self._rate else ""

    def _fail(self, request: ChatRequest) -> None:
        """Raises where the call fails, as our providers do; most failures pass after one."""
        fault = self._fault(request, 0)
        if fault == "rejected":
            raise CallRejected("Error code: 400 - this prompt is refused")
        if fault not in PASSING or (fault == "invalid JSON" and request.menu):
            return
        key = digest(request.model_dump(mode="json"))
        if key in self._failed and not self._stuck:
            return
        self._failed.add(key)
        if fault == "rate limited":
            raise CallRateLimited("Error code: 429 - slow down", wait_s=0.01)
        raise CallTransient(
            {
                "server error": "Error code: 500 - internal error",
                "timeout": "APITimeoutError: Request timed out.",
                "cut stream": "APIConnectionError: peer closed connection within the answer",
                "invalid JSON": "the answer is not JSON",
            }[fault]
        )

    def _broken(self, request: ChatRequest, question: Question, fault: str, index: int) -> Choice:
        """An answer that is no verdict, in the form that was asked for."""
        one, other = question.labels
        shape = {"votes": "[[{}]]", "structured": '{{"verdict": "{}"}}'}.get(question.form, "{}")
        both = (*BOTH_LABELS, *(BOTH_IN_BRACKETS if question.form == "votes" else ()))
        off_the_menu = next(word for word in "ZYX" if word not in question.labels)
        text = {
            "empty": "",
            "refusal": REFUSAL,
            "truncated": "Looking at what each of them says about the",
            "both labels": self._rng(request, f"both {index}").choice(both).format(one, other),
            "same label twice": f"To me {one} is better than {one}.",
            "off the menu": shape.format(off_the_menu),
            "quoted label": f'The response says "{shape.format(one)}", which settles nothing.',
            "wrong language": "Beide Antworten haben ihre Vorzüge.",
        }
        if question.form == "structured":
            text |= {
                "truncated": '{"verdict": "',
                "both labels": f'{{"verdict": "{one}", "verdict": "{other}"}}',
                "invalid JSON": f'{{"verdict": "{one}"',
            }
            for prose in ("same label twice", "wrong language"):
                text[prose] = json.dumps({"verdict": text[prose]}, ensure_ascii=False)
        finish = "length" if fault == "truncated" else "stop"
        return self._said(request, text[fault], finish=finish)

    def _rng(self, request: ChatRequest, purpose: int | str) -> random.Random:
        conversation = [m.model_dump() for m in request.messages]
        basis = [conversation, request.sampling.seed, request.repeat, purpose]
        if self._seed:
            basis.append(self._seed)
        return random.Random(hashlib.sha256(canonical(basis).encode()).digest())


def _question(request: ChatRequest) -> Question | None:
    """None where the prompt offers nothing to choose from: for a critique, say."""
    if request.menu:
        one, other = request.menu[:2]
        return Question("structured", (one, other))
    asked = request.messages[-1].content
    found = [
        (match.end(), form, match[1], match[2])
        for form, pattern in QUESTIONS.items()
        for match in pattern.finditer(asked)
    ]
    if not found:
        return None
    # The last one is ours: an earlier one stands in a response that imitates the prompt.
    _, form, one, other = max(found)
    return Question(form, (one, other))


def _known(options: Mapping[str, str], field: str) -> Known:
    if not options.get("constitution"):
        raise SetupError(
            "fake/knows does not say whose tests it knows",
            field=field,
            fix="name a constitution: fake/knows?constitution=hhh",
        )
    constitution, path = load_constitution(options["constitution"])
    if not constitution.tests:
        raise SetupError(
            "has no tests for fake/knows to know", file=path, fix="add `tests` to its principles"
        )
    return Known(constitution)


def _flag(options: Mapping[str, str], name: str, default: str, field: str) -> bool:
    value = options.get(name, default)
    if value not in ("yes", "no"):
        raise SetupError(f"the option {name} must be yes or no", field=field)
    return value == "yes"


def _number(options: Mapping[str, str], name: str, default: str, field: str) -> float:
    try:
        return float(options.get(name, default))
    except ValueError as e:
        raise SetupError(f"the option {name} must be a number", field=field) from e

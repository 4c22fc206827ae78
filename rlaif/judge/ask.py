"""The calls behind a judgment: which prompts a mode asks, and in which order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from rlaif.callstore import call_key
from rlaif.constitution import Constitution, Principle
from rlaif.errors import CallError, SetupError
from rlaif.judge.aggregate import Pair, compare
from rlaif.judge.read import Labels, Verdict, read_verdict
from rlaif.models.client import Answer, Client
from rlaif.models.pool import ModelConfig
from rlaif.templates import Template
from rlaif.types import ChatRequest, Comparison, Judgment, Order, Response, Sampling

PAIR_LABELS: Labels = ("A", "B")
POINT_LABELS: Labels = ("yes", "no")
TOP_LOGPROBS = 20
Mode = Literal["pairwise", "critique", "reasoning", "pointwise"]
VERDICT_TEMPLATE: dict[Mode, str] = {
    "pairwise": "compare",
    "critique": "compare_critiqued",
    "reasoning": "compare_reasoned",
    "pointwise": "pointwise",
}
SHARED = {"conversation", "principle", "labels"}
PAIRED = SHARED | {"response_a", "response_b"}
VARIABLES: dict[Mode, set[str]] = {
    "pairwise": PAIRED,
    "critique": PAIRED | {"critique_a", "critique_b"},
    "reasoning": PAIRED | {"rationale"},
    "pointwise": SHARED | {"response"},
}
Show = Callable[[str, int], Any]
"""Opens a progress display: label, total -> context manager that gives `advance(done, note)`."""


class JudgeConfig(ModelConfig):
    """The judge, what it judges by, and how its answers are read."""

    constitution: str
    """Constitution file, or the name of one of ours: hhh, harmless, concise."""
    mode: Mode = "pairwise"
    """How the judge is asked. pairwise: a one-token verdict; critique: a critique of each response
    first, then the verdict; reasoning: a rationale first, then the verdict; pointwise: yes or no
    on each response by itself, and the two log-odds compared."""
    template: str | None = None
    """Another template (path or name) for the verdict; the mode says which variables it gets."""
    both_orders: bool = True
    """Ask every pair in both orders and average. One order halves the cost and leaves the judge's
    position bias in the labels; every row says which was done."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of critiques, rationales and text verdicts."""
    critique_tokens: int = Field(default=160, ge=1)
    """Most tokens of a critique or rationale."""
    text_verdict_tokens: int = Field(default=16, ge=2)
    """Most tokens of a verdict that is read from text, where a judge gives no log-probabilities
    (with them it is always one token). A judge that likes to talk needs more room; the last verdict
    counts, and a cut one is unscored."""
    min_label_mass: float = Field(default=0.1, ge=0, le=1)
    """A verdict whose labels hold less probability than this together is unscored."""
    tie_margin: float = Field(default=0.01, ge=0, lt=0.5)
    """Comparisons with |p - 0.5| up to this are ties."""
    min_voting_weight: float = Field(default=0.5, gt=0, le=1)
    """A comparison is scored when principles with at least this share of the weight voted."""
    max_unscored: float = Field(default=0.1, ge=0, le=1)
    """Exit code 3 when a larger share of comparisons ends unscored; what was answered is kept."""


class _Ask(NamedTuple):
    """One judgment to be made."""

    pair: Pair
    principle: Principle
    order: Order

    @property
    def shown(self) -> tuple[Response, Response]:
        """The responses as A and B."""
        if self.order == "swapped":
            return self.pair.second, self.pair.first
        return self.pair.first, self.pair.second


class Judge:
    """One judge with one constitution: templates are found and checked when it is made."""

    def __init__(self, config: JudgeConfig, constitution: Constitution) -> None:
        self.config = config
        self.constitution = constitution
        self.labels = POINT_LABELS if config.mode == "pointwise" else PAIR_LABELS
        self._verdict = Template(
            config.template or VERDICT_TEMPLATE[config.mode], VARIABLES[config.mode]
        )
        self._critique = Template("critique", {"conversation", "response", "principle"})
        self._reason = Template("reason", PAIRED)
        if config.mode == "pointwise":
            self.orders: tuple[Order, ...] = ("none",)
        else:
            self.orders = ("forward", "swapped") if config.both_orders else ("forward",)

    async def judge(
        self, pairs: Sequence[Pair], client: Client, show: Show
    ) -> tuple[list[Judgment], list[Comparison]]:
        """Asks everything there is to ask about the pairs and adds it up.

        Returns a judgment for every pair, principle and order, and a comparison for every pair,
        both in the order of the pairs. A call that failed makes its judgment unscored.
        """
        if self.config.mode == "pointwise" and not client.model.gives_logprobs:
            raise SetupError(
                f"mode pointwise needs log-probabilities, and {client.model.identity} gives none",
                field="judge.mode",
                fix="use pairwise, critique or reasoning with this judge",
            )
        asks = [
            _Ask(pair, principle, order)
            for pair in pairs
            for principle in self.constitution.principles
            for order in self.orders
        ]
        # What stands before the verdict: texts that its prompt quotes.
        before = [self._before(ask, client) for ask in asks]
        texts = await _ask_all(client, [r for rs in before for r in rs], show, "critiques")
        verdicts = [
            self._verdict_requests(ask, [texts[call_key(r)] for r in requests], client)
            for ask, requests in zip(asks, before, strict=True)
        ]
        answers = await _ask_all(client, [r for rs in verdicts for r in rs], show, "judgments")
        judgments = [
            self._judgment(ask, requests_before, requests, texts, answers)
            for ask, requests_before, requests in zip(asks, before, verdicts, strict=True)
        ]
        per_pair = len(self.constitution.principles) * len(self.orders)
        comparisons = [
            compare(
                pair,
                judgments[i * per_pair : (i + 1) * per_pair],
                self.constitution,
                orders=len(self.orders),
                tie_margin=self.config.tie_margin,
                min_voting_weight=self.config.min_voting_weight,
            )
            for i, pair in enumerate(pairs)
        ]
        return judgments, comparisons

    def _request(
        self, template: Template, client: Client, tokens: int, logprobs: int, **variables: Any
    ) -> ChatRequest:
        return ChatRequest(
            model=client.model.identity,
            messages=template.render(variables),
            sampling=Sampling(
                max_tokens=tokens, temperature=self.config.temperature, top_logprobs=logprobs
            ),
        )

    def _before(self, ask: _Ask, client: Client) -> list[ChatRequest]:
        tokens = self.config.critique_tokens
        if self.config.mode == "critique":
            return [
                self._request(
                    self._critique,
                    client,
                    tokens,
                    0,
                    conversation=ask.pair.prompt.messages,
                    response=response.text,
                    principle=ask.principle,
                )
                for response in ask.shown
            ]
        if self.config.mode == "reasoning":
            return [self._request(self._reason, client, tokens, 0, **self._paired(ask))]
        return []

    def _verdict_requests(
        self, ask: _Ask, before: Sequence[Answer], client: Client
    ) -> list[ChatRequest]:
        """The verdict's calls; none where what it should quote failed."""
        quoted = [answer.choices[0].text for answer in before if not isinstance(answer, CallError)]
        if len(quoted) < len(before):
            return []
        gives = client.model.gives_logprobs
        tokens, logprobs = (1, TOP_LOGPROBS) if gives else (self.config.text_verdict_tokens, 0)
        if self.config.mode == "pointwise":
            return [
                self._request(
                    self._verdict,
                    client,
                    tokens,
                    logprobs,
                    conversation=ask.pair.prompt.messages,
                    response=response.text,
                    principle=ask.principle,
                    labels=self.labels,
                )
                for response in ask.shown
            ]
        names = {"critique": ("critique_a", "critique_b"), "reasoning": ("rationale",)}
        extra = dict(zip(names.get(self.config.mode, ()), quoted, strict=True))
        return [
            self._request(self._verdict, client, tokens, logprobs, **self._paired(ask), **extra)
        ]

    def _paired(self, ask: _Ask) -> dict[str, Any]:
        shown_a, shown_b = ask.shown
        return {
            "conversation": ask.pair.prompt.messages,
            "response_a": shown_a.text,
            "response_b": shown_b.text,
            "principle": ask.principle,
            "labels": self.labels,
        }

    def _judgment(
        self,
        ask: _Ask,
        before: Sequence[ChatRequest],
        verdict: Sequence[ChatRequest],
        texts: dict[str, Answer],
        answers: dict[str, Answer],
    ) -> Judgment:
        given = [texts[call_key(r)] for r in before] + [answers[call_key(r)] for r in verdict]
        failed = [answer.reason for answer in given if isinstance(answer, CallError)]
        p_first: float | None = None
        mass: float | None = None
        reason = failed[0] if failed else ""
        if not failed:
            replies = [answers[call_key(r)] for r in verdict]
            read = [
                read_verdict(reply.choices[0], self.labels, self.config.min_label_mass)
                for reply in replies
                if not isinstance(reply, CallError)
            ]
            p_first, mass, reason = _pointwise(read) if len(read) == 2 else read[0]
        if p_first is not None and ask.order == "swapped":
            p_first = 1.0 - p_first
        return Judgment(
            comparison_id=ask.pair.id,
            principle_id=ask.principle.id,
            order=ask.order,
            p_first=p_first,
            label_mass=mass,
            reason=reason,
            calls=tuple(call_key(r) for r in (*before, *verdict)),
        )


def _pointwise(read: Sequence[Verdict]) -> Verdict:
    """P(first preferred) = sigmoid(logit p_yes(first) - logit p_yes(second))."""
    masses = [v.label_mass for v in read if v.label_mass is not None]
    mass = min(masses) if masses else None
    logits = []
    for verdict in read:
        if verdict.p_first_label is None:
            return Verdict(None, mass, verdict.reason)
        if verdict.label_mass is None:
            # A yes in text has no odds to compare with another yes.
            return Verdict(None, None, "no_logprobs")
        # A label outside the returned alternatives reads as exactly 0; its log-odds are unknown
        # but finite, and a double holds nothing beyond this.
        p = min(max(verdict.p_first_label, 1e-12), 1 - 1e-12)
        logits.append(math.log(p) - math.log1p(-p))
    return Verdict(1 / (1 + math.exp(logits[1] - logits[0])), mass, "")


async def _ask_all(
    client: Client, requests: Sequence[ChatRequest], show: Show, label: str
) -> dict[str, Answer]:
    distinct = {call_key(r): r for r in requests}
    with show(label, len(distinct)) as advance:
        answers = await client.ask_all(list(distinct.values()), advance)
    return dict(zip(distinct, answers, strict=True))

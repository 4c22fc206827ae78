"""One judge: every judgment that a set of pairs needs, asked, read and added up."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlaif.callstore import call_key
from rlaif.constitution import Constitution, Principle
from rlaif.errors import CallError, SetupError
from rlaif.judge.aggregate import Pair, Rule, compare
from rlaif.judge.config import AskConfig, JudgeConfig
from rlaif.judge.forms import Ask, Asked, Form
from rlaif.judge.injections import INJECTED
from rlaif.models.client import Answer, Client
from rlaif.models.flow import flow
from rlaif.types import ChatRequest, Comparison, Judgment, Message, Prompt, Response

Show = Callable[[str, int, str], Any]
"""Opens a progress display: label, total, unit -> context manager that gives
`advance(done, note)`."""


EXAMPLE = Pair(
    Prompt(id="example", messages=(Message(role="user", content="Why?"),)),
    *(
        Response(
            id=f"example/{i}",
            prompt_id="example",
            text=text,
            finish_reason="stop",
            model="",
            call="",
        )
        for i, text in enumerate(("Because.", "It depends."))
    ),
)


READING = 1
"""Raised when the same answers come to be read in another way."""


class OfPair(NamedTuple):
    """What one judge says of one pair."""

    pair: Pair
    judgments: list[Judgment]
    """In the order asked."""
    comparison: Comparison


class Tiers:
    """Which principles a pair is asked under, and in which order."""

    def __init__(
        self,
        config: JudgeConfig,
        constitution: Constitution,
        seed: int,
        under: Mapping[str, str] | None = None,
    ) -> None:
        """`under`: pair id -> the one principle that it is asked under, whatever its weight."""
        self._under = under or {}
        self.principles = principles = constitution.principles
        self._seed = seed
        self.draws = config.principles == "sample"
        ranks = sorted({p.tier for p in principles}) if config.principles == "tiers" else [None]
        self._tiers = [[p for p in principles if rank in (None, p.tier)] for rank in ranks]

    def __len__(self) -> int:
        return len(self._tiers)

    def of(self, pair: Pair) -> list[list[Principle]]:
        """The pair's tiers, of the principles that apply to its prompt; a tier without weight is
        left out. With `sample` one principle, drawn by weight from the seed and the pair, the same
        whichever of the two comes first."""
        if only := self._under.get(pair.id):
            principle = next(p for p in self.principles if p.id == only)
            alone = principle.model_copy(update={"weight": principle.weight or 1.0})
            return [[alone]] if alone.applies(pair.prompt) else []
        tiers = self.meant(pair)
        if not self.draws or not tiers:
            return tiers
        return [[draw(tiers[0], *self.seed_of(pair))]]

    def meant(self, pair: Pair) -> list[list[Principle]]:
        """As `of`, with all that `sample` draws one from."""
        tiers = [[p for p in tier if p.applies(pair.prompt)] for tier in self._tiers]
        return [tier for tier in tiers if any(p.weight for p in tier)]

    def seed_of(self, pair: Pair) -> list[str]:
        """What the principle of a pair is drawn from, whichever of the two comes first."""
        # What is injected into a response for a trial must not change what it is judged by.
        ids = sorted(r.id.partition(INJECTED)[0] for r in (pair.first, pair.second))
        return [str(self._seed), *ids]


def draw(principles: Sequence[Principle], *seed: str) -> Principle:
    """One principle, drawn by weight from the sha256 of the seed's parts.

    Each draws a lot of its own, so that one that comes or goes changes just the draws that it wins:
    an edited constitution is asked about little anew. Source: Efraimidis & Spirakis (2006),
    Weighted random sampling with a reservoir, algorithm A.
    """
    by_id = {p.id: p for p in principles}
    return by_id[drawn({p.id: p.weight for p in principles}, lots_of(by_id, *seed))]


def lots_of(ids: Iterable[str], *seed: str) -> dict[str, float]:
    """Principle id -> what it draws: exponentially distributed, with mean 1."""
    found = {}
    for i in ids:
        sha256 = hashlib.sha256(":".join((*seed, i)).encode()).hexdigest()
        found[i] = -math.log((int(sha256[:13], 16) + 0.5) / 16**13)
    return found


def drawn(weights: Mapping[str, float], lots: Mapping[str, float]) -> str:
    """The id whose lot wins, in proportion to the weights: the least lot for its weight."""
    return min((i for i in weights if weights[i]), key=lambda i: lots[i] / weights[i])


class Judge:
    """One judge with the templates of its mode, put to work through one client."""

    def __init__(
        self, config: AskConfig, client: Client, tiers: Tiers, rule: Rule, *, field: str, name: str
    ) -> None:
        """`field` is where the judge stands in the config, `name` what its judgments are signed
        with. Raises SetupError for templates that are not in order and for a mode that the
        model's kind cannot be asked in."""
        model = client.model
        self.name = name
        self.form = Form(config, Asked(model.identity, model.gives_logprobs, model.max_n))
        self.client = client
        self._tiers = tiers
        self._rule = rule
        self._field = field.removesuffix(".model")
        self.form.check(field)

    def way(self) -> Mapping[str, Any]:
        """All that shapes this judge's verdicts, as plain values: the calls that an example pair
        would need (model, prompts, sampling) and how their answers are read."""
        asks = [
            Ask(EXAMPLE, p, order) for p in self._tiers.principles for order in self.form.orders
        ]
        calls = []
        for ask in asks:
            before = self.form.before(ask)
            calls += [call_key(r) for r in (*before, *self.form.verdict(ask, ["…"] * len(before)))]
        return {
            "mode": self.form.config.mode,
            "reading": [
                self.form.reads_logprobs,
                self.form.config.clamp,
                self.form.config.min_label_mass,
                READING,
            ],
            # A template may have branches that the example does not reach.
            "templates": [template.digest for template in self.form.templates],
            "calls": calls,
        }

    async def judge(
        self, pairs: Sequence[Pair], show: Show, hand_over: Callable[[OfPair], None]
    ) -> None:
        """Hands over what `of_pair` says of each pair, in their order, many asked at once. Raises
        SetupError, before anything is asked, for a wording that a prompt cannot fill."""
        for pair in pairs:
            for principle in (p for tier in self._tiers.of(pair) for p in tier):
                if principle.asks_the_prompt:
                    principle.worded(pair.prompt)
        with show("judging", len(pairs), "comparisons") as advance:
            count = itertools.count(1)

            def told(of_pair: OfPair) -> None:
                hand_over(of_pair)
                advance(next(count), self.client.note)

            await flow(pairs, self.of_pair, told, window=self.client.window)

    async def of_pair(self, pair: Pair) -> OfPair:
        """Asks tier after tier, the next one only if the pair is still undecided. Within a tier all
        is asked at once, so that a server's cache serves what the calls share.

        A call that failed makes its judgment unscored. Raises SetupError, before anything is
        asked, where the judge's server cannot give what the mode reads.
        """
        tiers = self._tiers.of(pair)
        given: list[Judgment] = []
        for depth in range(max(len(tiers), 1)):
            asks = [
                Ask(pair, principle.worded(pair.prompt), order, len(tiers[depth]) > 1)
                for principle in (tiers[depth] if tiers else ())
                for order in self.form.orders
            ]
            given += await asyncio.gather(*(self._judgment(ask) for ask in asks))
            comparison = compare(
                pair,
                given,
                tiers[: depth + 1],
                self._rule,
                judge=self.name,
                orders=len(self.form.orders),
            )
            if comparison.outcome != "tie" or pair.same_text:
                break
        return OfPair(pair, given, comparison)

    async def _judgment(self, ask: Ask) -> Judgment:
        before = self.form.before(ask)
        said = await self._answers(before)
        quoted = [answer.choices[0].text for answer in said if not isinstance(answer, CallError)]
        # Nothing is asked where what the verdict should quote has failed.
        verdicts = self.form.verdict(ask, quoted) if len(quoted) == len(said) else []
        answers = [*said, *await self._answers(verdicts)]
        return self._read(ask, [*before, *verdicts], len(verdicts), answers)

    async def _answers(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        ask = self.client.ask
        if len(requests) == 1:
            return [await ask(requests[0], self._check_reading)]
        return list(await asyncio.gather(*(ask(r, self._check_reading) for r in requests)))

    def _read(
        self, ask: Ask, requests: Sequence[ChatRequest], verdicts: int, given: Sequence[Answer]
    ) -> Judgment:
        calls = tuple(call_key(r) for r in requests)
        failed = [answer.reason for answer in given if isinstance(answer, CallError)]
        p_first = mass = scores = None
        reason = failed[0] if failed else ""
        if not failed:
            replies = [a for a in given[len(given) - verdicts :] if not isinstance(a, CallError)]
            p_first, mass, reason, scores = self.form.read(ask, replies)
        if p_first is not None and ask.order == "swapped":
            p_first = 1.0 - p_first
        return Judgment(
            comparison_id=ask.pair.id,
            judge=self.name,
            principle_id=ask.principle.id,
            order=ask.order,
            p_first=p_first,
            label_mass=mass,
            scores=scores,
            reason=reason,
            calls=calls,
        )

    async def _check_reading(self) -> None:
        """Whether the judge can be read as its mode wants it, before a call is paid for."""
        model, form = self.client.model, self.form
        if not form.reads_logprobs:
            return
        tokens = await model.first_tokens(form.first_tokens)
        if tokens is not None:
            first: dict[int, str] = {}
            for text, token in zip(form.first_tokens, tokens, strict=True):
                if token in first:
                    raise SetupError(
                        f"{first[token]!r} and {text!r} begin with the same token in this judge's "
                        "tokenizer, so a one-token verdict cannot tell them apart",
                        field=f"{self._field}."
                        + ("score_max" if form.config.mode == "score" else "labels"),
                        fix="9 is the longest scale of single digits"
                        if form.config.mode == "score"
                        else "A and B are the default",
                    )
                first[token] = text
        if await model.probe_logprobs() is False:
            single = "pairwise, " if form.config.mode in ("pointwise", "score") else ""
            raise SetupError(
                f"{model.identity} answers without log-probabilities, which mode "
                f"{form.config.mode} reads",
                field=f"{self._field}.mode",
                fix=f"use {single}structured or votes, with logprobs: false",
            )

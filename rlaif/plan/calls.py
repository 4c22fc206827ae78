"""The calls that stages would make: rendered as the stages do it, with stand-ins for answers that
nobody has given yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Literal, NamedTuple

from rlaif.callstore import call_key
from rlaif.files import digest
from rlaif.judge.aggregate import Pair
from rlaif.judge.ask import EXAMPLE, Tiers
from rlaif.judge.config import JudgeConfig
from rlaif.judge.forms import Ask, Asked, Form
from rlaif.plan.figures import Figure, exactly
from rlaif.plan.history import History, Shape, characters, shape_of
from rlaif.plan.voices import Voice, voice_of
from rlaif.types import ChatRequest, Prompt, Response, Sampling

Chance = Literal["sure", "tier", "cascade"]
"""Whether a call is made for sure, only where earlier tiers tie, or only where there is doubt."""
FILLER = "so that the answer says what was asked for and what there is to know about it "
SHORTEST_TAIL, LONGEST_TAIL = 12, 60


class Planned(NamedTuple):
    """A call to be made, unless it is in the store."""

    stage: str
    voice: Voice
    request: ChatRequest
    characters: Figure
    """Of its prompt; a span where it quotes answers that are not there yet."""
    chance: Chance
    stored: bool
    pair: tuple[str, str] | None
    """Prompt and comparison that a judge is asked about."""


class Text(NamedTuple):
    """An answer, or what stands in for one."""

    text: str
    length: Figure
    """In characters."""


class Calls:
    """Collects each distinct call once, in the order of the stages."""

    def __init__(self, history: History) -> None:
        self.history = history
        self._drawn: Counter[tuple[tuple[str, ...], Shape]] = Counter()
        self.found: dict[str, Planned] = {}

    def add(
        self,
        stage: str,
        voice: Voice,
        request: ChatRequest,
        quoted: Sequence[Text] = (),
        chance: Chance = "sure",
        sites: int = 1,
        pair: tuple[str, str] | None = None,
    ) -> list[Text]:
        """Notes a call and returns its answers: those in the store, or stand-ins. `quoted` are the
        answers in its prompt; `sites`: about how many calls like it there are."""
        reply = self.history.reply(request)
        key = call_key(request)
        known = self.found.get(key)
        # The same call in a later stage comes from the store.
        if known is None or (known.chance != "sure" and chance == "sure"):
            size = exactly(characters(request) - sum(text.length.point for text in quoted))
            for text in quoted:
                size = size + text.length
            self.found[key] = Planned(
                known.stage if known else stage,
                voice,
                request,
                size,
                chance,
                reply is not None,
                pair,
            )
        if reply is not None:
            return [Text(c.text.strip(), exactly(len(c.text.strip()))) for c in reply.choices]
        return self._stand_ins(voice, request, key, sites)

    def _stand_ins(self, voice: Voice, request: ChatRequest, key: str, sites: int) -> list[Text]:
        told = self.history.told(voice.like, request)
        n = request.sampling.n
        span = told.length(request.sampling.max_tokens, sites)
        if not told.calls:
            lengths = [max(round(span.point), 1)] * n
            texts = [_filler(f"{key}:{i}", length) for i, length in enumerate(lengths)]
        else:
            # The answers of one stored call together, so that equal ones are as frequent as there.
            # One after the other (by key, so in no order): their mean is that of all.
            kind = voice.like, shape_of(request, self.history.tails)
            drawn = told.calls[self._drawn[kind] % len(told.calls)]
            self._drawn[kind] += 1
            said = [choice.text.strip() for choice in drawn.reply.choices]
            texts = [said[i % len(said)] for i in range(n)]
        return [
            Text(
                text,
                Figure(
                    len(text) * span.low / max(span.point, 1e-9),
                    len(text),
                    len(text) * span.high / max(span.point, 1e-9),
                ),
            )
            for text in texts
        ]

    def sample(
        self, stage: str, voice: Voice, prompts: Sequence[Prompt], k: int, sampling: Sampling
    ) -> list[tuple[Prompt, list[tuple[Response, Text]]]]:
        """As `rlaif.sample.sample` asks for them."""
        per_call = min(k, voice.asked.max_n)
        requests = [
            (
                prompt,
                start,
                ChatRequest(
                    model=voice.asked.identity,
                    messages=prompt.messages,
                    sampling=sampling.model_copy(update={"n": min(per_call, k - start)}),
                    repeat=start // per_call,
                ),
            )
            for prompt in prompts
            for start in range(0, k, per_call)
        ]
        coming = sum(self.history.reply(request) is None for _, _, request in requests)
        answers: dict[str, list[tuple[Response, Text]]] = {p.id: [] for p in prompts}
        for prompt, start, request in requests:
            given = self.add(stage, voice, request, sites=coming)
            for i, text in enumerate(given, start):
                if text.text:  # an answer without text is none
                    found = response(f"{prompt.id}/{i}", prompt, text)
                    answers[prompt.id].append((found, text))
        return [(prompt, answers[prompt.id]) for prompt in prompts]

    def judge(
        self,
        stage: str,
        config: JudgeConfig,
        tiers: Tiers,
        pairs: Sequence[Pair],
        texts: dict[str, Text],
    ) -> None:
        """As `rlaif.judge.panel.Panel` asks. `texts`: response id -> the answer, where the pairs
        have stand-ins."""
        strong = "judge.cascade.model"
        for field, judge in config.judges():
            voice = voice_of(judge, field)
            form = Form(judge, voice.asked)
            for pair in pairs:
                for depth, tier in enumerate(tiers.of(pair)):
                    chance: Chance = "cascade" if field == strong else "tier" if depth else "sure"
                    for principle in tier:
                        worded = principle.worded(pair.prompt)
                        for order in form.orders:
                            ask = Ask(pair, worded, order)
                            self._ask(stage, voice, form, ask, chance, texts, len(pairs))

    def asked_already(self, form: Form, tiers: Tiers, pair: Pair) -> bool:
        """Whether a judge was asked about a pair."""
        for tier in tiers.of(pair)[:1]:
            ask = Ask(pair, tier[0].worded(pair.prompt), form.orders[0])
            first = form.before(ask) or form.verdict(ask, [])
            return self.history.reply(first[0]) is not None
        return False

    def _ask(
        self,
        stage: str,
        voice: Voice,
        form: Form,
        ask: Ask,
        chance: Chance,
        texts: dict[str, Text],
        sites: int,
    ) -> None:
        shown = [texts.get(r.id, Text(r.text, exactly(len(r.text)))) for r in ask.shown]
        about = (ask.pair.prompt.id, ask.pair.id)
        before = form.before(ask)
        alone = len(before) == len(shown)  # a critique of each
        quoted = []
        for i, request in enumerate(before):
            of = [shown[i]] if alone else shown
            quoted += self.add(stage, voice, request, of, chance, sites, about)[:1]
        verdicts = form.verdict(ask, [text.text for text in quoted])
        for i, request in enumerate(verdicts):
            of = [shown[i]] if form.orders == ("none",) else [*shown, *quoted]
            self.add(stage, voice, request, of, chance, sites, about)


def response(name: str, prompt: Prompt, text: Text) -> Response:
    """A response that holds an answer or its stand-in."""
    return Response(
        id=name, prompt_id=prompt.id, text=text.text, finish_reason="stop", model="", call=""
    )


def tails_of(config: JudgeConfig, tiers: Tiers) -> Iterable[str]:
    """How the prompts to a run's judges end, whatever they show."""
    other = EXAMPLE._replace(
        first=EXAMPLE.first.model_copy(update={"text": "One."}),
        second=EXAMPLE.second.model_copy(update={"text": "Two!"}),
    )
    first, last = tiers.principles[0], tiers.principles[-1]
    for _, judge in config.judges():
        form = Form(judge, Asked("", gives_logprobs=True, max_n=1))
        both = []
        for pair, principle, quote in ((EXAMPLE, first, "Yes."), (other, last, "No!")):
            ask = Ask(pair, principle.worded(pair.prompt), form.orders[0])
            before = form.before(ask)
            both.append([*before, *form.verdict(ask, [quote] * len(before))])
        for one, two in zip(*both, strict=True):
            yield common_tail(one, two)


def common_tail(one: ChatRequest, two: ChatRequest) -> str:
    """What both prompts end with; empty where that is too little to know them by."""
    texts = [request.messages[-1].content[: -LONGEST_TAIL - 1 : -1] for request in (one, two)]
    alike = list(takewhile(lambda two: two[0] == two[1], zip(*texts, strict=False)))
    tail = "".join(character for character, _ in reversed(alike))
    return tail if len(tail) >= SHORTEST_TAIL else ""


def _filler(salt: str, length: int) -> str:
    """So many characters, other ones for another salt."""
    own = digest(salt)[:8] + " "
    return (own + FILLER * (length // len(FILLER) + 1))[:length].strip() or own[:1]

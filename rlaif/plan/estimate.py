"""What a run's calls and trainings would take, stage by stage."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.models.prices import Prices
from rlaif.plan.calls import Calls, Chance, Planned
from rlaif.plan.figures import ZERO, Figure, exactly, known, mean_to_come, total
from rlaif.plan.history import History, Shape, Told, characters, shape_of
from rlaif.plan.lee_tables import of_tables
from rlaif.plan.stages import of_run
from rlaif.plan.study import of_study
from rlaif.plan.voices import Voice
from rlaif.plan.workload import Workload
from rlaif.recipe import LeeConfig, RunConfig, StudyConfig
from rlaif.types import Message

CHANCES: Mapping[Chance, Figure] = {
    "sure": exactly(1.0),
    "tier": Figure(0.0, 0.2, 1.0),
    "cascade": Figure(0.0, 0.3, 1.0),
}
"""How many of the calls that hang on a verdict are made. Nothing but the verdicts can tell."""
SAID = {
    "tier": "a later tier of principles is asked about 20 % of the pairs (0 to 100 %)",
    "cascade": "the cascade's strong judge is asked about 30 % of the pairs (0 to 100 %)",
}
MOST_COUNTED = 400
"""Prompts of one kind that are counted token by token."""
ALTERNATIVES_BYTES = 1100
"""Twenty alternatives of a token, as they stand in the store."""
COPIES = Figure(1.0, 1.5, 2.5)
"""Bytes on disk for a byte of calls: pages of the store, and the files that are made of them."""


class Estimate(NamedTuple):
    """What one stage, or all of them, would still take."""

    stage: str
    stored: int
    """Calls whose answers are in the store already: they cost nothing any more."""
    calls: Figure
    input_tokens: Figure
    output_tokens: Figure
    usd: Figure | None
    """None: some model's price is unknown."""
    known_usd: Figure
    """Of those models whose price is known."""
    seconds: Figure | None
    """Without the start of servers; None: unknown."""
    disk_bytes: Figure | None


class Plan(NamedTuple):
    """All stages, and what the figures stand on."""

    stages: tuple[Estimate, ...]
    total: Estimate
    assumed: tuple[str, ...]
    measured: tuple[str, ...]
    unpriced: tuple[str, ...]
    """Models whose price is unknown."""
    memory: Mapping[str, float]
    """Bytes that each training stage takes at most, where that is known."""
    pilot_tells: bool
    """Whether some stage that a pilot asks for has no answer in this run yet."""


Config = RunConfig | StudyConfig | LeeConfig


def estimate(
    config: Config, out: Path, prices: Prices, beside: Sequence[Path], *, batch: bool = False
) -> Plan:
    """What running `config` in `out` would take, from what is stored there and in the run
    directories `beside`. Asks nothing, starts nothing and writes nothing. Raises SetupError.

    `batch`: whether all providers with a batch API are asked through it, whatever the config says.
    """
    with History(out, beside) as history:
        work = _workload(config, out, history, beside)
        notes = _Notes()
        notes.assumed.update(dict.fromkeys(work.assumed))
        shares = _shares(work.calls, notes)
        groups = _groups(work.calls)
        found = []
        for stage in work.stages:
            of_stage = [
                _group(history, prices, notes, batch, shares, *key, members)
                for key, members in groups.items()
                if key[0] == stage
            ]
            stored = sum(c.stage == stage and c.stored for c in work.calls.found.values())
            if stage in work.trained:
                trained = work.trained[stage]
                of_stage.append(Estimate(stage, 0, ZERO, ZERO, ZERO, ZERO, ZERO, *trained))
            found.append(_sum(stage, stored, of_stage))
    return Plan(
        tuple(found),
        _total(found, at_once=work.at_once),
        tuple(notes.assumed),
        tuple(notes.measured),
        tuple(notes.unpriced),
        work.memory,
        any(e.stage in work.piloted and e.calls.high and not e.stored for e in found),
    )


def _workload(config: Config, out: Path, history: History, beside: Sequence[Path]) -> Workload:
    match config:
        case StudyConfig():
            return of_study(config, out, history, beside)
        case LeeConfig():
            return of_tables(config, history)
        case RunConfig():
            return of_run(config, out, history, beside)


class _Notes:
    """What to tell beside the table; dicts as ordered sets."""

    def __init__(self) -> None:
        self.assumed: dict[str, None] = {}
        self.measured: dict[str, None] = {}
        self.unpriced: dict[str, None] = {}


Key = tuple[str, Voice, Shape, Chance]


def _settled(calls: Calls) -> set[tuple[str, str, str]]:
    """Stage, prompt and pair of those about which all that is sure to be asked was answered: what
    hangs on their verdicts was asked then, or is not needed."""
    found: dict[tuple[str, str, str], bool] = {}
    for call in calls.found.values():
        if call.pair is not None and call.chance == "sure":
            at = (call.stage, *call.pair)
            found[at] = found.get(at, True) and call.stored
    return {at for at, stored in found.items() if stored}


def _shares(calls: Calls, notes: _Notes) -> Mapping[Chance, Figure]:
    """How many of the calls that hang on a verdict are made: by the pairs that are settled, else
    assumed. Forgets the calls that settled pairs did not need."""
    settled = _settled(calls)
    seen: dict[Chance, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    open_too = set()
    for key, call in list(calls.found.items()):
        if call.chance == "sure" or call.pair is None:
            continue
        if (call.stage, *call.pair) in settled:
            seen[call.chance][call.pair[0]].append(call.stored)
            if not call.stored:
                del calls.found[key]
        elif not call.stored:
            open_too.add(call.chance)
    shares = dict(CHANCES)
    for chance in sorted(open_too):
        of_prompt = [sum(made) / len(made) for made in seen[chance].values()]
        if len(of_prompt) > 1:
            shares[chance] = mean_to_come(of_prompt, len(calls.found)).within(0.0, 1.0)
        else:
            notes.assumed[SAID[chance]] = None
    return shares


def _groups(calls: Calls) -> dict[Key, list[Planned]]:
    """The calls that nobody has answered, of one stage and kind together."""
    groups: dict[Key, list[Planned]] = defaultdict(list)
    for call in calls.found.values():
        if not call.stored:
            shape = shape_of(call.request, calls.history.tails)
            groups[call.stage, call.voice, shape, call.chance].append(call)
    return groups


def _group(
    history: History,
    prices: Prices,
    notes: _Notes,
    batch: bool,
    shares: Mapping[Chance, Figure],
    stage: str,
    voice: Voice,
    shape: Shape,
    chance: Chance,
    members: Sequence[Planned],
) -> Estimate:
    told = history.told(voice.like, members[0].request)
    share = shares[chance]
    calls, answers = len(members), sum(c.request.sampling.n for c in members)
    a_character = _counted(voice, members, notes) or told.tokens_a_character(calls)
    asked = total(c.characters for c in members).times(a_character)
    prompt = asked.times(share)
    a_token = told.answered_tokens(shape.max_tokens, calls)
    completion = a_token.times(exactly(answers)).times(share)
    _note(notes, told, voice, shape)
    vendor = voice.model.startswith(("openai/", "anthropic/"))
    batched = vendor and (batch or voice.batched)
    usd = _usd(prices, notes, voice, told, prompt, completion, batched)
    made = share.times(exactly(calls))
    seconds = told.seconds(calls, voice.concurrency)
    return Estimate(
        stage,
        0,
        made,
        prompt,
        completion,
        usd,
        usd or ZERO,
        None if seconds is None else seconds.times(share),
        _disk(told, shape, members, answers).times(share),
    )


def _counted(voice: Voice, members: Sequence[Planned], notes: _Notes) -> Figure | None:
    """Tokens a character by the model's own tokenizer, of evenly chosen prompts; None: there is no
    tokenizer at hand."""
    if voice.tokenizer is None or importlib.util.find_spec("transformers") is None:
        return None
    count = _counter(voice.tokenizer)
    if count is None:
        return None
    chosen = members[:: math.ceil(len(members) / MOST_COUNTED)]
    tokens = sum(count(c.request.messages) for c in chosen)
    notes.measured[f"{voice.model}: prompts by its own tokenizer"] = None
    return exactly(tokens / max(sum(characters(c.request) for c in chosen), 1))


@functools.cache
def _counter(folder: Path) -> Callable[[Sequence[Message]], int] | None:
    from rlaif.train.counting import token_counter

    return token_counter(folder)


def _note(notes: _Notes, told: Told, voice: Voice, shape: Shape) -> None:
    model = voice.model
    if told.calls:
        notes.measured[f"{model}: {len(told.calls)} answers like these in {told.where}"] = None
        return
    if not told.of_model and voice.tokenizer is None:
        low, point, high = (1 / x for x in reversed(told.tokens_a_character(1)))
        notes.assumed[f"{model}: {point:.1f} characters a token ({low:.1f} to {high:.1f})"] = None
    if shape.max_tokens > 1:
        low, point, high = told.answered_tokens(shape.max_tokens, 1)
        notes.assumed[
            f"{model}: {point:.0f} tokens an answer ({low:.0f} to {high:.0f}) "
            f"where {shape.max_tokens} are allowed"
        ] = None


def _usd(
    prices: Prices,
    notes: _Notes,
    voice: Voice,
    told: Told,
    prompt: Figure,
    completion: Figure,
    batched: bool,
) -> Figure | None:
    price = voice.price or prices.of(voice.model)
    if price is None:
        notes.unpriced[voice.model] = None
        return None
    read, written = told.cached()

    def bill(at: int, read: float, written: float) -> float:
        return price.usd_of(
            prompt[at],
            completion[at],
            cached=prompt[at] * read,
            written=prompt[at] * written,
            batched=batched,
        )

    # A cache may serve nothing this time.
    return Figure(
        bill(0, read, written),
        bill(1, read, written),
        max(bill(2, read, written), bill(2, 0.0, 0.0)),
    )


def _disk(told: Told, shape: Shape, members: Sequence[Planned], answers: int) -> Figure:
    questions = sum(len(c.request.model_dump_json()) for c in members)
    if told.calls:
        said = sum(len(call.reply.model_dump_json()) for call in told.calls)
        replies = said / sum(len(call.reply.choices) for call in told.calls) * answers
    else:
        length = told.length(shape.max_tokens, answers).point
        replies = answers * (length + (ALTERNATIVES_BYTES if shape.logprobs else 0))
    return COPIES.times(exactly(questions + replies))


def _sum(stage: str, stored: int, of: Sequence[Estimate]) -> Estimate:
    return Estimate(
        stage,
        stored,
        total(e.calls for e in of),
        total(e.input_tokens for e in of),
        total(e.output_tokens for e in of),
        known(e.usd for e in of),
        total(e.known_usd for e in of),
        known(e.seconds for e in of),
        known(e.disk_bytes for e in of),
    )


def _total(stages: Sequence[Estimate], *, at_once: bool) -> Estimate:
    """The sum; two models that are asked at the same time take as long as the slower one."""
    added = _sum("total", sum(e.stored for e in stages), stages)
    both = [e.seconds for e in stages if e.stage in ("sample", "judge")]
    if not at_once or None in both:
        return added
    sampling, judging = (s for s in both if s is not None)
    if added.seconds is None:
        return added
    meanwhile = Figure(*map(min, sampling, judging))
    kept = Figure(*(all_s - s for all_s, s in zip(added.seconds, meanwhile, strict=True)))
    return added._replace(seconds=kept)

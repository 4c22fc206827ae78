"""A study's folder as typed data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from rlaif.arms import START, Trained, Verdict, curve_arms, folder_of
from rlaif.callstore import CallStore
from rlaif.errors import SetupError
from rlaif.evaluate.heldout import Scores
from rlaif.evaluate.schema import ConstitutionFacts
from rlaif.evaluate.study.arm_records import Kind
from rlaif.evaluate.study.records import HumanSection, Spent
from rlaif.files import read_jsonl
from rlaif.models.prices import FREE, Price
from rlaif.types import Comparison, Judgment, PreferenceGroup, Response

_SCORES = TypeAdapter(dict[str, list[float | None]])
_RATIOS = TypeAdapter(list[tuple[str, float]])
_IDS = TypeAdapter(dict[str, list[str]])


class StudySettings(NamedTuple):
    """What a study's report takes from its config."""

    name: str
    description: str
    seed: int
    policy: str
    arms: tuple[str, ...]
    seeds: int
    shares: tuple[float, ...]
    """Of the learning curve, without the whole."""
    margin: float
    tie_margin: float
    """Of the judge: a vote this near to one half names no winner."""
    examples: int
    """Disagreements shown in full."""
    usd_per_human_label: float | None
    labelling: Sequence[Price | None]
    """What each of the judges costs, in the order asked; None: not known."""
    evaluating: Sequence[Price | None]


class Unit(NamedTuple):
    """One trained model."""

    trained: Trained
    scores: Scores
    """Of every held-out group's responses."""


class Said(NamedTuple):
    """What one policy was asked and said."""

    answers: Sequence[Response]
    """To the held-out prompts."""
    refusing: Sequence[Response]
    log_ratios: Sequence[tuple[str, float]]
    """Prompt id and log pi - log pi_start of an answer, nats; empty for the start."""


class StudyData(NamedTuple):
    """All that a study's report is made of."""

    settings: StudySettings
    human: HumanSection
    constitution: ConstitutionFacts
    labelled_by: str
    compared_by: str
    groups: Sequence[PreferenceGroup]
    """With people's labels."""
    comparisons: Sequence[Comparison]
    """The judge's of the same responses, `<prompt id>/<index>`."""
    units: Mapping[tuple[Kind, str, int], Unit]
    """By kind, arm and seed."""
    parts: Mapping[tuple[str, int, float], Unit]
    """Reward models of the learning curve, by arm, seed and share."""
    start: Said
    said: Mapping[tuple[str, int], Said]
    """By arm and seed."""
    harmless: frozenset[str]
    """Ids of the prompts that call for no refusal."""
    harmful: frozenset[str]
    verdicts: Sequence[Verdict]
    labelling: Spent
    answering: Spent
    evaluating: Spent


def read_study(folder: Path, settings: StudySettings, store: CallStore) -> StudyData:
    """Reads what the stages of a study have left. Raises SetupError where something is missing or
    does not fit."""
    arms = folder / "arms"
    groups = read_jsonl(folder / "human.jsonl", PreferenceGroup)
    labeler, evaluation = _part(folder, "labeler"), _part(folder, "evaluation")
    units: dict[tuple[Kind, str, int], Unit] = {}
    said = {}
    parts = {}
    for arm in settings.arms:
        for seed in range(settings.seeds):
            of = arms / folder_of(arm, seed)
            units["reward_model", arm, seed] = _unit(of / "reward_model", groups)
            units["dpo", arm, seed] = _unit(of / "dpo", groups)
            said[arm, seed] = _said(of / "dpo", _read(of / "dpo" / "log_ratios.json", _RATIOS))
            for share in settings.shares if arm in curve_arms(settings.arms) else ():
                part = arms / folder_of(arm, seed, share) / "reward_model"
                parts[arm, seed, share] = unit = _unit(part, groups)
                if unit.trained.share != share:
                    told = f"holds the share {unit.trained.share}, not {share}"
                    raise _stale(part / "trained.json", told)
    start = _said(arms / START, [])
    refusing = _read(arms / START / "refusing_prompts.json", _IDS)
    answered = [r for of in (start, *said.values()) for r in (*of.answers, *of.refusing)]
    return StudyData(
        settings=settings,
        human=HumanSection.model_validate(_part(folder, "human")),
        constitution=ConstitutionFacts.model_validate(labeler["constitution"]),
        labelled_by=labeler["judge"],
        compared_by=evaluation["judge"],
        groups=groups,
        comparisons=read_jsonl(folder / "comparisons.jsonl", Comparison),
        units=units,
        parts=parts,
        start=start,
        said=said,
        harmless=frozenset(refusing["harmless"]),
        harmful=frozenset(refusing["harmful"]),
        verdicts=read_jsonl(folder / "verdicts.jsonl", Verdict),
        labelling=_judging(folder / "judgments.jsonl", labeler, settings.labelling, store),
        answering=_spent({r.call: FREE for r in answered}, store),
        evaluating=_judging(
            folder / "verdict_judgments.jsonl", evaluation, settings.evaluating, store
        ),
    )


def _unit(folder: Path, groups: Sequence[PreferenceGroup]) -> Unit:
    path = folder / "scores.json"
    scores = _read(path, _SCORES)
    for group in groups:
        if group.split != "test":
            continue
        found = scores.get(group.prompt.id, [])
        if len(found) != len(group.responses):
            K = len(group.responses)
            raise _stale(path, f"{group.prompt.id} has {len(found)} scores, not {K}")
    return Unit(_read(folder / "trained.json", TypeAdapter(Trained)), scores)


def _said(folder: Path, log_ratios: list[tuple[str, float]]) -> Said:
    files = (folder / "answers.jsonl", folder / "refusing.jsonl")
    for path in files:
        if not path.is_file():
            raise _stale(path, "is not there")
    answers, refusing = (read_jsonl(path, Response) for path in files)
    return Said(answers, refusing, log_ratios)


def _part(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "parts" / f"{name}.json"
    value: dict[str, Any] = _read(path, TypeAdapter(dict[str, Any]))["value"]
    return value


def _read(path: Path, kind: TypeAdapter[Any]) -> Any:
    try:
        return kind.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise _stale(path, "is not there") from None
    except (ValidationError, json.JSONDecodeError) as e:
        raise _stale(path, f"cannot be read ({str(e).splitlines()[0]})") from e


def _stale(path: Path, problem: str) -> SetupError:
    return SetupError(
        problem, file=path, fix="run the study again: it asks and trains only what is missing"
    )


def _judging(
    path: Path, part: Mapping[str, Any], prices: Sequence[Price | None], store: CallStore
) -> Spent:
    """Of the calls behind judgments. Their judges' names stand in the part in the order asked."""
    of_judge = dict(zip(part["judge"].split(" + "), prices, strict=True))
    return _spent(
        {call: of_judge[j.judge] for j in read_jsonl(path, Judgment) for call in j.calls}, store
    )


def _spent(price_of: Mapping[str, Price | None], store: CallStore) -> Spent:
    """Of calls, each with its price, by what the store holds: the same however often the study was
    stopped and run again."""
    replies = [
        (reply, price)
        for key, price in sorted(price_of.items(), key=lambda item: item[0])
        if (reply := store.get(key)) is not None
    ]
    usd = [None if price is None else price.usd(reply) for reply, price in replies]
    return Spent(
        calls=len(replies),
        prompt_tokens=sum(r.prompt_tokens for r, _ in replies),
        cached_tokens=sum(r.cached_tokens for r, _ in replies),
        completion_tokens=sum(r.completion_tokens for r, _ in replies),
        usd=None if None in usd else sum(x for x in usd if x is not None),
    )


def texts(data: StudyData) -> Iterator[tuple[str, str]]:
    """Id and text of every answer to a held-out prompt."""
    for of in (data.start, *data.said.values()):
        yield from ((r.id, r.text) for r in of.answers)

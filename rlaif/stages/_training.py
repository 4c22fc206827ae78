"""What the training stages share: the start, the stamp, the groups and their held-out figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from rlaif.errors import SetupError
from rlaif.evaluate.heldout import Scores, accuracy
from rlaif.files import digest, need_space, read_jsonl, write_text
from rlaif.interrupts import interruptible
from rlaif.models.names import parse_model
from rlaif.models.pool import identity_of, weights_of
from rlaif.progress import Advance, progress, say
from rlaif.train.settings import DPOSettings, TrainSettings, require_torch
from rlaif.types import PreferenceGroup
from rlaif.workspace import Workspace

NEEDED_MB = 2_000
SHOWN = ("loss", "accuracy", "kl", "proxy")
"""Figures of a step that the progress display shows."""
ScoreRows = list[list[float | None]]
OnStep = Callable[[int, int, Mapping[str, float]], None]


class Start(NamedTuple):
    """Weights that a training starts from."""

    model: str
    """Model string."""
    weights: str
    """Folder or hub name."""
    identity: str


def start_weights(base: str | None, policy: str, field: str) -> Start:
    """`base`, or the policy's own weights where none is named."""
    model, place = (policy, "policy.model") if base is None else (base, f"{field}.base")
    weights = weights_of(model, place)
    return Start(model, weights, identity_of(parse_model(model, place), place))


def train(
    name: str,
    out: Path,
    settings: TrainSettings,
    start: Start,
    work: Workspace,
    fit: Callable[[list[PreferenceGroup], OnStep], Any],
    score: Callable[[list[PreferenceGroup], OnStep], ScoreRows],
    section: Callable[[Mapping[str, Any]], BaseModel],
) -> None:
    """Fits on the train groups, scores all of them, and saves the report's part made by `section`
    of the fields that both parts have. Nothing is done when `out` was already made from the same
    groups, settings and start."""
    groups = read_jsonl(work.groups, PreferenceGroup)
    if work.part("pairs") is None:
        raise SetupError(
            "the groups are not of the present comparisons",
            file=work.groups,
            fix="run `rlaif pairs` first",
        )

    def make() -> BaseModel:
        with settings_of(name), interruptible(), Steps(f"{name} training", "steps") as on_step:
            result = fit([g for g in groups if g.split == "train"], on_step)
        with interruptible(), Steps(f"{name} scoring", "groups") as on_step:
            scores = dict(zip((g.prompt.id for g in groups), score(groups, on_step), strict=True))
        save_scores(work, name, scores)
        found = accuracy(groups, scores, work.seed)
        fields = {
            "base": start.identity,
            "steps": result.steps,
            "seconds": result.seconds,
            "losses": result.losses,
            "accuracies": result.accuracies,
            "groups": result.groups,
            "dropped_responses": result.dropped_responses,
            "train_accuracy": found.train,
            "held_out_accuracy": found.held_out,
            "longer_wins": found.longer_wins,
        }
        return section(fields)

    data = {"groups": digest([g.model_dump(mode="json") for g in groups])}
    make_once(name, out, data, settings, start, work, make)


def make_once(
    name: str,
    out: Path,
    data: Mapping[str, str],
    settings: BaseModel,
    start: Start,
    work: Workspace,
    make: Callable[[], BaseModel],
) -> None:
    """Makes the folder `out` and saves the report's part, which `make` returns. Nothing is done
    when `out` was already made from the same data (their digests), settings and start."""
    require_torch()
    need_space(work.directory, NEEDED_MB)
    inputs = {
        **data,
        "settings": settings.model_dump(mode="json"),
        "start": start.identity,
        "seed": work.seed,
    }
    if work.is_made(out, inputs) and work.part(name) is not None:
        say(f"{name}: already made from the same {' and '.join(data)} and settings")
        return
    # Killed from here on, nothing is told of what may be half of the old and half of the new.
    work.drop_part(name)
    if name == "reward_model":
        # It says how far the reward model and DPO agree; `compare` asks nothing to say it again.
        work.drop_part("comparison")
    work.save_part(name, make())
    # Last: whatever is killed before is made again.
    work.mark_made(out, inputs)


def reference_log_probs(
    groups: Sequence[PreferenceGroup], start: Start, settings: DPOSettings, work: Workspace
) -> ScoreRows:
    """log pi_ref of each response of each group: scored once, and not again while responses and
    start stay the same, whatever the labels."""
    stamp = digest(
        [start.identity, settings.max_length, settings.dtype]
        + [[g.prompt.model_dump(mode="json"), g.responses, g.ended] for g in groups]
    )
    path = work.directory / "scores" / "reference.json"
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["stamp"] == stamp:
            rows: ScoreRows = kept["log_probs"]
            return rows
    with Steps("reference scoring", "groups") as on_step:
        rows = _log_probs(start.weights, groups, settings, on_step)
    write_text(path, json.dumps({"stamp": stamp, "log_probs": rows}) + "\n")
    return rows


def implicit_rewards(
    policy: Path,
    groups: Sequence[PreferenceGroup],
    settings: DPOSettings,
    reference: ScoreRows,
    on_step: OnStep,
) -> ScoreRows:
    """beta (log pi - log pi_ref) of each response of each group."""
    return [
        [
            None if p is None or q is None else settings.beta * (p - q)
            for p, q in zip(p_K, q_K, strict=True)
        ]
        for p_K, q_K in zip(
            _log_probs(str(policy), groups, settings, on_step), reference, strict=True
        )
    ]


def _log_probs(
    model: str, groups: Sequence[PreferenceGroup], settings: DPOSettings, on_step: OnStep
) -> ScoreRows:
    from rlaif.train.scoring import response_logprobs

    items = [(g.prompt, g.responses) for g in groups]
    ended = [g.ended for g in groups]
    return response_logprobs(model, items, settings.max_length, on_step, ended, settings.dtype)


def save_scores(work: Workspace, name: str, scores: Scores) -> None:
    """Keeps a score for each response of each group."""
    write_text(work.directory / "scores" / f"{name}.json", json.dumps(scores, indent=0) + "\n")


def load_scores(work: Workspace, name: str) -> Scores:
    """What `save_scores` kept. Raises SetupError where the training stage has not been run."""
    path = work.directory / "scores" / f"{name}.json"
    if not path.is_file():
        raise SetupError(
            "is not there", file=path, fix="run `rlaif train-rm` and `rlaif train-dpo` first"
        )
    loaded: dict[str, list[float | None]] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


@contextmanager
def settings_of(section: str) -> Iterator[None]:
    """Names the recipe's section in an error that tells what to set, and not where."""
    try:
        yield
    except SetupError as e:
        raise e.at(section) from e


class Steps:
    """Opens the progress display at the first step, when the total is known."""

    def __init__(self, label: str, unit: str) -> None:
        self._label, self._unit = label, unit
        self._display: Any = None
        self._advance: Advance | None = None

    def __enter__(self) -> OnStep:
        return self._on_step

    def _on_step(self, step: int, total: int, figures: Mapping[str, float]) -> None:
        if self._advance is None:
            self._display = progress(self._label, total, self._unit)
            self._advance = self._display.__enter__()
        shown = "  ".join(f"{k} {v:.3f}" for k, v in figures.items() if k in SHOWN)
        self._advance(step, shown)

    def __exit__(self, *error: Any) -> None:
        if self._display is not None:
            self._display.__exit__(*error)

"""What a reward model's raw scores mean: `reward.json` beside its weights. Free of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from rlaif.errors import SetupError
from rlaif.files import write_text
from rlaif.types import Record

FILE = "reward.json"
How = Literal["mean", "worst", "uncertain"]

Array = npt.NDArray[np.float64]


class RewardScale(Record):
    """Where the zero and the unit of a reward model's scores lie."""

    mean: tuple[float, ...] = Field(min_length=1)
    """Mean raw score of each of the M members on the start policy's own responses, in nats."""
    std: tuple[float, ...] = Field(min_length=1)
    """Standard deviation of the same."""
    responses: int = Field(ge=1)
    """How many responses these are of."""
    temperature: float | None = Field(gt=0)
    """sigmoid(difference of mean raw scores / temperature) is the calibrated P(first preferred).
    None where held-out labels give none: there were too few, or all are ordered as labelled, or no
    more of them than by chance."""
    pairs: int | None = Field(default=None, ge=1)
    """How many held-out pairs that temperature is of; None: without one, or not known."""

    def normalised(self, raw_NM: npt.ArrayLike) -> Array:
        """Raw scores (..., M) with mean 0 and variance 1 on the start policy's responses, so that
        members can be compared and a KL coefficient means the same for every reward model."""
        raw_NM = np.asarray(raw_NM, dtype=np.float64)
        return np.asarray((raw_NM - np.array(self.mean)) / np.array(self.std))


def p_preferred(difference_NM: npt.ArrayLike, temperature: float | None = None) -> Array:
    """Bradley-Terry's sigmoid of the members' mean difference of raw scores (..., M) -> (...); as
    they are without a temperature."""
    logit_N = np.asarray(difference_NM, dtype=np.float64).mean(axis=-1) / (temperature or 1.0)
    return np.asarray((1.0 + np.tanh(logit_N / 2.0)) / 2.0)


class Score(NamedTuple):
    """What a reward model says of one response."""

    score: float
    """`combined` of `members_M`."""
    members_M: tuple[float, ...]
    """Normalised by the model's `RewardScale`: 0 is the mean of the start policy's own responses, 1
    their standard deviation. Raw where there is no scale."""
    raw_M: tuple[float, ...]
    """In nats, as the plain model gives them."""


class Best(NamedTuple):
    """The response that a reward model likes best."""

    chosen: int | None
    """The first of those with the highest score; None: none of the responses has one."""
    scores_K: list[Score | None]


def best(scores_K: list[Score | None]) -> Best:
    """The best of K scores."""
    known = [(k, score.score) for k, score in enumerate(scores_K) if score is not None]
    # max takes the first of equals.
    return Best(max(known, key=lambda one: one[1])[0] if known else None, scores_K)


def scale_of(
    scores_NM: npt.ArrayLike, temperature: float | None = None, pairs: int | None = None
) -> RewardScale:
    """The scale on which these raw scores of the start policy's responses (N, M) have mean 0 and
    variance 1, with the temperature that so many held-out pairs gave. Raises ValueError where a
    member gives all of them the same score."""
    scores_NM = np.asarray(scores_NM, dtype=np.float64)
    std_M = scores_NM.std(axis=0)
    if not (std_M > 0).all():
        raise ValueError("a member gives every response the same score")
    return RewardScale(
        mean=tuple(scores_NM.mean(axis=0).tolist()),
        std=tuple(std_M.tolist()),
        responses=len(scores_NM),
        temperature=temperature,
        pairs=pairs,
    )


def combined(scores_NM: npt.ArrayLike, how: How, penalty: float = 1.0) -> Array:
    """One score of an ensemble's normalised scores (..., M) -> (...).

    mean; worst: the least of them; uncertain: mean - `penalty` times their variance. Coste et al.
    (2023), Reward model ensembles help mitigate overoptimization, section 3.
    """
    scores_NM = np.asarray(scores_NM, dtype=np.float64)
    match how:
        case "mean":
            return np.asarray(scores_NM.mean(axis=-1))
        case "worst":
            return np.asarray(scores_NM.min(axis=-1))
        case "uncertain":
            return np.asarray(scores_NM.mean(axis=-1) - penalty * scores_NM.var(axis=-1))


def write_scale(scale: RewardScale, folder: Path) -> None:
    """Writes it beside the weights."""
    write_text(folder / FILE, json.dumps(scale.model_dump(mode="json"), indent=2) + "\n")


def read_scale(folder: Path) -> RewardScale | None:
    """What `write_scale` wrote; None for a reward model of another's making. Raises SetupError."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return RewardScale.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as e:
        raise SetupError("is not what train-rm wrote", file=path, fix="train it again") from e

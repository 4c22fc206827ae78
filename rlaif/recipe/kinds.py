"""What `rlaif run` runs besides a run: other kinds of config, each with a way of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.config import load_config
from rlaif.recipe.config import kind_in, named, path_of
from rlaif.recipe.lee_tables import LeeConfig, execute_lee
from rlaif.recipe.study import StudyConfig, execute_study

Other = LeeConfig | StudyConfig
"""A config that is not a run's."""


class Kind(NamedTuple):
    config: type[Other]
    execute: Callable[..., list[str]]
    """Takes the config, the folder, `reconfigure` and `gate`; returns what to tell."""


KINDS: Mapping[str, Kind] = {
    "shots": Kind(LeeConfig, execute_lee),
    "human": Kind(StudyConfig, execute_study),
}
"""By the field that tells a recipe's kind (see `recipe.config.KINDS`)."""


def kind_of(recipe: str | None, out: Path | None) -> Kind | None:
    """The kind of a recipe, or of the folder of one; None: a run. Raises SetupError as
    `load_run`."""
    key = kind_in(path_of(recipe, out))
    return None if key is None else KINDS[key]


def load_as(
    kind: Kind, recipe: str | None, overrides: Sequence[str], out: Path | None
) -> tuple[Other, Path]:
    """As `load_run`, for another kind. Raises SetupError."""
    path = path_of(recipe, out)
    return named(load_config(path, overrides, kind.config), path, out)

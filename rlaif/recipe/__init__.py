"""A whole run: its config, its checks, its stages in order, and the report that grows with them."""

from rlaif.recipe.certifying import load_certify, run_certify
from rlaif.recipe.checks import check_judges
from rlaif.recipe.config import SFT, RunConfig, load_run, recipes
from rlaif.recipe.kinds import KINDS, kind_of, load_as
from rlaif.recipe.lee_tables import LeeConfig
from rlaif.recipe.overoptimizing import run_overoptimize
from rlaif.recipe.running import STAGES, at_once, execute
from rlaif.recipe.status import status
from rlaif.recipe.study import StudyConfig, execute_study

__all__ = [
    "KINDS",
    "SFT",
    "STAGES",
    "LeeConfig",
    "RunConfig",
    "StudyConfig",
    "at_once",
    "check_judges",
    "execute",
    "execute_study",
    "kind_of",
    "load_as",
    "load_certify",
    "load_run",
    "recipes",
    "run_certify",
    "run_overoptimize",
    "status",
]

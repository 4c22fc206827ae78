"""A whole run: its config, its checks, its stages in order, and the report that grows with them."""

from rlaif.recipe.certifying import load_certify, run_certify
from rlaif.recipe.checks import check_judges
from rlaif.recipe.config import SFT, RunConfig, load_run, recipes
from rlaif.recipe.overoptimizing import run_overoptimize
from rlaif.recipe.running import STAGES, at_once, execute
from rlaif.recipe.status import status
from rlaif.recipe.study import StudyConfig, execute_study, is_study, load_study

__all__ = [
    "SFT",
    "STAGES",
    "RunConfig",
    "StudyConfig",
    "at_once",
    "check_judges",
    "execute",
    "execute_study",
    "is_study",
    "load_certify",
    "load_run",
    "load_study",
    "recipes",
    "run_certify",
    "run_overoptimize",
    "status",
]

"""A whole run: its config, its checks, its stages in order, and the report that grows with them."""

from rlaif.recipe.certifying import load_certify, run_certify
from rlaif.recipe.config import RunConfig, load_run, recipes
from rlaif.recipe.running import STAGES, execute

__all__ = [
    "STAGES",
    "RunConfig",
    "execute",
    "load_certify",
    "load_run",
    "recipes",
    "run_certify",
]

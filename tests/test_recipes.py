"""Recipes, their config, and what the command line says of it."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Finished

from rlaif.config import describe, dump_config, load_config
from rlaif.recipe import KINDS, STAGES, RunConfig, kind_of, load_as, load_run, recipes
from rlaif.recipe import config as recipe_config
from rlaif.stages import ORDER

ROOT = Path(__file__).resolve().parent.parent
HUMAN = "human.path=concise"
OTHERS = {
    "rlhf-vs-rlaif": ("human", [HUMAN, "judge.model=fake/shorter"]),
    "lee-tables": ("shots", [HUMAN, "judge.models=[fake/shorter]"]),
}
"""Recipes that are not of a run: what tells their kind, and what they leave to the user."""
ALL = sorted(p.stem for p in (ROOT / "rlaif" / "recipes").glob("*.yaml"))
NAMES = [name for name in ALL if name not in OTHERS]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_and_says_what_it_is_for(name: str) -> None:
    config, out = load_run(name, [], None)
    assert config.name == name
    assert out == Path("outputs") / name
    assert recipes()[name] == config.description != ""


@pytest.mark.parametrize("name", OTHERS)
def test_a_recipe_of_another_kind_is_valid_and_read_back_as_it_was(
    name: str, tmp_path: Path
) -> None:
    key, given = OTHERS[name]
    kind = kind_of(name, None)
    assert kind is KINDS[key]
    config, out = load_as(kind, name, given, None)
    assert out == Path("outputs") / name
    assert recipes()[name] == dict(config)["description"] != ""
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert kind_of(None, tmp_path) is kind
    assert load_as(kind, None, [], tmp_path)[0] == config


def test_every_kind_of_config_can_be_told_and_run() -> None:
    assert list(KINDS) == list(recipe_config.KINDS)
    assert not any(key in RunConfig.model_fields for key in KINDS)
    for kind in KINDS.values():
        assert not [name for name, _, text in describe(kind.config) if not text]


@pytest.mark.parametrize("name", NAMES)
def test_a_resolved_config_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    config, _ = load_run(name, ["sample.k=5", "judge.tie_margin=0.25"], None)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path, [], RunConfig) == config
    assert config.sample.k == 5
    assert config.judge.tie_margin == 0.25


def test_every_stage_that_is_named_can_be_run_and_no_other() -> None:
    assert list(STAGES) == list(ORDER)


def test_every_field_is_documented() -> None:
    undocumented = [name for name, _, text in describe(RunConfig) if not text]
    assert not undocumented


def test_every_field_is_read_by_some_code() -> None:
    read = {
        node.attr
        for path in (ROOT / "rlaif").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    unread = [name for name, _, _ in describe(RunConfig) if name.split(".")[-1] not in read]
    assert not unread


def test_help_of_run_names_every_field_with_its_documentation() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlaif", "run", "--help"], capture_output=True, text=True, check=True
    )
    usage, fields = done.stdout.split("Fields of a recipe")
    assert "Usage: " in usage
    for model in (RunConfig, *(kind.config for kind in KINDS.values())):
        for name, _, text in describe(model):
            assert name in fields
            assert text in fields


@pytest.mark.parametrize(
    ("recipe", "its", "others"),
    [
        ("rlhf-vs-rlaif", "human.test_path =", ["sample.k =", "shots ="]),
        ("lee-tables", "shots =", ["sample.k =", "human.test_path ="]),
        ("smoke", "sample.k =", ["shots =", "human.test_path ="]),
    ],
)
def test_help_on_a_recipe_names_the_fields_of_its_kind_alone(
    recipe: str, its: str, others: list[str]
) -> None:
    for arguments in (["run", recipe, "seed=1", "--help"], ["run", "--help", recipe]):
        done = subprocess.run(
            [sys.executable, "-m", "rlaif", *arguments], capture_output=True, text=True, check=True
        )
        _, fields = done.stdout.split("Fields of a recipe")
        assert f"\n  {its}" in fields
        assert not [other for other in others if f"\n  {other}" in fields]


def test_help_on_a_recipe_that_is_not_there_says_so(run_cli: Callable[..., Finished]) -> None:
    said = run_cli("run", "dmeo", "--help").refused()
    assert said.startswith("recipes: 'dmeo' is neither a file nor one of ours")

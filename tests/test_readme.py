"""Every command of the README is run, in its order, in an empty folder.

The commands that run the embedded model for minutes are not run here: `make demo` is run smaller by
test_real_run.py, `rlaif run planted` by hand before a release (its figures stand in the README).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif.constitution.lint import lint_path

ROOT = Path(__file__).resolve().parent.parent
# Run smaller by test_real_run.py, by hand, or by whoever runs this test (make test).
ELSEWHERE = (
    "make demo",
    "make test",
    "rlaif run demo",
    "rlaif run planted",
    "rlaif run cai",
    # On a run of their own in test_overoptimize_run.py and test_train_rl_stage.py.
    "rlaif overoptimize outputs/smoke gold.judge=fake/longer samples=16",
    "rlaif train-rl --out outputs/smoke rl.steps=2 rl.max_new_tokens=16",
)
CI_SECONDS = 600


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def test_the_readme_begins_with_the_two_commands() -> None:
    assert commands()[:2] == ["make demo", "make test"]


def test_the_make_targets_of_the_readme_do_what_it_says() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "$(BIN)/rlaif run demo" in makefile
    assert "$(BIN)/python -m pytest" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_every_other_command_of_the_readme_runs(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
    }
    ran = [c for c in commands() if c not in ELSEWHERE and not c.startswith("pip install")]
    assert len(ran) >= 8
    for command in ran:
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=CI_SECONDS,
        )
        if done.returncode:
            pytest.fail(f"{command}\n{done.stdout}\n{done.stderr}")


def test_nothing_is_left_to_fill_in_and_every_linked_file_is_there() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert not re.findall(r"\b[A-Z]+_[A-Z]+(?:ION|GRAPH)\b", text)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).is_file(), target


def test_every_recipe_and_constitution_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for path in [
        *(ROOT / "rlaif/recipes").glob("*.yaml"),
        *(ROOT / "constitutions").glob("*.yaml"),
    ]:
        assert f"`{path.stem}`" in text, path.stem


def test_the_constitution_in_the_readme_has_nothing_to_mend(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    examples = re.findall(r"```yaml\n(id: .*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
        found = lint_path(str(tmp_path / "mine.yaml"))
        assert [str(f) for f in found if "no test shows" not in f.problem] == []

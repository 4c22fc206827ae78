"""The wheel carries all that a run needs, and runs from anywhere."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(out),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_carries_constitutions_prompts_and_recipes(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for kind, pattern, folder in (
        ("constitutions", "*.yaml", "rlaif/data/constitutions"),
        ("prompts", "*.j2", "rlaif/data/prompts"),
        ("prompts/sets", "*.jsonl", "rlaif/data/prompts/sets"),
        ("rlaif/recipes", "*.yaml", "rlaif/recipes"),
        ("rlaif/launch", "*.yaml", "rlaif/launch"),
    ):
        ours = {f"{folder}/{p.name}" for p in (ROOT / kind).glob(pattern)}
        assert ours
        assert ours <= set(names)
    assert "rlaif/evaluate/report.html.j2" in names


class Venv:
    """A virtual environment of its own, and a folder far from the checkout to run in."""

    def __init__(self, home: Path) -> None:
        self.elsewhere = home / "elsewhere"
        self.elsewhere.mkdir()
        self._bin = home / "venv" / "bin"
        venv.create(home / "venv", with_pip=True)

    def install(self, *what: str) -> subprocess.CompletedProcess[str]:
        return self._run("python", "-m", "pip", "install", "--quiet", *what)

    def rlaif(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("rlaif", *arguments)

    def has(self, module: str) -> bool:
        return self._run("python", "-c", f"import {module}").returncode == 0

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self._bin / program), *arguments],
            cwd=self.elsewhere,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Venv:
    """The wheel without extras."""
    made = Venv(tmp_path_factory.mktemp("base"))
    done = made.install(str(wheel))
    assert done.returncode == 0, done.stderr
    assert not made.has("torch")
    return made


def test_the_base_install_refuses_a_run_that_trains_before_anything_is_asked(base: Venv) -> None:
    ran = base.rlaif("run", "smoke", "--out", "refused")
    assert ran.returncode == 2
    (line,) = ran.stderr.strip().splitlines()
    assert line.startswith("rlaif: ")
    assert "rlaif[train]" in line
    assert not (base.elsewhere / "refused" / "responses.jsonl").exists()


def test_the_base_install_makes_the_dataset(base: Venv) -> None:
    for arguments in (("plan", "smoke"), ("sample", "smoke"), ("judge",), ("pairs",)):
        ran = base.rlaif(*arguments, "--out", "run")
        assert ran.returncode == 0, ran.stderr
    assert (base.elsewhere / "run/preferences/README.md").is_file()
    assert list((base.elsewhere / "run/preferences/data").glob("train-*.parquet"))
    assert (base.elsewhere / "run/report.html").is_file()


@pytest.mark.skipif("RLAIF_SLOW" not in os.environ, reason="two minutes; set RLAIF_SLOW=1")
def test_the_train_extra_added_to_the_base_install_runs_smoke(base: Venv, wheel: Path) -> None:
    # The torch that this test suite runs on; without naming it, pip takes the build for CUDA.
    import torch

    wanted = f"torch=={torch.__version__}"
    done = base.install(wanted)
    if done.returncode:
        done = base.install(wanted, "--extra-index-url", "https://download.pytorch.org/whl/cpu")
    assert done.returncode == 0, done.stderr
    done = base.install(f"{wheel}[train]")
    assert done.returncode == 0, done.stderr
    for arguments in (["recipes"], ["run", "smoke"]):
        ran = base.rlaif(*arguments)
        assert ran.returncode == 0, ran.stderr
    assert (base.elsewhere / "outputs/smoke/report.html").is_file()
    assert (base.elsewhere / "outputs/smoke/preferences/README.md").is_file()

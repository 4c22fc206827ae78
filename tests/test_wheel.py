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
    ):
        ours = {f"{folder}/{p.name}" for p in (ROOT / kind).glob(pattern)}
        assert ours
        assert ours <= set(names)
    assert "rlaif/evaluate/report.html.j2" in names


def test_an_empty_venv_with_the_wheel_runs_smoke_from_another_folder(
    wheel: Path, tmp_path: Path
) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"

    def pip_install(*what: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *what], capture_output=True, text=True
        )

    # The torch that this test suite runs on; without naming it, pip takes the build for CUDA.
    import torch

    index = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
    done = pip_install(f"torch=={torch.__version__}")
    if done.returncode:
        done = pip_install(f"torch=={torch.__version__}", *index)
    assert done.returncode == 0, done.stderr
    done = pip_install(f"{wheel}[train]")
    assert done.returncode == 0, done.stderr

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for arguments in (["recipes"], ["run", "smoke"]):
        ran = subprocess.run(
            [str(home / "bin" / "rlaif"), *arguments],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
    assert (elsewhere / "outputs/smoke/report.html").is_file()
    assert (elsewhere / "outputs/smoke/preferences/README.md").is_file()


def test_the_base_install_makes_labels_and_says_what_training_needs(
    wheel: Path, tmp_path: Path
) -> None:
    # torch hidden, rather than another venv: what is tested is our own message.
    code = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'torch' else find(n, *a)\n"
        "sys.modules['torch'] = None\n"
        "sys.argv = ['rlaif', 'run', 'smoke', '--out', 'run']\n"
        "from rlaif.cli import main\n"
        "main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.strip().splitlines()[-1].startswith("rlaif: ")
    assert "rlaif[train]" in ran.stderr
    assert (tmp_path / "run/preferences/README.md").is_file()

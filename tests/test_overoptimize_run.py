"""`rlaif overoptimize` on a smoke run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Finished

from rlaif.errors import SetupError
from rlaif.models.gate import Gate
from rlaif.recipe import execute, load_run, run_overoptimize

pytestmark = pytest.mark.usefixtures("one_thread")
Cli = Callable[..., Finished]

GOLD = """
def shorter(messages, text):
    assert messages[-1]["role"] == "user"
    return -float(len(text))

def nothing(messages, text):
    return float("nan")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an ensemble of two heads."""
    out = tmp_path_factory.mktemp("over") / "r"
    changes = ["sample.limit=10", "reward_model.members=2", "pairs.test_fraction=0.3"]
    config, _ = load_run("smoke", changes, out)
    stages = ("sample", "judge", "pairs", "train-rm")
    execute(config, out, stages, reconfigure=False)
    return out


@pytest.fixture(autouse=True)
def gold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gold_functions.py").write_text(GOLD)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_reward_model_is_pushed_to_the_largest_n_and_again_at_no_cost(made: Path) -> None:
    asked = ["gold.function=gold_functions:shorter", "samples=8"]
    told = run_overoptimize(made, asked, Gate())
    assert [line.partition(":")[0] for line in told] == [
        "single",
        "mean",
        "worst",
        "uncertain",
        "curves",
    ]
    assert "at n = 1," in told[0]
    assert "recommended: n =" in told[0]
    curves = (made / "overoptimize" / "curves.json").read_bytes()
    found = json.loads(curves)
    assert [p["n"] for p in found["curves"][0]["points"]] == [1, 2, 4, 8]
    assert found["samples"] == 8
    rows = (made / "overoptimize" / "samples.jsonl").read_text().splitlines()
    assert len(rows) == 8 * found["prompts"]
    assert len(json.loads(rows[0])["rewards"]) == 2
    assert (made / "overoptimize" / "curves.svg").read_text().startswith("<?xml")
    # Whoever asks again is answered from the store: nothing may be asked at all.
    run_overoptimize(made, asked, Gate())
    cost = json.loads((made / "parts" / "cost.json").read_text())["value"]["overoptimize"]
    assert cost["calls_made"] == 0
    assert (made / "overoptimize" / "curves.json").read_bytes() == curves


def test_a_judge_can_be_gold_and_the_one_that_labelled_is_told_of(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_overoptimize(made, ["gold.judge=fake/longer", "samples=2"], Gate())
    assert "warning" not in capsys.readouterr().err
    told = run_overoptimize(made, ["gold.judge=fake/shorter", "samples=2"], Gate())
    assert "the judge that labelled is its own gold here" in capsys.readouterr().err
    assert "no peak" in told[0]


def test_a_reward_model_can_be_gold(made: Path) -> None:
    folder = made / "reward_model"
    told = run_overoptimize(made, [f"gold.reward_model={folder}", "samples=2"], Gate())
    assert told


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["samples=4"], "gold"),
        (["gold.judge=fake/longer", "gold.function=a:b"], "judge and function"),
        (["gold.function=gold_functions"], "names no function"),
        (["gold.function=gold_functions:absent"], "names no function"),
        (["gold.function=gold_functions:nothing", "samples=2"], "gave nan"),
        (["gold.function=gold_functions:shorter", "samples=1"], "samples"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(made: Path, asked: list[str], said: str) -> None:
    with pytest.raises(SetupError, match=said) as e:
        run_overoptimize(made, asked, Gate())
    assert "\n" not in str(e.value)


def test_a_run_without_a_reward_model_is_refused(run_cli: Cli) -> None:
    assert run_cli("sample", "smoke", "sample.limit=2", "--out", "r").code == 0
    line = run_cli("overoptimize", "r", "gold.judge=fake/longer").stopped()
    assert "the reward model is not trained" in line

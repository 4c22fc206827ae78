"""`rlaif overoptimize` on a smoke run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Finished

from rlaif.errors import SetupError
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.overoptimization import Curve, Fit, Overoptimization, Point
from rlaif.models.gate import Gate
from rlaif.recipe import execute, load_run, run_overoptimize
from rlaif.stages.overoptimize import sentences

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
    (tmp_path / "gold").mkdir()
    (tmp_path / "gold" / "functions.py").write_text(GOLD)
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
    assert "gold at the start (n = 1) " in told[0]
    assert ", at the largest n (8) " in told[0]
    assert "recommended: n =" in told[0]
    folder = made / "overoptimize" / "gold-functions-shorter"
    curves = (folder / "curves.json").read_bytes()
    found = json.loads(curves)
    assert [p["n"] for p in found["curves"][0]["points"]] == [1, 2, 4, 8]
    assert found["samples"] == 8
    rows = (folder / "samples.jsonl").read_text().splitlines()
    assert len(rows) == 8 * found["prompts"]
    assert len(json.loads(rows[0])["rewards"]) == 2
    assert (folder / "curves.svg").read_text().startswith("<?xml")
    # Whoever asks again is answered from the store: nothing may be asked at all.
    run_overoptimize(made, asked, Gate())
    cost = json.loads((made / "parts" / "cost.json").read_text())["value"]["overoptimize"]
    assert cost["calls_made"] == 0
    assert (folder / "curves.json").read_bytes() == curves
    # Another gold has curves of its own, also one whose name differs in signs alone.
    told = run_overoptimize(made, ["gold.function=gold.functions:shorter", "samples=8"], Gate())
    assert (folder / "curves.json").read_bytes() == curves
    other = Path(told[-1].removeprefix("curves: ").partition(",")[0])
    assert other.parent.name.startswith("gold-functions-shorter-")
    assert json.loads(other.read_text())["gold"] == "gold.functions:shorter"


@pytest.mark.parametrize(
    ("gold_S", "said"),
    [
        ([0.0, 1.0, 2.0, 3.0], "no peak: it still rises at n = 8"),
        ([3.0, 2.0, 1.0, 0.0], "no peak: it falls from the start"),
        ([1.0, 1.0, 1.0, 1.0], "no peak: it does not change with n"),
        ([1.0, 2.0, 0.0, 1.0], "no fitted peak within the range"),
    ],
)
def test_a_curve_without_a_peak_says_which_way_it_goes(gold_S: list[float], said: str) -> None:
    def point(value: float) -> Interval:
        return Interval(value=value, low=None, high=None, n=8, clusters=1)

    fit = Fit(alpha=point(0), beta=point(0), peak_d=None, peak_kl=None, peak_n=None)
    points = tuple(
        Point(n=2**i, kl=float(i), proxy=point(i), gold=point(value))
        for i, value in enumerate(gold_S)
    )
    one = Curve(name="mean", points=points, fit=fit, recommended_n=1, lost=point(0))
    found = Overoptimization(gold="g", prompts=1, samples=8, curves=(one,))
    (told,) = sentences(found)
    assert f"; {said}; recommended" in told


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
        (["samples=4"], "gold.judge=MODEL, gold.reward_model=DIR and gold.function=.*found none"),
        (["gold.judge=fake/longer", "gold.function=a:b"], "judge and function"),
        (["gold.function=gold_functions"], "names no function"),
        (["gold.function=gold_functions:absent"], "names no function"),
        (["gold.reward_model=outputs/human/reward_model"], "is not there"),
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

"""The recipe rlhf-vs-rlaif through the command line: once whole, once more at no cost, and killed
in its middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Finished

from rlaif.callstore import CallStore
from rlaif.errors import SetupError
from rlaif.evaluate.study.data import StudyData, StudySettings, read_study
from rlaif.files import read_jsonl
from rlaif.recipe import KINDS, StudyConfig, execute_study, load_as
from rlaif.types import Response

pytestmark = pytest.mark.usefixtures("one_thread")

REPORT = ("study.html", "study.json", "study.md")
WORDS = ["tea", "maps", "rain", "cats", "trains", "bread", "stars", "chess"]


def changes(rows: Path) -> list[str]:
    return [
        f"human.path={rows}",
        "human.usd_per_label=0.5",
        "policy.model=embedded/tiny-random",
        "judge.model=fake/shorter",
        "judge.constitution=concise",
        "evaluation.judge=fake/longer",
        "arms=[human,ai_soft]",
        "seeds=2",
        "learning_curve=[]",
        "answers.engine=transformers",
        "answers.max_tokens=4",
        "answers.best_of=2",
        "answers.refusal_prompts=1",
        "answers.harmful=sensitive",
        "reward_model.learning_rate=1e-3",
        "dpo.learning_rate=1e-3",
    ]


class Made(NamedTuple):
    """What a run left behind, read at once: the next run writes over it."""

    told: list[str]
    files: dict[str, bytes]
    trained: dict[str, int]
    """When each training was written, in ns."""
    cost: dict[str, Any]
    calls: int

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.files["study.json"])
        return found


def run(rows: Path, out: Path) -> Made:
    config, folder = load_as(KINDS["human"], "rlhf-vs-rlaif", changes(rows), out)
    assert isinstance(config, StudyConfig)
    told = execute_study(config, folder, reconfigure=False)
    names = [
        *REPORT,
        *(str(p.relative_to(out)) for kind in ("plots", "csv") for p in (out / kind).iterdir()),
    ]
    cost = json.loads((out / "parts" / "cost.json").read_text(encoding="utf-8"))["value"]
    return Made(
        told,
        {name: (out / name).read_bytes() for name in names},
        {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("trained.json")},
        cost,
        sum(of["calls_made"] for of in cost.values()),
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pairs; people mostly choose the longer answer, the judge the shorter one."""
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    long, short = "It is a long story about {}.", "About {}."
    with path.open("w") as file:
        for i in range(16):
            sides = (long, short) if i % 4 else (short, long)
            chosen, rejected = (side.format(WORDS[i % 8]) for side in sides)
            prompt = f"What of {WORDS[i % 8]}, number {i}?"
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            file.write(json.dumps(row) + "\n")
    return path


class Twice(NamedTuple):
    out: Path
    first: Made
    second: Made


@pytest.fixture(scope="module")
def study(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Twice:
    out = tmp_path_factory.mktemp("study") / "run"
    return Twice(out, run(rows, out), run(rows, out))


def test_a_second_run_asks_nothing_trains_nothing_and_writes_the_same_bytes(study: Twice) -> None:
    assert study.first.calls > 0
    assert study.second.calls == 0
    assert len(study.first.trained) == 2 * 2 * 2
    assert study.second.trained == study.first.trained
    assert study.second.files == study.first.files
    assert study.second.told == study.first.told


def test_the_report_tells_of_what_was_run(study: Twice) -> None:
    report = study.first.report
    assert report["labelled_by"] == "fake/shorter"
    assert report["compared_by"] == "fake/longer"
    assert report["kin"] == "family"
    assert report["arms"] == ["human", "ai_soft"]
    assert [p["arm"] for p in report["policies"]] == ["start", "human", "ai_soft"]
    assert set(report["against_start"]) == {"human", "ai_soft"}
    assert set(report["against_human"]) == {"ai_soft"}
    assert report["training"]["unequal"] == []
    # People choose the longer one in 12 of 16 pairs, the judge never does.
    assert report["labels"]["longer_human"]["value"] == 0.75
    assert report["labels"]["every"]["accuracy"]["value"] == 0.25
    assert report["cost"]["usd_per_human_label"] == 0.5


def test_the_calls_of_a_study_are_counted_once_each(study: Twice) -> None:
    report = study.first.report
    made = {stage: of["calls_made"] for stage, of in study.first.cost.items()}
    assert report["cost"]["labelling"]["calls"] == made["judge"]
    assert report["cost"]["evaluating"]["calls"] == made["head-to-head"]
    # What came without text of the policy's own is no answer.
    asked = read_jsonl(study.out / "arms" / "start" / "answers.jsonl", Response)
    assert len({r.call for r in asked}) <= report["cost"]["answering"]["calls"] <= made["arms"]


def test_refusals_are_told_apart_by_the_sets_that_were_asked(study: Twice) -> None:
    sets = json.loads((study.out / "arms" / "start" / "refusing_prompts.json").read_text())
    asked = read_jsonl(study.out / "arms" / "human-0" / "dpo" / "refusing.jsonl", Response)
    assert sets == {"harmless": ["everyday-001"], "harmful": ["sensitive-001"]}
    assert {r.prompt_id for r in asked} == {"everyday-001", "sensitive-001"}


def test_the_main_sentences_and_the_place_of_the_report_are_told(study: Twice) -> None:
    told = study.first.told
    assert told[0].startswith("warning: fake/longer, which compares the policies, is of the family")
    assert told[-1] == f"report: {study.out / 'study.html'}"
    assert any("ai_soft − human" in line for line in told)


def test_a_finished_study_is_shown_again_without_its_data(
    study: Twice, rows: Path, tmp_path: Path, run_cli: Callable[..., Finished]
) -> None:
    folder = Path(shutil.copytree(study.out, tmp_path / "run"))
    for name in REPORT:
        (folder / name).unlink()
    away = rows.rename(rows.with_suffix(".away"))
    try:
        done = run_cli("run", "--out", str(folder))
    finally:
        away.rename(rows)
    assert done.code == 0, done.err
    assert "human.path is gone; what was made of it is in" in done.err
    assert {name: (folder / name).read_bytes() for name in REPORT} == {
        name: study.first.files[name] for name in REPORT
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("arms/human-0/dpo/scores.json", "is not there"),
        ("arms/ai_soft-1/reward_model/trained.json", "is not there"),
        ("arms/start/answers.jsonl", "is not there"),
        ("parts/evaluation.json", "is not there"),
    ],
)
def test_a_folder_that_lacks_something_is_told_of_it(
    study: Twice, tmp_path: Path, name: str, said: str
) -> None:
    folder = Path(shutil.copytree(study.out, tmp_path / "run"))
    (folder / name).unlink()
    with pytest.raises(SetupError, match=said) as refused:
        read(folder)
    assert refused.value.file == folder / name
    assert "run the study again" in refused.value.fix


def test_scores_of_other_responses_are_refused(study: Twice, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(study.out, tmp_path / "run"))
    path = folder / "arms" / "human-0" / "dpo" / "scores.json"
    scores = json.loads(path.read_text())
    name = next(iter(scores))
    path.write_text(json.dumps({**scores, name: [0.0]}))
    with pytest.raises(SetupError, match=f"{name} has 1 scores, not 2"):
        read(folder)
    path.write_text("{")
    with pytest.raises(SetupError, match="cannot be read"):
        read(folder)


def test_a_part_of_the_learning_curve_is_known_by_its_share(study: Twice, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(study.out, tmp_path / "run"))
    for arm in ("human", "ai_soft"):
        for seed in range(2):
            whole = folder / "arms" / f"{arm}-{seed}" / "reward_model"
            for share in (0.25, 0.251):
                part = folder / "arms" / f"{arm}-{seed}-{share}" / "reward_model"
                shutil.copytree(whole, part)
                trained = json.loads((part / "trained.json").read_text())
                (part / "trained.json").write_text(json.dumps({**trained, "share": share}))
    parts = read(folder, (0.25, 0.251)).parts
    assert {share: unit.trained.share for (_, _, share), unit in parts.items()} == {
        0.25: 0.25,
        0.251: 0.251,
    }
    with pytest.raises(SetupError, match=r"holds the share 0\.25, not 0\.25000001"):
        read(folder, (0.25000001,))


def read(folder: Path, shares: tuple[float, ...] = ()) -> StudyData:
    settings = StudySettings(
        name="read",
        description="",
        seed=0,
        policy="embedded/tiny-random",
        arms=("human", "ai_soft"),
        seeds=2,
        shares=shares,
        margin=0.05,
        tie_margin=0.01,
        examples=3,
        usd_per_human_label=None,
        labelling=[None],
        evaluating=[None],
    )
    with CallStore(folder / "calls.sqlite") as store:
        return read_study(folder, settings, store)


def test_a_price_that_is_not_known_is_no_price_of_nothing(study: Twice) -> None:
    found = read(study.out)
    assert found.labelling.usd is None
    assert found.labelling.calls == study.first.report["cost"]["labelling"]["calls"]
    assert study.first.report["cost"]["labelling"]["usd"] == 0.0


def test_a_study_killed_while_it_trains_comes_to_the_same_report(
    study: Twice, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "rlaif", "run", "rlhf-vs-rlaif", *changes(rows), "--out", str(out)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not (out / "arms" / "human-0" / "dpo" / "scores.json").is_file():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "study.json").exists()
    assert not (out / "arms" / "ai_soft-0" / "dpo" / "trained.json").exists()
    # The name is the folder's. How long trainings took differs.
    assert {**run(rows, out).report, "name": ""} == {**study.first.report, "name": ""}

"""The recipe `smoke` from the constitution to the report, and once more at no cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlaif.recipe import execute, load_run

pytestmark = pytest.mark.usefixtures("one_thread")

DATASETS = (
    "responses.jsonl",
    "judgments.jsonl",
    "comparisons.jsonl",
    "groups.jsonl",
    "preferences/README.md",
    "preferences/data/train-00000-of-00001.parquet",
    "preferences/data/test-00000-of-00001.parquet",
)

STAGES = load_run("smoke", [], None)[0].stages()
WORKED = [stage for stage in STAGES if stage != "certify"]
"""Without a gate there is nothing to certify."""


class Kept(NamedTuple):
    """What a run left behind, read at once: the next run writes over it."""

    told: list[str]
    report: dict[str, Any]
    datasets: dict[str, bytes]
    models: dict[str, bytes]


class Twice(NamedTuple):
    out: Path
    first: Kept
    second: Kept


def run(out: Path, stages: tuple[str, ...] = STAGES) -> Kept:
    config, directory = load_run("smoke", [], out)
    told = execute(config, directory, stages, reconfigure=False)
    return kept(out, told)


def kept(out: Path, told: list[str] | None = None) -> Kept:
    return Kept(
        told or [],
        json.loads((out / "report.json").read_text(encoding="utf-8")),
        {name: (out / name).read_bytes() for name in DATASETS},
        {
            name: (out / name / "model.safetensors").read_bytes()
            for name in ("reward_model", "dpo")
            if (out / name).is_dir()
        },
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Twice:
    out = tmp_path_factory.mktemp("smoke") / "run"
    return Twice(out, run(out), run(out))


@pytest.fixture
def copied(smoke: Twice, tmp_path: Path) -> Path:
    """The run's folder, for a test that changes it."""
    return Path(shutil.copytree(smoke.out, tmp_path / "run"))


def test_the_report_has_the_promised_keys_and_no_others(smoke: Twice) -> None:
    assert set(smoke.first.report) == {
        "run",
        "revisions",
        "sft",
        "labels",
        "judge",
        "certificate",
        "pairs",
        "reward_model",
        "dpo",
        "rl",
        "comparison",
        "cost",
        "environment",
        "warnings",
    }
    left_out = {"certificate", "revisions", "sft", "rl"}
    given = {k: v for k, v in smoke.first.report.items() if k not in left_out}
    assert all(section is not None for section in given.values())
    assert set(smoke.first.report["cost"]) == set(WORKED)
    assert smoke.first.report["environment"]["python"]


def test_the_ledger_of_the_report_adds_up(smoke: Twice) -> None:
    labels, pairs = smoke.first.report["labels"], smoke.first.report["pairs"]
    assert labels["requested"] == 12 * 6
    lost = sum(labels["unscored"].values())
    assert labels["a"] + labels["b"] + labels["tie"] + lost == labels["requested"]
    assert pairs["comparisons"] == labels["a"] + labels["b"] == pairs["train"] + pairs["test"]
    assert smoke.first.report["judge"]["judgments"] == labels["requested"] * 2 * 2


def test_the_second_run_makes_no_call(smoke: Twice) -> None:
    first, second = smoke.first.report["cost"], smoke.second.report["cost"]
    for stage in ("sample", "judge", "compare"):
        assert first[stage]["calls_made"] > 0
        assert second[stage]["calls_from_store"] > 0
    assert {stage: cost["calls_made"] for stage, cost in second.items()} == dict.fromkeys(WORKED, 0)
    assert {stage: cost["calls_failed"] for stage, cost in second.items()} == dict.fromkeys(
        WORKED, 0
    )


def test_the_second_run_writes_the_same_bytes(smoke: Twice) -> None:
    assert smoke.second.datasets == smoke.first.datasets
    assert smoke.second.models == smoke.first.models


def test_the_second_run_reports_the_same_figures(smoke: Twice) -> None:
    changing = {"cost"}
    one, two = (
        {key: value for key, value in kept.report.items() if key not in changing}
        for kept in (smoke.first, smoke.second)
    )
    assert one == two


def test_the_report_is_a_page_and_has_main_sentences(smoke: Twice) -> None:
    page = (smoke.out / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert any("not certified" in warning for warning in smoke.first.report["warnings"])
    assert len(smoke.first.told) >= 6
    assert smoke.first.told[-1] == f"report: {smoke.out / 'report.html'}"


def test_both_trained_models_are_plain_transformers_models(smoke: Twice) -> None:
    reward = AutoModelForSequenceClassification.from_pretrained(smoke.out / "reward_model")
    assert reward.config.num_labels == 1
    AutoModelForCausalLM.from_pretrained(smoke.out / "dpo")


def test_the_reward_model_learns_the_scripted_rule(smoke: Twice) -> None:
    found = smoke.first.report["reward_model"]
    assert found["train_accuracy"] > 0.9
    assert found["held_out_accuracy"]["value"] > found["longer_wins"]["value"]


def test_each_stage_by_itself_gives_the_same_as_the_run(smoke: Twice, tmp_path: Path) -> None:
    for number, stage in enumerate(STAGES):
        config, directory = load_run("smoke" if number == 0 else None, [], tmp_path / "run")
        execute(config, directory, (stage,), reconfigure=False)
    one = kept(tmp_path / "run")
    assert one.datasets == smoke.first.datasets
    assert one.models == smoke.first.models
    for section in ("labels", "judge", "pairs", "comparison"):
        assert one.report[section] == smoke.first.report[section]


def test_deleted_models_are_trained_again_without_a_call_for_labels(copied: Path) -> None:
    before = kept(copied)
    for name in ("reward_model", "dpo"):
        shutil.rmtree(copied / name)
    after = run(copied)
    assert after.models == before.models
    assert after.datasets == before.datasets
    assert {stage: cost["calls_made"] for stage, cost in after.report["cost"].items()} == (
        dict.fromkeys(WORKED, 0)
    )
    assert after.report["dpo"]["kl"] == before.report["dpo"]["kl"]


def test_a_run_killed_before_its_figures_were_kept_trains_again(copied: Path) -> None:
    (copied / "parts" / "reward_model.json").unlink()
    after = run(copied, ("train-rm",))
    assert after.report["reward_model"]["held_out_accuracy"] is not None

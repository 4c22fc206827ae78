"""Constitutional AI in the paper's order, on scripted models and a tiny random one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Finished
from transformers import AutoModelForCausalLM

from rlaif.errors import SetupError
from rlaif.models.pool import weights_identity
from rlaif.recipe import execute, load_run

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = "{base: embedded/tiny-random, learning_rate: 1e-3, epochs: 2}"
CAI = (
    "revise={rounds: 2, constitution: hhh}",
    f"sft={TINY}",
    "start=sft",
    "reward_model.base=run/sft",
    "sample.limit=10",
    # A tiny random model babbles on: with fewer, nearly all its answers are of one length and tie.
    "sample.max_tokens=160",
    "reward_model.epochs=1",
    "dpo.epochs=1",
    "dpo.base=null",
    "compare.samples=1",
)
DATA = (
    "responses.jsonl",
    "groups.jsonl",
    "revisions/chains.jsonl",
    "revisions/groups.jsonl",
    "revisions/sft/data/train-00000-of-00001.parquet",
    "revisions/preferences/data/train-00000-of-00001.parquet",
    "sft/model.safetensors",
    "reward_model/model.safetensors",
    "dpo/model.safetensors",
)


class Run(NamedTuple):
    out: Path
    told: list[str]
    data: dict[str, bytes]
    report: dict[str, Any]


def run(out: Path) -> Run:
    config, directory = load_run("smoke", CAI, out)
    told = execute(config, directory, config.stages(), reconfigure=False)
    data = {name: (out / name).read_bytes() for name in DATA}
    return Run(out, told, data, json.loads((out / "report.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def cai(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("cai") / "run")


def test_everything_after_the_fine_tuning_starts_from_it(cai: Run) -> None:
    sft = weights_identity(cai.out / "sft")
    assert cai.report["run"]["policy"] == f"transformers/{sft}"
    assert cai.report["reward_model"]["base"] == sft
    assert cai.report["dpo"]["base"] == sft
    assert cai.report["revisions"]["policy"] == "fake/policy"
    AutoModelForCausalLM.from_pretrained(cai.out / "sft")


def test_the_fine_tuning_makes_held_out_revisions_likelier(cai: Run) -> None:
    found = cai.report["sft"]
    assert found["examples"] == cai.report["revisions"]["train"]
    assert found["held_out_after"]["value"] < found["held_out_before"]["value"]


def test_a_prompt_that_was_fine_tuned_on_is_never_held_out(cai: Run) -> None:
    revised = json.loads((cai.out / "revisions/splits.json").read_text(encoding="utf-8"))
    compared = json.loads((cai.out / "splits.json").read_text(encoding="utf-8"))
    assert revised == compared
    assert set(compared.values()) == {"train", "test"}


def test_revisions_never_mix_with_judged_labels(cai: Run) -> None:
    def labelers(name: str) -> set[str]:
        lines = (cai.out / name).read_text(encoding="utf-8").splitlines()
        return {json.loads(line)["labeler"] for line in lines}

    assert labelers("revisions/groups.jsonl") == {"revision"}
    assert labelers("groups.jsonl") == {"fake/shorter"}


def test_the_report_tells_of_the_revisions_and_of_the_fine_tuning(cai: Run) -> None:
    page = (cai.out / "report.html").read_text(encoding="utf-8")
    for said in ("Critique and revision", "Fine-tuned on the revisions", "revisions/chains.html"):
        assert said in page
    assert any("fine-tuned on" in line for line in cai.told)
    assert "train-sft" in cai.report["cost"]


def test_running_it_again_asks_nothing_and_changes_nothing(cai: Run) -> None:
    again = run(cai.out)
    assert again.data == cai.data
    assert sum(cost["calls_made"] for cost in again.report["cost"].values()) == 0


def test_a_run_without_the_sections_has_neither_stage() -> None:
    config, _ = load_run("smoke", [], None)
    assert not {"revise", "train-sft"} & set(config.stages())
    assert load_run("cai", [], None)[0].stages()[:3] == ("revise", "train-sft", "sample")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["start=sft"], "the run starts from sft, and has no sft section; add one"),
        (["dpo.base=run/sft"], "the run starts from sft, and has no sft section; add one"),
        (["sft={}"], "sft learns from revisions; add a revise section"),
        (["revise={principles: nice}"], "revise.principles: found 'nice'; write sample, or a list"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(changes: list[str], said: str) -> None:
    with pytest.raises(SetupError) as caught:
        load_run("smoke", changes, None)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("command", "changes", "said"),
    [
        ("revise", [], "revise: the recipe has no such section (add it, or write revise={})"),
        ("train-sft", ["revise={}"], "sft: the recipe has no such section"),
        ("train-rm", [*CAI], "run `rlaif revise` and `rlaif train-sft` first"),
        ("sample", [*CAI], "run `rlaif revise` and `rlaif train-sft` first"),
        (
            "revise",
            ["revise={principles: [helpfull], constitution: hhh}"],
            "did you mean 'helpful'?",
        ),
        ("revise", ["revise={constitution: hh}"], "'hh' is neither a file nor one of ours"),
        (
            "train-sft",
            ["revise={}", "sft={base: embedded/tiny-random}"],
            "run `rlaif revise` first",
        ),
    ],
)
def test_a_stage_that_cannot_start_says_why(
    run_cli: Callable[..., Finished], command: str, changes: list[str], said: str
) -> None:
    done = run_cli(command, "smoke", *changes, "--out", "out")
    assert done.code == 2
    assert said in done.err.splitlines()[-1]


def test_a_config_with_the_sections_is_read_back_from_its_folder(cai: Run, tmp_path: Path) -> None:
    shutil.copytree(cai.out, tmp_path / "run")
    config, _ = load_run(None, [], tmp_path / "run")
    assert config == load_run("smoke", CAI, tmp_path / "run")[0]


def test_a_judge_that_falls_short_of_its_gate_judges_no_revisions(
    run_cli: Callable[..., Finished],
) -> None:
    gate = "judge.gate={gold: [concise], min_agreement: 0.99, injections: 0}"
    done = run_cli("revise", "smoke", "revise={judged: true}", gate, "--out", "out")
    assert done.code == 3
    assert "the judge falls short" in done.err
    assert not Path("out/revisions/judged").exists()
    done = run_cli("revise", "smoke", "revise={judged: true}", "--out", "out", "--reconfigure")
    assert done.code == 0
    assert Path("out/revisions/judged/comparisons.jsonl").is_file()


def test_nothing_starts_from_a_fine_tuning_of_other_revisions(
    cai: Run, tmp_path: Path, run_cli: Callable[..., Finished]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(cai.out, out)
    assert run_cli("revise", "revise.rounds=1", "--reconfigure", "--out", str(out)).code == 0
    done = run_cli("sample", "--out", str(out))
    assert done.code == 2
    assert "is not what the present revisions make (run `rlaif train-sft` first)" in done.err


def test_a_prompt_that_was_fine_tuned_on_cannot_be_held_out_later(
    cai: Run, tmp_path: Path, run_cli: Callable[..., Finished]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(cai.out, out)
    done = run_cli("pairs", "pairs.test_fraction=0.7", "--reconfigure", "--out", str(out))
    assert done.code == 2
    assert "prompts would be held out that the policy was fine-tuned on" in done.err


def test_a_report_tells_of_no_fine_tuning_that_its_config_does_not_have(
    cai: Run, tmp_path: Path, run_cli: Callable[..., Finished]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(cai.out, out)
    done = run_cli("sample", "smoke", "sample.k=2", "--reconfigure", "--out", str(out))
    assert done.code == 0
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert (found["revisions"], found["sft"]) == (None, None)

"""`rlaif train-rl`: what it reads, writes and says, and what it refuses."""

from __future__ import annotations

import csv
import gc
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Finished
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlaif.config import dump_config
from rlaif.files import read_jsonl
from rlaif.plan.training import training
from rlaif.recipe import execute, load_run
from rlaif.types import Comparison, Prompt
from rlaif.workspace import prune

pytestmark = pytest.mark.usefixtures("one_thread")

LABELLING = ("sample", "judge", "pairs")
RL = (
    "rl.steps=5",
    "rl.batch_prompts=4",
    "rl.max_new_tokens=8",
    "rl.learning_rate=0.02",
    "rl.normalise_on=32",
    "rl.answers_at_once=16",
    "rl.kl_budget=50",
)


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> Iterator[None]:
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a reward model."""
    config, out = load_run("smoke", [], tmp_path_factory.mktemp("smoke") / "run")
    execute(config, out, (*LABELLING, "train-rm"), reconfigure=False)
    return out


@pytest.fixture
def copied(labelled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(labelled, tmp_path / "run"))


def part(run: Path, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "parts" / f"{name}.json").read_text())["value"]
    return value


def test_it_trains_on_the_train_split_traces_and_reports(
    copied: Path, run_cli: Callable[..., Finished]
) -> None:
    done = run_cli("train-rl", "--out", str(copied), *RL)
    assert done.code == 0, done.err
    AutoModelForCausalLM.from_pretrained(copied / "rl")
    found = part(copied, "rl")
    splits = json.loads((copied / "splits.json").read_text())
    assert found["prompts"] == list(splits.values()).count("train") < len(splits)
    assert found["base"] == part(copied, "reward_model")["base"]
    assert json.loads((copied / "rl" / "trace.json").read_text()) == found
    with (copied / "rl" / "trace.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(7))
    assert [float(row["kl"]) for row in rows[1:-1]] == [step["kl"] for step in found["trace"]]
    assert rows[0]["held_out"] == ""
    report = json.loads((copied / "report.json").read_text())
    assert report["rl"] == found
    assert any(
        line.startswith("RL (RLOO) against the reward model took 5")
        for line in done.out.splitlines()
    )
    assert any("no held-out check" in warning for warning in report["warnings"])
    page = (copied / "report.html").read_text()
    assert "RL against the reward model" in page

    config, _ = load_run(None, ["rl.steps=10"], copied)
    seconds, size = training("train-rl", config, copied, ()) or (None, None)
    assert size is not None
    # A plan takes the pace of this run: 10 steps are twice as long as its 5.
    assert seconds is not None
    assert seconds.point >= 2 * found["seconds"]

    again = run_cli("train-rl", "--out", str(copied))
    assert again.code == 0
    assert "rl: already made from the same reward model and prompts and settings" in again.err
    assert part(copied, "rl") == found

    # A recipe without RL goes on there, and takes nothing away.
    whole = run_cli("judge", "smoke", "--out", str(copied))
    assert whole.code == 0, whole.err
    assert load_run(None, [], copied)[0].rl is not None
    assert json.loads((copied / "report.json").read_text())["rl"] == found


def test_it_tells_when_the_held_out_check_falls_while_the_proxy_rises(
    copied: Path, run_cli: Callable[..., Finished]
) -> None:
    # The check wants the opposite of what the proxy wants.
    opposite = copied.parent / "opposite"
    model = AutoModelForSequenceClassification.from_pretrained(copied / "reward_model")
    with torch.no_grad():
        model.score.weight.neg_()
    model.save_pretrained(opposite)
    AutoTokenizer.from_pretrained(copied / "reward_model").save_pretrained(opposite)
    check = (
        f"rl.held_out={opposite}",
        "rl.algorithm=grpo",
        "rl.samples=8",
        "rl.kl_budget=12",
    )
    done = run_cli("train-rl", "--out", str(copied), *RL, "rl.steps=40", *check)
    assert done.code == 0, done.err
    found = part(copied, "rl")
    (hacking,) = [f for f in found["findings"] if f["kind"] == "hacking"]
    assert f"alarm (hacking) at step {hacking['step']}: {hacking['text']}" in done.err
    assert (
        f"RL, step {hacking['step']}: {hacking['text']}."
        in (json.loads((copied / "report.json").read_text())["warnings"])
    )
    assert found["stopped"] == "kl_budget"
    assert "over the KL budget of 12; stopping" in done.err

    # Asked afterwards, and about the same answers: nothing is trained anew.
    won = {}
    for name in ("shorter", "longer"):
        asked = run_cli("train-rl", "--out", str(copied), f"rl.judge=fake/{name}", "--reconfigure")
        assert asked.code == 0, asked.err
        assert "rl: already made from the same reward model" in asked.err
        now = part(copied, "rl")
        assert {k: v for k, v in now.items() if k not in ("judged", "findings")} == {
            k: v for k, v in found.items() if k not in ("judged", "findings")
        }
        assert now["judged"]["comparisons"] == 32
        assert now["judged"]["labelled"] == (name == "shorter")
        if name == "shorter":
            assert prune(copied, None, None, delete=False)[0] == 0
        asked_about = read_jsonl(copied / "rl" / "comparisons.jsonl", Comparison)
        # The first answers to four prompts, then the second ones.
        assert len({c.prompt_id for c in asked_about[:4]}) == 4
        won[name] = now["judged"]["win_rate"]["value"]
        assert json.loads((copied / "rl" / "trace.json").read_text()) == now
    # Two judges that want the opposite of each other.
    assert won["shorter"] == pytest.approx(1 - won["longer"])
    assert won["shorter"] != 0.5


def test_without_a_section_a_command_says_how_to_write_one(
    copied: Path, run_cli: Callable[..., Finished]
) -> None:
    said = run_cli("train-rl", "--out", str(copied)).refused()
    assert said == "rl: the recipe has no such section (add it, or write rl={})"


def test_a_run_without_a_reward_model_is_refused_in_one_line(
    copied: Path, run_cli: Callable[..., Finished]
) -> None:
    shutil.rmtree(copied / "reward_model")
    said = run_cli("train-rl", "--out", str(copied), *RL).stopped()
    assert said == f"{copied / 'reward_model'}: is not there (run `rlaif train-rm` first)"


def test_a_reward_model_of_other_groups_is_refused_in_one_line(
    copied: Path, run_cli: Callable[..., Finished]
) -> None:
    groups = copied / "groups.jsonl"
    groups.write_text("".join(groups.read_text().splitlines(keepends=True)[:-1]))
    said = run_cli("train-rl", "--out", str(copied), *RL).stopped()
    assert said.endswith("reward_model: is not of the present groups (run `rlaif train-rm` first)")


def test_without_trl_it_is_refused_in_one_line_before_anything_runs(
    copied: Path, run_cli: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "trl" else find(name)
    )
    said = run_cli("train-rl", "--out", str(copied), *RL).refused()
    assert said == "RL needs trl, which is not installed (pip install 'rlaif[rl]')"


def test_a_held_out_check_that_is_no_model_is_refused_before_anything_runs(
    copied: Path, run_cli: Callable[..., Finished]
) -> None:
    said = run_cli("train-rl", "--out", str(copied), *RL, "rl.held_out=nowhere").refused()
    assert said.startswith("rl.held_out: nowhere holds no reward model (no config.json)")


def test_a_run_without_rl_has_the_config_that_it_always_had() -> None:
    config, _ = load_run("smoke", [], None)
    assert "rl" not in config.model_dump(mode="json")
    assert "rl:" not in dump_config(config)
    assert "train-rl" not in config.stages()
    with_rl, _ = load_run("smoke", ["rl={}"], None)
    assert dump_config(with_rl).splitlines().count("rl:") == 1
    assert with_rl.stages().index("train-rl") == with_rl.stages().index("train-dpo") + 1


def test_rl_is_added_to_a_run_and_its_fields_are_then_the_runs(
    copied: Path, run_cli: Callable[..., Finished]
) -> None:
    before = read_jsonl(copied / "prompts.jsonl", Prompt)
    assert run_cli("train-rl", "--out", str(copied), *RL, "rl.steps=1").code == 0
    refused = run_cli("train-rl", "--out", str(copied), "rl.steps=2").stopped()
    assert "holds a run of another config: rl.steps: 1 there, 2 now" in refused
    assert read_jsonl(copied / "prompts.jsonl", Prompt) == before


@pytest.mark.skipif("RLAIF_SLOW" not in os.environ, reason="two minutes; set RLAIF_SLOW=1")
def test_a_real_instruct_model_is_trained_for_a_reward_and_answers_afterwards(
    copied: Path, run_cli: Callable[..., Finished]
) -> None:
    base = "dpo.base=embedded/smollm2-135m-instruct"
    small = (
        "rl.steps=2",
        "rl.normalise_on=4",
        "rl.samples=2",
        "rl.max_new_tokens=6",
        "rl.learning_rate=1e-5",
    )
    done = run_cli("train-rl", "--out", str(copied), *RL, *small, base, "--reconfigure")
    assert done.code == 0, done.err
    found = part(copied, "rl")
    assert found["base"].startswith("embedded/smollm2-135m-instruct")
    # Before the first step policy and reference are one; after two they are not.
    assert found["trace"][0]["kl"] == pytest.approx(0, abs=1e-2)
    assert found["trace"][1]["kl"] != found["trace"][0]["kl"]
    tokenizer = AutoTokenizer.from_pretrained(copied / "rl")
    model = AutoModelForCausalLM.from_pretrained(copied / "rl")
    asked = tokenizer("Hello", return_tensors="pt")
    assert model.generate(**asked, max_new_tokens=2, do_sample=False).shape[1] > 1

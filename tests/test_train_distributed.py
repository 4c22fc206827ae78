"""Two processes on a CPU train to the losses and weights of one."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from test_train_training import DPO, GROUPS, SETTINGS, quiet_step
from transformers import LlamaConfig, LlamaForCausalLM

from rlaif.errors import SetupError, TrainingDiverged
from rlaif.files import packaged
from rlaif.train import launching, worker
from rlaif.train.collate import collate_step, divided
from rlaif.train.groups import EncodedGroup
from rlaif.train.settings import RewardSettings, TrainSettings
from rlaif.train.sft import SFTExample
from rlaif.train.tiny import make_tiny
from rlaif.train.training import TrainResult, train_dpo, train_reward_model, train_sft
from rlaif.types import WeightedComparison

pytestmark = pytest.mark.usefixtures("one_thread")

TELL = f"""
import json, sys
def tell(**message): print({launching.MARK!r} + json.dumps(message), flush=True)
print("a note of somebody")
"""


def group_of(name: str, prompt: int, *responses: int) -> EncodedGroup:
    """Lengths of the prompt and of the responses; the first two are compared."""
    return EncodedGroup(
        list(range(3, 3 + prompt)),
        [list(range(3, 3 + n)) for n in responses],
        (WeightedComparison(first=0, second=1, p_first=1.0),),
        (0.0,) * len(responses),
        name,
    )


def config(folder: Path, name: str) -> str:
    """One of our configs, for two processes."""
    ours = yaml.safe_load((packaged("launch") / f"{name}.yaml").read_text(encoding="utf-8"))
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**ours, "num_processes": 2}), encoding="utf-8")
    return str(file)


def same(one: TrainResult, two: TrainResult, folder: Path) -> None:
    assert two.steps == one.steps == len(two.losses)
    assert two.losses == pytest.approx(one.losses, abs=1e-5)
    assert two.accuracies == pytest.approx(one.accuracies, abs=1e-5)
    a, b = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    for key, weight in a.items():
        torch.testing.assert_close(b[key], weight, rtol=0, atol=1e-5)
    files = [{p.name for p in (folder / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    configs = [(folder / name / "config.json").read_text() for name in ("one", "two")]
    assert configs[0] == configs[1]
    assert not list(folder.glob(".two*"))


def test_a_step_is_divided_by_tokens_and_every_group_is_somewhere_once() -> None:
    groups = [group_of(str(n), 10, n, n) for n in (30, 29, 10, 8, 5)]
    # Packed lengths are 70, 68, 30, 26 and 20.
    names = [[g.name for g in share] for share in divided(groups, 2, packed=True)]
    assert names == [["30", "8", "5"], ["29", "10"]]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_all_processes_of_a_step_come_to_as_many_passes(world: int) -> None:
    # Three that fit, one in two pieces and one in three; at five, a process with one small group.
    groups = [
        group_of("a", 4, 8, 8),
        group_of("b", 4, 6, 6),
        group_of("c", 4, 5, 5),
        group_of("d", 4, 20, 20),
        group_of("e", 4, 20, 20, 20),
    ]
    steps = [
        collate_step(groups, 0, 30, packed=True, rank=rank, world=world) for rank in range(world)
    ]
    pieces = [sum(len(group["parts"]) for group in step["split"]) for step in steps]
    assert sum(pieces) == 2 + 3
    assert {
        len(step["parts"]) + n + len(step["idle"]) for step, n in zip(steps, pieces, strict=True)
    } == {max(len(step["parts"]) + n for step, n in zip(steps, pieces, strict=True))}
    assert {n + len(step["idle_scorings"]) for step, n in zip(steps, pieces, strict=True)} == {
        max(pieces)
    }
    named = [name for step in steps for names in step["names"] for name in names]
    assert sorted(named) == ["a", "b", "c", "d", "e"]


def test_one_process_has_no_idle_pass() -> None:
    step = collate_step([group_of("a", 4, 8, 8)], 0, 30, packed=True)
    assert not step["idle"]
    assert not step["idle_scorings"]


def test_two_copies_train_a_reward_model_to_the_losses_and_weights_of_one(tmp_path: Path) -> None:
    make_tiny(tmp_path / "tiny", seed=0)
    # Three groups a step: one process has one of them and passes to idle. Of 60 tokens not even a
    # group fits, so all are taken in two passes.
    # The gradients' norms are 0.45, 0.45 and 0.90. Adam does not see a gradient's scale, but sees
    # whether all three are clipped.
    changes = {"epochs": 1, "batch_groups": 3, "tokens_at_once": 60, "max_grad_norm": 0.4}
    settings = SETTINGS.model_copy(update=changes)
    told: list[int] = []

    def train(name: str, settings: RewardSettings) -> TrainResult:
        def on_step(step: int, total: int, figures: Mapping[str, float]) -> None:
            told.append(step)

        base, out = str(tmp_path / "tiny"), tmp_path / name
        return train_reward_model(base, GROUPS, settings, 0, out, on_step, pytest.fail)

    one = train("one", settings)
    launch = config(tmp_path, "ddp")
    two = train("two", settings.model_copy(update={"launch": launch}))
    same(one, two, tmp_path)
    assert told == [1, 2, 3, 1, 2, 3]
    assert one.groups == two.groups == 8


def test_divided_weights_train_a_policy_to_the_losses_and_weights_of_one(tmp_path: Path) -> None:
    make_tiny(tmp_path / "tiny", seed=0)
    tied = LlamaConfig.from_pretrained(tmp_path / "tiny")
    tied.tie_word_embeddings = True
    LlamaForCausalLM(tied).save_pretrained(tmp_path / "tiny")
    # A checkpoint at every step, which gathers the weights as well.
    changes: dict[str, Any] = {
        "epochs": 1,
        "batch_groups": 3,
        "tokens_at_once": 300,
        "checkpoint_minutes": 1e-9,
    }
    base, launch = str(tmp_path / "tiny"), config(tmp_path, "fsdp")
    one, two = (
        train_dpo(
            base,
            GROUPS,
            DPO.model_copy(update={**changes, "launch": launch}),
            0,
            tmp_path / name,
            quiet_step,
            lambda _: None,
        )
        for name, launch in (("one", None), ("two", launch))
    )
    same(one, two, tmp_path)


@pytest.mark.parametrize("launch", ["ddp", "fsdp"])
def test_two_processes_fine_tune_a_policy_to_the_losses_and_weights_of_one(
    tmp_path: Path, launch: str
) -> None:
    make_tiny(tmp_path / "tiny", seed=0)
    # Of every third answer the end is not learned.
    examples = [SFTExample(g.prompt, g.responses[0], n % 3 > 0) for n, g in enumerate(GROUPS)]
    settings = TrainSettings(
        learning_rate=3e-3, epochs=1, batch_groups=3, tokens_at_once=60, max_grad_norm=0.4
    )
    one, two = (
        train_sft(
            str(tmp_path / "tiny"),
            examples,
            settings.model_copy(update={"launch": launched}),
            0,
            tmp_path / name,
            quiet_step,
            lambda _: None,
        )
        for name, launched in (("one", None), ("two", config(tmp_path, launch)))
    )
    same(one, two, tmp_path)
    assert one.accuracies == []
    assert (two.groups, two.response_tokens) == (one.groups, one.response_tokens)


def test_processes_that_cannot_fit_are_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    make_tiny(tmp_path / "tiny", seed=0)
    # A model of 4 TB, as far as its header tells.
    header = {
        "model.layers.0.x.weight": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 0]}
    }
    told = json.dumps(header).encode()
    file = tmp_path / "tiny" / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(told)) + told)
    settings = SETTINGS.model_copy(update={"launch": config(tmp_path, "ddp")})
    with pytest.raises(
        SetupError, match=r"^training takes about 4\d+\.\d GB to .* in 2 processes,"
    ):
        train_reward_model(
            str(tmp_path / "tiny"), GROUPS, settings, 0, tmp_path / "rm", quiet_step, pytest.fail
        )


def launch_as(code: str, folder: Path, on_step: Any = quiet_step) -> dict[str, Any]:
    folder.mkdir()
    command = [sys.executable, "-c", TELL + code]
    return launching._run(command, Path("some.yaml"), folder, on_step, pytest.fail)


def test_what_a_process_tells_arrives_and_what_others_print_goes_to_the_log(tmp_path: Path) -> None:
    told = []
    code = (
        "tell(kind='step', step=1, total=2, figures={'loss': 0.5})\n"
        "tell(kind='result', result={'steps': 2})\n"
    )
    result = launch_as(code, tmp_path / "job", lambda *step: told.append(step))
    assert result == {"steps": 2}
    assert told == [(1, 2, {"loss": 0.5})]
    assert (tmp_path / "job" / "output.log").read_text() == "a note of somebody\n"


def test_a_failure_in_a_process_is_one_clear_line(tmp_path: Path) -> None:
    diverged = "tell(kind='diverged', text='the loss became nan'); sys.exit(1)"
    with pytest.raises(TrainingDiverged, match=r"^the loss became nan$"):
        launch_as(diverged, tmp_path / "a")
    setup = "tell(kind='setup', text='is no model', fix='name one', file='x', field=''); exit(2)"
    with pytest.raises(SetupError, match=r"^x: is no model \(name one\)$"):
        launch_as(setup, tmp_path / "b")
    with pytest.raises(SetupError, match=r"^some.yaml: the processes that it launches ended with"):
        launch_as("sys.exit(3)", tmp_path / "c")
    with pytest.raises(SetupError, match="ended with code 0 and no model"):
        launch_as("", tmp_path / "d")


def test_processes_end_with_the_one_that_launched_them(tmp_path: Path) -> None:
    def stop(step: int, total: int, figures: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    code = (
        "import time\n"
        "tell(kind='step', step=1, total=2, figures={})\n"
        "time.sleep(100); open('late', 'w')\n"
    )
    with pytest.raises(KeyboardInterrupt):
        launch_as(code, tmp_path / "job", stop)


def test_processes_end_soon_when_the_one_that_launched_them_is_killed(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    # Both hold the pipe's end for as long as they live.
    child = f"import time; f = open({str(fifo)!r}, 'w'); print('x', file=f, flush=True); "
    command = [sys.executable, "-c", f"import os; os.fork(); {child} time.sleep(100)"]
    code = (
        "from pathlib import Path; from rlaif.train import launching;"
        f"launching._run({command!r}, Path(), Path({str(tmp_path / 'job')!r}), print, print)"
    )
    stage = subprocess.Popen([sys.executable, "-c", code])
    with fifo.open() as alive:
        assert [alive.readline() for _ in range(2)] == ["x\n"] * 2
        stage.kill()
        stage.wait()
        assert alive.read() == ""


def test_a_config_that_is_not_served_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match="ddp"):
        RewardSettings(learning_rate=1.0, epochs=1, batch_groups=1, launch="dpd")
    for text, problem in (("- a\n", "is no config"), ("num_machines: 2\n", "on one machine")):
        (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(SetupError, match=problem):
            launching._config(tmp_path / "x.yaml")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(SetupError, match="set fsdp_version: 2"):
        worker._check_launch()

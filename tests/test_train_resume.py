"""A training that was killed and is started again ends in the weights of one that nobody killed."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlaif.errors import SetupError, TrainingDiverged
from rlaif.files import write_text
from rlaif.train.scoring import score_reward
from rlaif.train.settings import DPOSettings, LoraSettings, RewardSettings, TrainSettings
from rlaif.train.tiny import make_tiny
from rlaif.train.training import TrainResult, train_dpo, train_reward_model
from rlaif.types import Message, PreferenceGroup, Prompt, WeightedComparison

pytestmark = pytest.mark.usefixtures("one_thread")

EACH_STEP = 1e-9
SHARED = {"learning_rate": 3e-3, "epochs": 3, "batch_groups": 3, "checkpoint_minutes": EACH_STEP}
LORA = LoraSettings(rank=4, alpha=8)


def groups() -> list[PreferenceGroup]:
    """Ten groups of three answers, the shortest preferred: four steps an epoch."""
    return [
        PreferenceGroup(
            prompt=Prompt(id=f"p{n}", messages=(Message(role="user", content=f"Q{n}" * (n + 1)),)),
            responses=tuple("a long answer" * (1 + k) + str(n) for k in range(3)),
            comparisons=tuple(
                WeightedComparison(first=i, second=j, p_first=0.9) for i, j in ((0, 1), (1, 2))
            ),
            split="train",
            labeler="planted",
        )
        for n in range(10)
    ]


def train(kind: str, tiny: str, out: Path, killed_at: int = 0, **changes: object) -> TrainResult:
    """Kills its own process after the step `killed_at`."""

    def on_step(step: int, total: int, figures: object) -> None:
        assert total in (12, 36)
        if step == killed_at:
            # Not in the callback itself: the checkpoint is written after it.
            Path(f"{out}.kill").touch()
        elif Path(f"{out}.kill").exists():
            import os
            import signal

            Path(f"{out}.kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    lines: list[str] = []
    if kind == "rm":
        reward = RewardSettings.model_validate({**SHARED, **changes})
        result = train_reward_model(tiny, groups(), reward, 0, out, on_step, lines.append)
    else:
        dpo = DPOSettings.model_validate({**SHARED, **changes})
        result = train_dpo(tiny, groups(), dpo, 0, out, on_step, lines.append)
    print(*lines, sep="\n")
    return result


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(out, seed=0)
    return str(out)


def killed(kind: str, tiny: str, out: Path, at: int, **changes: object) -> None:
    code = (
        "import sys, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[1]);"
        "from pathlib import Path; from test_train_resume import *;"
        f"train({kind!r}, {tiny!r}, Path({str(out)!r}), {at}, **{changes!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == -9, done.stderr[-2000:]
    assert not out.exists()


@pytest.mark.parametrize(("kind", "at"), [("rm", 3), ("rm", 8), ("dpo", 6)])
def test_a_killed_training_goes_on_to_the_weights_of_an_undisturbed_one(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, at: int
) -> None:
    undisturbed = train(kind, tiny, tmp_path / "whole")
    killed(kind, tiny, tmp_path / "again", at)
    capsys.readouterr()
    result = train(kind, tiny, tmp_path / "again")
    assert f"going on from step {at}, where a checkpoint was kept" in capsys.readouterr().out
    assert result.losses == undisturbed.losses
    assert result.accuracies == undisturbed.accuracies
    a, b = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "again"))
    assert a == b
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "again"}


def test_a_training_with_other_settings_does_not_go_on_from_the_checkpoint(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed("rm", tiny, tmp_path / "rm", 4)
    capsys.readouterr()
    train("rm", tiny, tmp_path / "rm", learning_rate=1e-3)
    assert "going on" not in capsys.readouterr().out


def test_a_checkpoint_that_a_kill_cut_short_is_passed_over(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed("rm", tiny, tmp_path / "rm", 4)
    torn = tmp_path / ".rm.training" / "checkpoint-5"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"epoch": ')
    capsys.readouterr()
    train("rm", tiny, tmp_path / "rm")
    assert "going on from step 4" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
def test_a_loss_that_is_no_number_names_its_prompts_and_the_last_good_checkpoint(
    tiny: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainingDiverged) as e:
        train("rm", tiny, tmp_path / "rm", learning_rate=1e38, max_grad_norm=1e38)
    said = str(e.value)
    assert "the loss became nan at step 3, on prompts 'p" in said
    kept = tmp_path / ".rm.training" / "checkpoint-2"
    assert said.endswith(f"the last good checkpoint is {kept}")
    assert kept.is_dir()


def test_adapters_are_merged_into_a_plain_model_and_kept_beside_it(
    tiny: str, tmp_path: Path
) -> None:
    for kind, auto in (
        ("rm", AutoModelForSequenceClassification),
        ("dpo", AutoModelForCausalLM),
    ):
        out = tmp_path / kind
        result = train(kind, tiny, out, lora=LORA.model_dump())
        assert result.losses[-1] < result.losses[0]
        plain = auto.from_pretrained(out)
        assert not any("lora" in name for name, _ in plain.named_parameters())
        adapted = auto.from_pretrained(out / "adapter", num_labels=1)
        ids = torch.arange(12).unsqueeze(0)
        with torch.no_grad():
            torch.testing.assert_close(adapted(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)
        base, after = (load_file(f"{d}/model.safetensors") for d in (tiny, out))
        # Adapters stand in the linear layers, and nothing else moves.
        assert torch.equal(after["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


def test_a_killed_training_of_adapters_goes_on_as_well(tiny: str, tmp_path: Path) -> None:
    undisturbed = train("rm", tiny, tmp_path / "whole", lora=LORA.model_dump())
    killed("rm", tiny, tmp_path / "again", 5, lora=LORA.model_dump())
    again = train("rm", tiny, tmp_path / "again", lora=LORA.model_dump())
    assert again.losses == undisturbed.losses


@pytest.mark.parametrize("at", [17, 24])
def test_a_killed_ensemble_of_adapters_keeps_the_members_that_are_trained(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], at: int
) -> None:
    changes = {"lora": LORA.model_dump(), "members": 3}
    undisturbed = train("rm", tiny, tmp_path / "whole", **changes)
    # In the second member, and between it and the third.
    killed("rm", tiny, tmp_path / "again", at, **changes)
    capsys.readouterr()
    result = train("rm", tiny, tmp_path / "again", **changes)
    lines = capsys.readouterr().out.splitlines()
    before, again = "it was trained before", "going on from step 5, where a checkpoint was kept"
    assert lines == [
        "training member 1 of 3",
        before,
        "training member 2 of 3",
        again if at == 17 else before,
        "training member 3 of 3",
    ]
    assert result.losses == undisturbed.losses
    for file in (
        "model.safetensors",
        "adapter/adapter_model.safetensors",
        "members/1/adapter_model.safetensors",
        "members/2/adapter_model.safetensors",
    ):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "again"}


def test_layers_that_the_model_has_not_are_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"lora\.targets") as e:
        train("rm", tiny, tmp_path / "rm", lora={"targets": ["no_such_layer"]})
    assert "\n" not in str(e.value)


def test_the_figures_of_each_step_reach_tensorboard(tiny: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train("rm", tiny, tmp_path / "rm", trackers=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard" / "rm")).Reload()
    seen = [e.value for e in events.Scalars("train/loss")]
    assert seen == pytest.approx(result.losses)


WANDB = """
from unittest.mock import MagicMock

run, config, told = None, MagicMock(), []

def init(project, name):
    global run
    run = MagicMock()
    told.append(name)

def finish():
    global run
    run = None

def log(values):
    told[-1:] = [told[-1].partition(" ")[0] + f" to {values['train/global_step']}"]
"""


def test_each_training_is_told_to_a_run_of_its_own(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    # As much of wandb as transformers asks: a run that stays until it is finished.
    for name, text in {
        "wandb/__init__.py": WANDB,
        "wandb/sdk/lib/config_util.py": "class ConfigError(Exception): pass",
    }.items():
        write_text(tmp_path / "lib" / name, text)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    trackers = ["tensorboard", "wandb"]
    try:
        train("rm", tiny, tmp_path / "rm", members=3, lora={"rank": 2}, trackers=trackers)
        train("dpo", tiny, tmp_path / "dpo", trackers=trackers)
        wandb = importlib.import_module("wandb")
    finally:
        for module in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
            del sys.modules[module]
    assert wandb.told == ["rm-1 to 12", "rm-2 to 12", "rm-0 to 12", "dpo to 12"]
    assert {f.name for f in (tmp_path / "tensorboard").iterdir()} == {"rm-0", "rm-1", "rm-2", "dpo"}


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_one_line_before_anything_is_loaded(
    tmp_path: Path, tracker: str
) -> None:
    if importlib.util.find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed")
    with pytest.raises(SetupError) as e:
        train("rm", "no such model", tmp_path / "rm", trackers=[tracker])
    assert str(e.value) == f"trackers: {tracker} is not installed (pip install {tracker})"


def test_settings_that_only_say_how_to_compute_leave_a_training_what_it_is() -> None:
    from rlaif.train.fitting import UNTOLD

    assert set(TrainSettings.model_fields) >= UNTOLD


def test_scores_of_a_model_with_adapters_are_those_of_its_folder(tiny: str, tmp_path: Path) -> None:
    train("rm", tiny, tmp_path / "rm", lora=LORA.model_dump())
    items = [(g.prompt, g.responses) for g in groups()]
    scores = score_reward(str(tmp_path / "rm"), items, 1024, lambda *_: None)
    assert all(None not in scores_K for scores_K in scores)

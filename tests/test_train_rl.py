"""RL against a reward model: it learns, it is measured, it stops, and it survives a kill."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from rlaif.errors import SetupError, TrainingDiverged
from rlaif.train import rl, rl_answers
from rlaif.train.ensemble import HEADS
from rlaif.train.rl import UNTOLD, RLResult, train_rl
from rlaif.train.rl_settings import Measure, RLSettings, distinct, measure, repetition
from rlaif.train.scoring import score_reward
from rlaif.train.settings import RewardSettings
from rlaif.train.tiny import make_tiny
from rlaif.train.training import train_reward_model
from rlaif.types import Message, PreferenceGroup, Prompt, WeightedComparison

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [
    Prompt(id=f"p{n}", messages=(Message(role="user", content=f"Question {n}" * (1 + n % 3)),))
    for n in range(12)
]
SETTINGS = RLSettings(
    steps=3,
    batch_prompts=4,
    samples=4,
    max_new_tokens=8,
    learning_rate=2e-2,
    normalise_on=48,
    answers_at_once=64,
)

EACH_STEP: dict[str, Any] = {"checkpoint_minutes": 1e-9, "steps": 6, "kl_budget": 50.0}
"""Of 12 prompts each step takes 4, so that their second turn begins at step 4."""


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> Iterator[None]:
    """A training collects garbage twice, which takes longer than all else of a tiny one where the
    modules of torch and TRL are gone through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(out, seed=0)
    return str(out)


@pytest.fixture(scope="module")
def likes_a(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model that prefers answers with more of the letter a."""
    groups = [
        PreferenceGroup(
            prompt=prompt,
            responses=("a" * 9, "xya" * 3, "wzk" * 3),
            comparisons=tuple(
                WeightedComparison(first=i, second=j, p_first=0.95) for i, j in ((0, 1), (1, 2))
            ),
            split="train",
            labeler="planted",
        )
        for prompt in PROMPTS
    ]
    out = tmp_path_factory.mktemp("models") / "rm"
    settings = RewardSettings(learning_rate=3e-3, epochs=8, batch_groups=4)
    train_reward_model(tiny, groups, settings, 0, out, lambda *_: None, lambda _: None)
    return str(out)


def head_changed(reward: str, out: Path, factor: float) -> str:
    """The same reward model with its scores multiplied."""
    model = AutoModelForSequenceClassification.from_pretrained(reward)
    with torch.no_grad():
        model.score.weight.mul_(factor)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(reward).save_pretrained(out)
    return str(out)


class Told:
    """What a training says on its way."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.lines: list[str] = []
        self.trace: list[Measure] = []

    def on_step(self, step: int, total: int) -> None:
        self.steps.append((step, total))

    def trained(
        self, base: str, reward: str, out: Path, held_out: str | None = None, **changes: Any
    ) -> RLResult:
        seed = changes.pop("seed", 0)
        return train_rl(
            base,
            reward,
            held_out,
            changes.pop("prompts", PROMPTS),
            RLSettings.model_validate({**SETTINGS.model_dump(), **changes}),
            seed,
            out,
            lambda step, total, figures: self.on_step(step, total),
            lambda start, step: self.trace.append(step),
            self.lines.append,
        )


class Killed(Told):
    """Its process dies in the step behind `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def on_step(self, step: int, total: int) -> None:
        super().on_step(step, total)
        if step > self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(base: str, reward: str, out: Path, at: int, **changes: Any) -> None:
    code = (
        "import sys, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[1]);"
        "from pathlib import Path; from test_train_rl import Killed;"
        f"Killed({at}).trained({base!r}, {reward!r}, Path({str(out)!r}), **{changes!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not out.exists()


def weights(directory: Path | str) -> bytes:
    return (Path(directory) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_the_proxy_reward_rises_and_a_plain_model_is_written(
    tiny: str, likes_a: str, tmp_path: Path, algorithm: str
) -> None:
    told = Told()
    result = told.trained(
        tiny, likes_a, tmp_path / "rl", algorithm=algorithm, steps=15, kl_budget=50
    )
    assert result.end.proxy - result.start.proxy > 6 * (result.end.proxy_se + result.start.proxy_se)
    assert result.end.kl > 1
    assert told.trace == result.trace
    assert [step.step for step in result.trace] == list(range(1, 16))
    assert told.steps == [(n, 15) for n in range(1, 16)]
    assert (result.steps, result.budget_spent) == (15, False)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "rl", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    before, after = (GenerationConfig.from_pretrained(d) for d in (tiny, tmp_path / "rl"))
    assert after.to_dict() == before.to_dict()
    assert {path.name for path in tmp_path.iterdir()} == {"rl"}


def test_the_proxy_is_the_reward_models_own_score_with_mean_0_and_variance_1_at_the_start(
    tiny: str, likes_a: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[tuple[list[Prompt], list[str], list[float]]] = []
    grade = rl_answers.Grader.__call__

    def spied(self: Any, prompts: Any, texts: Any) -> list[float]:
        batches.append((list(prompts), list(texts), scores := grade(self, prompts, texts)))
        return scores

    monkeypatch.setattr(rl_answers.Grader, "__call__", spied)
    result = Told().trained(tiny, likes_a, tmp_path / "rl", steps=1)
    start, step, _ = batches
    assert len(start[1]) == SETTINGS.normalise_on
    assert statistics.fmean(start[2]) == pytest.approx(0, abs=1e-9)
    assert statistics.pstdev(start[2]) == pytest.approx(1)
    items = [(prompt, [text]) for prompt, text in zip(step[0], step[1], strict=True)]
    raw = [r for (r,) in score_reward(likes_a, items, 1024, lambda *_: None) if r is not None]
    ((mean,), (sd,)) = result.scale.mean, result.scale.std
    by_hand = [(r - mean) / sd for r in raw]
    assert step[2] == pytest.approx(by_hand, abs=1e-4)
    assert result.trace[0].proxy == pytest.approx(statistics.fmean(by_hand), abs=1e-4)


def test_the_kl_of_a_step_is_the_mean_of_the_log_ratios_worked_by_hand(
    tiny: str, likes_a: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand: list[float] = []
    ratios = rl_answers.log_ratios

    def log_prob(model: Any, x: list[int], y: list[int]) -> float:
        """One softmax at a time, of a policy at temperature 0.7."""
        with torch.no_grad():
            logits_TV = model(torch.tensor([x + y])).logits[0].double() / 0.7
        p_TV = logits_TV.exp() / logits_TV.exp().sum(-1, keepdim=True)
        return sum(math.log(p_TV[len(x) + t - 1, token]) for t, token in enumerate(y))

    def spied(
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        encoded: Sequence[tuple[list[int], list[int]]],
        *rest: Any,
    ) -> list[float]:
        found = [log_prob(policy, x, y) - log_prob(reference, x, y) for x, y in encoded]
        by_hand.append(statistics.fmean(found))
        # An end is the last of its tokens.
        assert all(y and 257 not in y[:-1] for _, y in encoded)
        return ratios(policy, reference, encoded, *rest)

    monkeypatch.setattr(rl_answers, "log_ratios", spied)
    result = Told().trained(tiny, likes_a, tmp_path / "rl", steps=4, temperature=0.7)
    assert result.trace[0].kl == pytest.approx(0, abs=1e-5)
    assert abs(result.trace[-1].kl) > 0.1
    assert [m.kl for m in (*result.trace, result.end)] == pytest.approx(by_hand, abs=1e-4)


def test_the_kl_of_a_step_is_what_trls_rloo_takes_off_the_reward(
    tiny: str, likes_a: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs: list[float] = []
    log = rl.RLOOTrainer.log

    def spied(self: Any, logs: dict[str, float], *rest: Any) -> None:
        log(self, logs, *rest)
        if "kl" in logs:
            theirs.append(logs["kl"])

    monkeypatch.setattr(rl.RLOOTrainer, "log", spied)
    result = Told().trained(tiny, likes_a, tmp_path / "rl", steps=4, temperature=0.7)
    # Theirs is a token's mean, over all tokens of a step.
    assert [m.kl / m.length for m in result.trace] == pytest.approx(theirs, abs=1e-5)


def test_the_kl_budget_stops_before_the_step_that_it_does_not_allow(
    tiny: str, likes_a: str, tmp_path: Path
) -> None:
    told = Told()
    result = told.trained(tiny, likes_a, tmp_path / "rl", steps=30, kl_budget=1.0)
    assert result.budget_spent
    assert result.trace[-1].kl > 1.0
    assert all(step.kl <= 1.0 for step in result.trace[:-1])
    assert result.steps == len(result.trace) - 1 < 30
    assert any(
        line.startswith(f"step {len(result.trace)}: the policy is ") and "KL budget of 1" in line
        for line in told.lines
    )
    # What is saved is the policy that was measured.
    Told().trained(tiny, likes_a, tmp_path / "same", steps=result.steps, kl_budget=1.0)
    assert weights(tmp_path / "same") == weights(tmp_path / "rl")


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_the_same_seed_gives_the_same_weights_and_another_gives_others(
    tiny: str, likes_a: str, tmp_path: Path, algorithm: str
) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        changes = {"algorithm": algorithm, "seed": seed, "steps": 2, "normalise_on": 8}
        Told().trained(tiny, likes_a, tmp_path / name, **changes)
    one, two, three = (weights(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one != three


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_parts_of_a_step_change_nothing(
    tiny: str, likes_a: str, tmp_path: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients: list[torch.Tensor] = []
    guard = rl._Guard.on_pre_optimizer_step

    def spied(self: Any, *rest: Any, **kwargs: Any) -> None:
        guard(self, *rest, **kwargs)
        gradients.append(kwargs["model"].lm_head.weight.grad.clone())

    monkeypatch.setattr(rl._Guard, "on_pre_optimizer_step", spied)
    for n in (16, 5):  # of 16 answers at most 4 at once
        changes = {"algorithm": algorithm, "steps": 1, "normalise_on": 8}
        Told().trained(tiny, likes_a, tmp_path / str(n), answers_at_once=n, **changes)
    whole, parts = gradients
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_a_held_out_check_scores_the_same_answers_and_teaches_nothing(
    tiny: str, likes_a: str, tmp_path: Path
) -> None:
    opposite = head_changed(likes_a, tmp_path / "opposite", -2.0)
    checked = Told().trained(tiny, likes_a, tmp_path / "checked", opposite)
    assert [s.held_out for s in checked.trace] == pytest.approx(
        [-s.proxy for s in checked.trace], abs=1e-4
    )
    assert checked.end.held_out == pytest.approx(-checked.end.proxy, abs=1e-4)
    unchecked = Told().trained(tiny, likes_a, tmp_path / "unchecked")
    assert unchecked.end.held_out is None
    assert weights(tmp_path / "checked") == weights(tmp_path / "unchecked")


def test_adapters_are_merged_into_a_plain_model(tiny: str, likes_a: str, tmp_path: Path) -> None:
    result = Told().trained(
        tiny, likes_a, tmp_path / "rl", lora={"rank": 4}, steps=4, gradient_checkpointing=True
    )
    assert result.trace[0].kl == pytest.approx(0, abs=1e-5)
    assert abs(result.end.kl) > 0.01
    plain, base = (AutoModelForCausalLM.from_pretrained(d) for d in (tmp_path / "rl", tiny))
    assert {n for n, _ in plain.named_parameters()} == {n for n, _ in base.named_parameters()}
    assert (tmp_path / "rl" / "adapter" / "adapter_config.json").is_file()


@pytest.mark.parametrize("how", ["mean", "worst"])
def test_an_ensemble_rewards_with_its_members_normalised_and_made_one(
    tiny: str, likes_a: str, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Path(head_changed(likes_a, tmp_path / "both", 1.0))
    weight_1H = load_file(both / "model.safetensors")["score.weight"]
    other_1H = torch.randn(weight_1H.shape, generator=torch.Generator().manual_seed(0))
    (both / HEADS).parent.mkdir()
    save_file({"weight": torch.cat([weight_1H, other_1H])}, both / HEADS)
    raw: list[Any] = []
    scores = rl_answers.Grader._raw

    def spied(self: Any, *rest: Any) -> Any:
        raw.append(scores(self, *rest))
        return raw[-1]

    monkeypatch.setattr(rl_answers.Grader, "_raw", spied)
    result = Told().trained(tiny, str(both), tmp_path / "rl", steps=1, ensemble=how)
    start_NM, _, step_NM, _ = raw
    assert start_NM.shape == (SETTINGS.normalise_on, 2)
    mean_M, sd_M = start_NM.mean(axis=0), start_NM.std(axis=0)
    assert result.scale.mean == pytest.approx(mean_M)

    def made_one(raw_NM: Any) -> Any:
        normalised_NM = (raw_NM - mean_M) / sd_M
        return normalised_NM.mean(axis=1) if how == "mean" else normalised_NM.min(axis=1)

    at_start = made_one(start_NM)
    by_hand = (made_one(step_NM) - at_start.mean()) / at_start.std()
    assert result.trace[0].proxy == pytest.approx(by_hand.mean())
    assert result.start.proxy == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("learning_rate", "what"), [(1e38, "infinite or NaN")])
def test_weights_that_are_no_numbers_stop_it_and_nothing_is_saved(
    tiny: str, likes_a: str, tmp_path: Path, learning_rate: float, what: str
) -> None:
    with pytest.raises(TrainingDiverged, match=what):
        Told().trained(tiny, likes_a, tmp_path / "rl", learning_rate=learning_rate)
    assert not list(tmp_path.iterdir())


def test_a_reward_that_is_no_number_stops_it(tiny: str, likes_a: str, tmp_path: Path) -> None:
    broken = head_changed(likes_a, tmp_path / "broken", math.nan)
    with pytest.raises(TrainingDiverged, match="a reward that is infinite or NaN"):
        Told().trained(tiny, broken, tmp_path / "rl")


def test_a_reward_model_that_cannot_tell_answers_apart_is_refused(
    tiny: str, likes_a: str, tmp_path: Path
) -> None:
    flat = head_changed(likes_a, tmp_path / "flat", 0.0)
    with pytest.raises(SetupError, match=r"flat: gives every answer .* the same reward"):
        Told().trained(tiny, flat, tmp_path / "rl")


def test_prompts_that_leave_no_room_for_an_answer_are_left_out_and_counted(
    tiny: str, likes_a: str, tmp_path: Path
) -> None:
    long = Prompt(id="long", messages=(Message(role="user", content="x" * 9000),))
    told = Told()
    result = told.trained(tiny, likes_a, tmp_path / "rl", prompts=[long, *PROMPTS], steps=1)
    assert (result.prompts, result.dropped_prompts) == (12, 1)
    assert "1 prompts are too long for the model and are left out" in told.lines
    with pytest.raises(SetupError, match=r"rl\.max_new_tokens: 0 of 12 prompts leave room"):
        told.trained(tiny, likes_a, tmp_path / "none", max_new_tokens=9000)
    with pytest.raises(SetupError, match=r"rl\.batch_prompts: 12 of 12 .* a step takes 13"):
        told.trained(tiny, likes_a, tmp_path / "none", batch_prompts=13)


def test_what_is_no_model_is_refused_before_anything_is_drawn(
    tiny: str, likes_a: str, tmp_path: Path
) -> None:
    for base, reward in ((tiny, tiny), (likes_a, likes_a), (tiny, str(tmp_path / "absent"))):
        told = Told()
        with pytest.raises(SetupError):
            told.trained(base, reward, tmp_path / "rl")
        assert told.lines == []


def plain(result: RLResult) -> dict[str, Any]:
    return dataclasses.asdict(dataclasses.replace(result, seconds=0.0))


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        (0, {}),
        (2, {"algorithm": "grpo", "lora": {"rank": 4}}),
        # Before a turn of the prompts begins, and within it.
        (3, {}),
        (4, {"answers_at_once": 4}),
    ],
)
def test_rl_that_was_killed_goes_on_to_the_weights_and_trace_of_an_undisturbed_one(
    tiny: str, likes_a: str, tmp_path: Path, at: int, changes: dict[str, Any]
) -> None:
    undisturbed = Told().trained(tiny, likes_a, tmp_path / "whole", **EACH_STEP, **changes)
    killed(tiny, likes_a, tmp_path / "again", at, **EACH_STEP, **changes)
    told = Told()
    result = told.trained(tiny, likes_a, tmp_path / "again", **EACH_STEP, **changes)
    assert told.lines[0] == (
        f"going on from step {at}, where a checkpoint was kept"
        if at
        else "measuring the trained policy"
    )
    assert told.steps == [(n, 6) for n in range(at + 1, 7)]
    # The steps before are told again: alarms hang on all of them.
    assert told.trace == result.trace
    assert plain(result) == plain(undisturbed)
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "again"}


def test_rl_of_another_kind_does_not_go_on_from_the_checkpoint(
    tiny: str, likes_a: str, tmp_path: Path
) -> None:
    killed(tiny, likes_a, tmp_path / "rl", 1, **EACH_STEP)
    told = Told()
    told.trained(tiny, likes_a, tmp_path / "rl", **EACH_STEP, prompts=PROMPTS[1:])
    assert "measuring the start policy" in told.lines
    assert not any("going on" in line for line in told.lines)


def test_rl_that_diverges_names_its_last_good_checkpoint(
    tiny: str, likes_a: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()

    def stop(step: int, total: int) -> None:
        if step == 3:
            raise TrainingDiverged("the last step made it NaN")

    monkeypatch.setattr(told, "on_step", stop)
    with pytest.raises(TrainingDiverged) as e:
        told.trained(tiny, likes_a, tmp_path / "rl", **EACH_STEP)
    kept = tmp_path / ".rl.training" / "checkpoint-2"
    assert str(e.value).endswith(f"the last good checkpoint is {kept}")
    assert kept.is_dir()


def test_settings_that_only_say_how_to_compute_leave_rl_what_it_is() -> None:
    assert set(RLSettings.model_fields) >= UNTOLD


def test_repetition_counts_runs_of_four_that_an_answer_has_had_before() -> None:
    assert repetition([1, 2, 3]) == 0
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([7] * 6) == pytest.approx(2 / 3)  # three runs, all alike
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_distinct_counts_token_pairs_over_all_answers_to_a_prompt() -> None:
    assert distinct([[1], []]) == 1
    assert distinct([[1, 2, 3], [1, 2, 4]]) == pytest.approx(3 / 4)
    assert distinct([[5, 5, 5, 5]]) == pytest.approx(1 / 3)


def test_a_standard_error_is_that_of_the_prompts_means_worked_by_hand() -> None:
    found = measure(
        3,
        ["x", "x", "y", "y", "z", "z"],
        [[1, 2], [1], [3] * 5, [4], [5], [6, 7]],
        [True, False, False, False, False, False],
        [1.0, 3.0, 2.0, 4.0, 6.0, 8.0],
        [0.0] * 6,
        None,
    )
    # Means 2, 3 and 7: 4, and a variance of (4 + 1 + 9) / 2 = 7.
    assert found.kl == pytest.approx(4)
    assert found.kl_se == pytest.approx(math.sqrt(7 / 3))
    assert found.proxy_se == 0
    assert found.length == pytest.approx(2)
    assert found.truncated == pytest.approx(1 / 6)
    assert found.repetition == pytest.approx((1 / 2) / 6)
    assert found.held_out is None

"""A study's stages between people's data and the report: what is judged, trained again and kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import SetupError
from rlaif.files import read_jsonl
from rlaif.gold import load_gold
from rlaif.gold.grouping import grouped, opening
from rlaif.recipe import KINDS, StudyConfig, execute_study, load_as
from rlaif.recipe.study import STAGES
from rlaif.stages import arms
from rlaif.stages._training import Start, start_weights
from rlaif.stages.train_rm import RewardModelConfig
from rlaif.train import scoring
from rlaif.types import Comparison, PreferenceGroup
from rlaif.workspace import Workspace


def pairs(folder: Path, prompts: int, each: int) -> str:
    rows = [
        {"prompt": f"Question {p}?", "chosen": f"good {p} {i}", "rejected": f"bad {p} {i} and more"}
        for p in range(prompts)
        for i in range(each)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def study(path: str, *changes: str) -> StudyConfig:
    given = [f"human.path={path}", "judge.model=fake/shorter", "judge.constitution=concise"]
    given.append("policy.model=embedded/tiny-random")
    config, _ = load_as(KINDS["human"], "rlhf-vs-rlaif", [*given, *changes], None)
    assert isinstance(config, StudyConfig)
    return config


def test_the_judge_is_asked_about_the_pairs_that_people_compared_and_no_others(
    tmp_path: Path,
) -> None:
    config = study(pairs(tmp_path, prompts=8, each=2))

    async def run() -> None:
        work = Workspace(tmp_path / "run", 0, {})
        try:
            await STAGES["human"](config, work)
            await STAGES["judge"](config, work)
        finally:
            await work.close()

    asyncio.run(run())
    groups = read_jsonl(tmp_path / "run" / "human.jsonl", PreferenceGroup)
    assert [len(g.responses) for g in groups] == [4] * 8
    judged = read_jsonl(tmp_path / "run" / "comparisons.jsonl", Comparison)
    assert {(c.first, c.second) for c in judged} == {
        (f"{g.prompt.id}/{c.first}", f"{g.prompt.id}/{c.second}")
        for g in groups
        for c in g.comparisons
    }
    assert len(judged) == 16


def test_a_tie_beside_a_decided_row_is_level_and_repeats_nothing(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q?", "response_a": "one", "response_b": "other", "label": label}
        for label in (1, 0)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([*rows, {**rows[0], "prompt": "R?", "label": 2}]))
    gold = load_gold(str(path)).pairs
    found = grouped(gold, {opening(p.prompt): "train" for p in gold})
    assert (found.level, found.repeated, found.contradicted) == (1, 0, 0)
    assert [c.p_first for g in found.groups for c in g.comparisons] == [1.0, 0.0]


def test_a_study_is_named_like_one_folder(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="one folder's name"):
        study(pairs(tmp_path, 4, 1), "name=../elsewhere")


def test_a_judge_of_people_s_pairs_chooses_none_itself(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="people's pairs"):
        study(pairs(tmp_path, 4, 1), "judge.comparisons=adjacent")


def test_an_evaluating_judge_that_cannot_be_asked_so_is_refused_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    way = ("judge.mode=pointwise", "evaluation.judge=fake/longer?logprobs=no")
    config = study(pairs(tmp_path, 8, 1), *way)
    with pytest.raises(SetupError, match=r"evaluation\.judge\.mode: .*log-probabilities"):
        execute_study(config, tmp_path / "run", reconfigure=False)
    assert not (tmp_path / "run").exists()


SETTINGS = RewardModelConfig(learning_rate=1e-3, batch_groups=2)


class Arm:
    """One arm's reward model, trained on a tiny model."""

    def __init__(self, folder: Path) -> None:
        gold = load_gold(pairs(folder, prompts=4, each=1)).pairs
        groups = grouped(gold, {opening(p.prompt): "train" for p in gold}).groups
        self.plan = arms.Plan(groups, groups, groups, groups)
        self.work = Workspace(folder / "run", 0, {})
        self.start: Start = start_weights(None, "embedded/tiny-random", "dpo")
        self.folder = folder / "run" / "arms" / "human-0" / "reward_model"

    def train(self, settings: RewardModelConfig = SETTINGS, *, keep: bool = False) -> Any:
        unit = arms.Unit("human", 0, 1.0)
        arms._reward_model(
            unit, self.plan.human, [], self.plan, settings, self.start, self.work, keep=keep
        )
        return json.loads((self.folder / "scores.json").read_text())


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[Arm]:
    found = Arm(tmp_path)
    yield found
    asyncio.run(found.work.close())


def test_what_another_config_left_half_made_is_not_taken_for_this_ones(
    arm: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = arm.train()
    with monkeypatch.context() as patched:
        # A kill between the new scores and their stamp.
        patched.setattr(arm.work, "mark_made", lambda *_: None)
        other = arm.train(SETTINGS.model_copy(update={"learning_rate": 3e-3}))
    assert other != before
    assert arm.train() == before


def test_nothing_is_scored_twice_and_weights_are_made_when_they_are_to_be_kept(
    arm: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = arm.train()
    assert not (arm.folder / "weights").exists()
    with monkeypatch.context() as patched:
        patched.delattr(scoring, "score_reward")
        assert arm.train() == before
    assert arm.train(keep=True) == before
    assert (arm.folder / "weights" / "model.safetensors").is_file()

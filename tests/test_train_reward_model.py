"""The reward model in memory: the scores of a plain forward pass, however they are batched."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_train_training import GROUPS, ITEMS, quiet_step
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rlaif
from rlaif.errors import SetupError
from rlaif.train import reward_model, scorers
from rlaif.train.reward_model import RewardModel
from rlaif.train.scale import RewardScale, Score, best, p_preferred, write_scale
from rlaif.train.scoring import score_members
from rlaif.train.settings import LoraSettings, RewardSettings
from rlaif.train.tiny import make_tiny
from rlaif.train.training import train_reward_model
from rlaif.types import Message

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = RewardSettings(learning_rate=3e-3, epochs=1, batch_groups=4)
SCALE = RewardScale(mean=(1.0, -2.0), std=(2.0, 0.5), responses=9, temperature=4.0)


def trained(folder: Path, members: int, lora: LoraSettings | None) -> str:
    make_tiny(folder / "base", seed=0)
    changed = SETTINGS.model_copy(update={"members": members, "lora": lora})
    out = folder / "rm"
    train_reward_model(str(folder / "base"), GROUPS, changed, 0, out, quiet_step, lambda _: None)
    return str(out)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two heads on one body, with a scale."""
    out = trained(tmp_path_factory.mktemp("heads"), 2, None)
    write_scale(SCALE, Path(out))
    return out


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two members that are adapters, without a scale."""
    return trained(tmp_path_factory.mktemp("adapters"), 2, LoraSettings(rank=4, alpha=8))


def loaded(folder: str, **changes: object) -> RewardModel:
    return RewardModel.load(folder, on_log=lambda _: None, **changes)  # type: ignore[arg-type]


def raw(scores: Iterator[list[Score | None]]) -> np.ndarray:
    return np.array([[s.raw_M for s in row if s is not None] for row in scores])


def test_importing_rlaif_imports_no_torch_and_has_the_class() -> None:
    code = "import sys, rlaif; print('torch' in sys.modules, 'RewardModel' in rlaif.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert rlaif.RewardModel is RewardModel
    with pytest.raises(AttributeError, match="RewardModels"):
        rlaif.RewardModels  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("kind", ["heads", "adapters"])
def test_all_members_score_as_they_do_when_they_are_loaded_one_by_one(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    expected_PKM = np.array(score_members(folder, ITEMS, 1024, quiet_step), dtype=np.float64)
    found = raw(loaded(folder).score_many(ITEMS))
    assert found.shape == (8, 4, 2)
    np.testing.assert_allclose(found, expected_PKM, atol=1e-5)


def test_the_first_member_is_the_forward_pass_of_transformers(heads: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(heads)
    tokenizer = AutoTokenizer.from_pretrained(heads)
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "An answer"}]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        expected = model(**ids).logits.item()
    (score,) = loaded(heads).score("Q", ["An answer"])
    assert score is not None
    assert score.raw_M[0] == pytest.approx(expected, abs=1e-5)


def test_half_precision_changes_a_score_by_rounding_alone(heads: str) -> None:
    exact = raw(loaded(heads).score_many(ITEMS))
    rounded = raw(loaded(heads, dtype="bfloat16", device="cpu").score_many(ITEMS))
    assert 0 < np.abs(exact - rounded).max() < 0.05


def test_a_score_is_what_its_scale_makes_of_the_members(heads: str) -> None:
    for how, by_hand in (
        ("mean", lambda a, b: (a + b) / 2),
        ("worst", min),
        ("uncertain", lambda a, b: (a + b) / 2 - 3.0 * ((a - b) / 2) ** 2),
    ):
        model = loaded(heads, how=how, penalty=3.0)
        (score,) = model.score("Q", ["An answer"])
        assert score is not None
        a, b = (score.raw_M[0] - 1.0) / 2.0, (score.raw_M[1] + 2.0) / 0.5
        assert score.members_M == pytest.approx((a, b))
        assert score.score == pytest.approx(by_hand(a, b))


def test_the_chance_to_be_preferred_is_calibrated_by_the_temperature(
    heads: str, adapters: str
) -> None:
    first, second = Score(0.0, (0.0,), (3.0, 1.0)), Score(0.0, (0.0,), (0.0, 2.0))
    # Mean difference 1 nat: temperature 4 where there is one, else the nat as it is.
    assert loaded(heads).p_preferred(first, second) == pytest.approx(1 / (1 + math.exp(-0.25)))
    assert loaded(adapters).p_preferred(first, second) == pytest.approx(1 / (1 + math.exp(-1.0)))
    unfitted = loaded(heads)
    unfitted.scale = SCALE.model_copy(update={"temperature": None})
    assert unfitted.p_preferred(first, second) == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert p_preferred([-2e3]) == 0.0


def test_a_reward_model_of_anothers_making_says_that_its_scores_are_raw(adapters: str) -> None:
    said: list[str] = []
    model = RewardModel.load(adapters, on_log=said.append)
    assert [line.partition(": ")[2] for line in said] == [
        "no reward.json says what its scores mean; they are raw"
    ]
    assert model.scale is None
    (score,) = model.score("Q", ["An answer"])
    assert score is not None
    assert score.members_M == score.raw_M
    assert score.score == pytest.approx(sum(score.raw_M) / 2)


def test_a_prompt_may_be_text_or_messages_and_must_end_with_the_user(heads: str) -> None:
    model = loaded(heads)
    turns = [{"role": "user", "content": "Q"}]
    typed = [Message(role="user", content="Q")]
    assert model.score("Q", ["A"]) == model.score(turns, ["A"]) == model.score(typed, ["A"])
    with pytest.raises(SetupError, match="last message of a prompt must be the user's"):
        model.score([*turns, {"role": "assistant", "content": "A"}], ["A"])
    with pytest.raises(SetupError, match="role"):
        model.score([{"role": "cook", "content": "A"}], ["A"])


@pytest.mark.parametrize("prompt", [None, 3, {"role": "user", "content": "Q"}, b"Q"])
def test_what_is_no_prompt_is_said(heads: str, prompt: Any) -> None:
    with pytest.raises(SetupError, match="give a text, or messages"):
        loaded_once(heads).score(prompt, ["A"])


@pytest.mark.parametrize(
    ("responses", "found"), [("abc", "'abc'"), ("", "''"), (None, "None"), (["A", 3], "3 among")]
)
def test_responses_are_a_list_of_texts_and_no_text(heads: str, responses: Any, found: str) -> None:
    with pytest.raises(SetupError, match=f"^responses: found {found}.*give a list of texts"):
        loaded_once(heads).score("hi", responses)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("how", "wrost"),
        ("dtype", "bf16"),
        ("penalty", -1.0),
        ("penalty", math.inf),
        ("max_length", 1),
    ],
)
def test_a_setting_that_is_none_is_refused_before_anything_is_loaded(
    setting: str, value: object
) -> None:
    with pytest.raises(SetupError, match=rf"^RewardModel\.load\('absent'\): {setting}: "):
        loaded("absent", **{setting: value})


def test_what_is_too_long_has_no_score_and_is_never_the_best(heads: str) -> None:
    model = loaded(heads, max_length=64)
    assert model.score("Q", []) == []
    none, score = model.score("Q", ["long " * 20, "short"])
    assert none is None
    assert score is not None
    assert model.best_of("Q", ["long " * 20, "short"]).chosen == 1
    assert model.best_of("Q", ["long " * 20]).chosen is None


def test_the_best_is_the_first_of_the_highest() -> None:
    def score(value: float) -> Score:
        return Score(value, (value,), (value,))

    assert best([score(1.0), None, score(2.0), score(2.0)]).chosen == 2
    assert best([]).chosen is None


@given(
    items=st.lists(
        st.tuples(st.text("ab ", min_size=1, max_size=90), st.lists(st.text("xy", max_size=60))),
        max_size=6,
    ),
    tokens_at_once=st.sampled_from([1, 64, 300]),
    window=st.sampled_from([1, 200]),
)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_they_fall_into_batches_the_scores_are_the_same_and_in_order(
    heads: str,
    monkeypatch: pytest.MonkeyPatch,
    items: list[tuple[str, list[str]]],
    tokens_at_once: int,
    window: int,
) -> None:
    one_by_one = [[loaded_once(heads).score(p, [r])[0] for r in row] for p, row in items]
    with monkeypatch.context() as patched:
        patched.setattr(scorers, "TOKENS_AT_ONCE", tokens_at_once)
        patched.setattr(reward_model, "TOKENS_AT_ONCE", tokens_at_once)
        patched.setattr(reward_model, "WINDOW_TOKENS", window)
        together = list(loaded_once(heads).score_many(items))
    for row, expected in zip(together, one_by_one, strict=True):
        for a, b in zip(row, expected, strict=True):
            assert a is not None
            assert b is not None
            assert a.raw_M == pytest.approx(b.raw_M, abs=1e-5)


MODELS: dict[str, RewardModel] = {}


def loaded_once(folder: str) -> RewardModel:
    return MODELS.setdefault(folder, loaded(folder))


def test_items_are_taken_as_they_are_needed(heads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_model, "WINDOW_TOKENS", 100)
    taken = 0

    def asked() -> Iterator[tuple[str, list[str]]]:
        nonlocal taken
        for taken in range(1, 1001):  # noqa: B007
            yield "Q", ["An answer", "Another"]

    scores = loaded(heads).score_many(asked())
    assert len(next(scores)) == 2
    assert taken < 10


def test_a_model_that_takes_no_packed_groups_is_asked_one_response_a_row(
    heads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = raw(loaded(heads).score_many(ITEMS))
    checked: list[int] = []

    def error(_score: Callable[..., object], groups: list[object], *_: object) -> float:
        checked.append(len(groups))
        return 1.0

    monkeypatch.setattr("rlaif.train.scorers.packing_error", error)
    found = raw(loaded(heads).score_many(ITEMS))
    assert len(checked) == 1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_no_reward_model_is_refused(heads: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no config\.json"):
        loaded(str(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(heads)
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(heads).save_pretrained(tmp_path)
    with pytest.raises(SetupError, match="infinite or NaN"):
        loaded(str(tmp_path)).score("Q", ["A"])
    write_scale(SCALE, tmp_path)
    with pytest.raises(SetupError, match="of 2 members, the weights are of 1"):
        loaded(str(tmp_path))


def test_a_conversation_that_the_chat_template_refuses_is_said(heads: str) -> None:
    model = loaded(heads)
    model._tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(SetupError, match="refuses the conversation: no system role"):
        model.score("Q", ["A"])

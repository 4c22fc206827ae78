from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    LlamaForCausalLM,
    T5Config,
)

from rlaif.errors import SetupError, TrainingDiverged
from rlaif.train import ensemble, scorers, scoring, training
from rlaif.train.scoring import response_logprobs, sampled_logprobs, score_reward
from rlaif.train.settings import DPOSettings, RewardSettings
from rlaif.train.tiny import make_tiny
from rlaif.train.training import TrainResult, train_dpo, train_reward_model
from rlaif.types import Message, PreferenceGroup, Prompt, WeightedComparison

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = RewardSettings(learning_rate=3e-3, epochs=3, batch_groups=4)
DPO = DPOSettings(learning_rate=3e-3, epochs=3, batch_groups=4)
LONG = "a very long winded answer that goes on "


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(out, seed=0)
    return str(out)


def group_of(number: int) -> PreferenceGroup:
    """Four responses, the shorter always preferred."""
    return PreferenceGroup(
        prompt=Prompt(id=str(number), messages=(Message(role="user", content=f"Q{number}"),)),
        responses=tuple(LONG[: 4 + 9 * k + number] for k in range(4)),
        comparisons=tuple(
            WeightedComparison(first=i, second=j, p_first=1.0)
            for i in range(4)
            for j in range(i + 1, 4)
        ),
        split="train",
        labeler="planted",
    )


GROUPS = [group_of(n) for n in range(8)]
ITEMS = [(group.prompt, group.responses) for group in GROUPS]


def quiet_step(step: int, total: int, metrics: Mapping[str, float]) -> None:
    assert step <= total


def train(
    kind: str, base: str, out: Path, groups: list[PreferenceGroup] = GROUPS, **changes: Any
) -> TrainResult:
    if kind == "rm":
        settings = SETTINGS.model_copy(update=changes)
        return train_reward_model(base, groups, settings, 0, out, quiet_step, pytest.fail)
    return train_dpo(
        base, groups, DPO.model_copy(update=changes), 0, out, quiet_step, lambda _: None
    )


def test_the_reward_model_is_a_plain_classifier_that_learned_the_rule(
    tiny: str, tmp_path: Path
) -> None:
    result = train("rm", tiny, tmp_path / "rm")
    assert result.steps == len(result.losses) == len(result.accuracies) == 6
    assert (result.groups, result.dropped_responses) == (8, 0)
    assert result.losses[-1] < result.losses[0]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    assert plain.config.num_labels == 1
    assert plain.config.pad_token_id == tokenizer.pad_token_id
    rewards = score_reward(str(tmp_path / "rm"), ITEMS, 1024, quiet_step)
    prompt, responses = ITEMS[3]
    messages = [*prompt.model_dump()["messages"], {"role": "assistant", "content": responses[1]}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        assert rewards[3][1] == pytest.approx(plain(**ids).logits.item(), abs=1e-5)
    for shortest, *_, longest in rewards:
        assert shortest is not None
        assert longest is not None
        assert shortest > longest
    assert {p.name for p in tmp_path.iterdir()} == {"rm"}


def test_the_policy_is_a_plain_causal_model_that_prefers_what_was_preferred(
    tiny: str, tmp_path: Path
) -> None:
    result = train("dpo", tiny, tmp_path / "dpo")
    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert result.losses[-1] < math.log(2)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "dpo")
    assert isinstance(plain, LlamaForCausalLM)
    before = response_logprobs(tiny, ITEMS, 1024, quiet_step)
    after = response_logprobs(str(tmp_path / "dpo"), ITEMS, 1024, quiet_step)
    ordered = 0
    for old_K, new_K in zip(before, after, strict=True):
        implicit = [n - o for n, o in zip(new_K, old_K, strict=True)]  # type: ignore[operator]
        ordered += implicit[0] > implicit[3]
    assert ordered == len(ITEMS)


@pytest.mark.parametrize("kind", ["rm", "dpo"])
def test_the_same_seed_gives_the_same_weights(tiny: str, tmp_path: Path, kind: str) -> None:
    results = [train(kind, tiny, tmp_path / name) for name in ("a", "b")]
    assert results[0].losses == results[1].losses
    a, b = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("a", "b"))
    assert a == b


def test_another_seed_gives_another_reward_model(tiny: str, tmp_path: Path) -> None:
    runs = [
        train_reward_model(tiny, GROUPS, SETTINGS, seed, tmp_path / "x", quiet_step, pytest.fail)
        for seed in (0, 1)
    ]
    assert runs[0].losses != runs[1].losses


@pytest.mark.parametrize("kind", ["rm", "dpo"])
@pytest.mark.parametrize("tokens_at_once", [300, 60])
def test_a_step_in_parts_gives_the_losses_and_weights_of_one_in_one_piece(
    tiny: str, tmp_path: Path, kind: str, tokens_at_once: int
) -> None:
    # Of 60 tokens not even a group: its responses are scored in two passes.
    whole = train(kind, tiny, tmp_path / "a", batch_groups=8)
    parts = train(kind, tiny, tmp_path / "b", batch_groups=8, tokens_at_once=tokens_at_once)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    assert parts.accuracies == pytest.approx(whole.accuracies)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    for name, weight in a.items():
        torch.testing.assert_close(b[name], weight, rtol=1e-3, atol=2e-4)


def test_every_step_is_reported_with_its_total(tiny: str, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    seen: list[Mapping[str, float]] = []

    def on_step(step: int, total: int, metrics: Mapping[str, float]) -> None:
        steps.append((step, total))
        seen.append(metrics)

    result = train_reward_model(tiny, GROUPS, SETTINGS, 0, tmp_path / "rm", on_step, pytest.fail)
    assert steps == [(n, 6) for n in range(1, 7)]
    assert [m["loss"] for m in seen] == result.losses
    assert [m["accuracy"] for m in seen] == result.accuracies
    assert max(m["learning_rate"] for m in seen) == pytest.approx(3e-3)


def test_each_response_is_scored_once_for_the_reference_whatever_the_epochs(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gradients: list[int] = []
    plain = scorers.response_log_probs

    def counted(model: Any, batch: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            without_gradients.append(len(batch["reference_N"]))
        return plain(model, batch)

    monkeypatch.setattr(training, "response_log_probs", counted)
    monkeypatch.setattr(scorers, "response_log_probs", counted)
    train("dpo", tiny, tmp_path / "dpo")
    packing_check = [2, 2]
    assert sum(without_gradients) == sum(packing_check) + 4 * len(GROUPS)


@pytest.mark.parametrize("kind", ["rm", "dpo"])
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
def test_a_diverging_run_stops_and_keeps_the_earlier_model(
    tiny: str, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "model"
    train(kind, tiny, out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(TrainingDiverged, match=r"the loss became .* nothing was saved"):
        train(kind, tiny, out, learning_rate=1e38, max_grad_norm=1e38)
    assert (out / "model.safetensors").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def test_weights_spoiled_by_the_last_step_are_not_saved(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="the last step"):
        train(
            "rm",
            tiny,
            tmp_path / "rm",
            learning_rate=1e38,
            epochs=0.5,
            warmup_ratio=0.0,
            weight_decay=1e38,
        )
    assert not (tmp_path / "rm").exists()


def test_a_response_that_is_too_long_has_no_score(tiny: str, tmp_path: Path) -> None:
    prompt = ITEMS[0][0]
    items = [(prompt, ["short", "x" * 500]), (prompt, ["x" * 500]), (prompt, ["short"])]
    scores = response_logprobs(tiny, items, 100, quiet_step)
    assert scores[0][0] is not None
    assert scores[0][1] is None
    assert scores[1] == [None]
    assert scores[2][0] == pytest.approx(scores[0][0], abs=1e-4)


def test_a_model_that_packing_changes_is_trained_unpacked_and_says_so(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = train("rm", tiny, tmp_path / "a")
    monkeypatch.setattr(scorers, "packing_error", lambda *_: 0.02)
    lines: list[str] = []
    result = train_reward_model(tiny, GROUPS, SETTINGS, 0, tmp_path / "b", quiet_step, lines.append)
    assert lines == [
        "packing changes this model's scores by 2.0e-02 of the largest; training one response a row"
    ]
    assert result.losses[0] == pytest.approx(packed.losses[0], abs=1e-5)


class Nameless(RuntimeError):
    def __str__(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (NotImplementedError("no such mask\nat line 3"), "no such mask"),
        (RuntimeError("shapes do not fit"), "shapes do not fit"),
        (IndexError("index out of range"), "index out of range"),
        (Nameless(), "Nameless"),
    ],
)
def test_a_model_that_fails_on_packed_groups_is_trained_unpacked_and_says_why(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str
) -> None:
    def failing(*_: Any) -> float:
        raise error

    monkeypatch.setattr(scorers, "packing_error", failing)
    lines: list[str] = []
    train_reward_model(tiny, GROUPS, SETTINGS, 0, tmp_path / "rm", quiet_step, lines.append)
    assert lines == [f"this model takes no packed groups ({cause}); training one response a row"]


def test_a_full_accelerator_is_not_taken_for_a_model_that_cannot_pack(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> float:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(scorers, "packing_error", failing)
    with pytest.raises(torch.OutOfMemoryError):
        train("rm", tiny, tmp_path / "rm")


def test_the_models_are_gone_when_a_call_has_ended(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []

    def remembered(load: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            model = load(*args, **kwargs)
            loaded.append(weakref.ref(model))
            return model

        return wrapped

    for module, name in (
        (scoring, "load_causal"),
        (training, "load_reward"),
        (ensemble, "load_reward"),
    ):
        monkeypatch.setattr(module, name, remembered(getattr(module, name)))
    prompt = ITEMS[0][0]
    calls: list[Callable[[], object]] = [
        lambda: train("rm", tiny, tmp_path / "rm"),
        lambda: train("dpo", tiny, tmp_path / "dpo"),
        lambda: score_reward(str(tmp_path / "rm"), ITEMS, 1024, quiet_step),
        lambda: response_logprobs(tiny, ITEMS, 1024, quiet_step),
        lambda: sampled_logprobs(tiny, [(prompt, [1, 2])], 1024, quiet_step),
    ]
    for number, call in enumerate(calls, 1):
        call()
        assert len(loaded) == number
        assert loaded[-1]() is None


def test_dpo_trains_on_a_cut_response_without_an_end_and_the_reward_model_as_ever(
    tiny: str, tmp_path: Path
) -> None:
    cut = [group.model_copy(update={"ended": (False,) * 4}) for group in GROUPS]
    rm, cut_rm, dpo, cut_dpo = (
        train(kind, tiny, tmp_path / kind, groups).losses
        for kind in ("rm", "dpo")
        for groups in (GROUPS, cut)
    )
    assert cut_rm == rm
    assert cut_dpo[1:] != dpo[1:]


def test_the_log_probability_of_a_cut_response_is_that_of_its_text(tiny: str) -> None:
    prompt = ITEMS[0][0]
    items = [(prompt, ["an answer", "an answer", ""])]
    ((whole, cut, nothing),) = response_logprobs(
        tiny, items, 1024, quiet_step, [(True, False, False)]
    )
    ((all_ended, *_),) = response_logprobs(tiny, items, 1024, quiet_step)
    ids = AutoTokenizer.from_pretrained(tiny)("an answer")["input_ids"]
    (text,) = sampled_logprobs(tiny, [(prompt, ids)], 1024, quiet_step)
    assert nothing is None
    assert cut == pytest.approx(text, abs=1e-4)
    assert whole == pytest.approx(all_ended, abs=1e-4)
    assert cut is not None
    assert whole is not None
    assert whole < cut


def test_bfloat16_computes_in_bfloat16_and_saves_float32(tiny: str, tmp_path: Path) -> None:
    exact = train("rm", tiny, tmp_path / "a")
    rough = train("rm", tiny, tmp_path / "b", dtype="bfloat16")
    assert rough.losses != exact.losses
    assert rough.losses == pytest.approx(exact.losses, abs=0.02)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b")
    assert saved.dtype == torch.float32


def test_gradient_checkpointing_changes_no_loss(tiny: str, tmp_path: Path) -> None:
    plain = train("dpo", tiny, tmp_path / "a")
    checkpointed = train("dpo", tiny, tmp_path / "b", gradient_checkpointing=True)
    assert checkpointed.losses == pytest.approx(plain.losses, rel=1e-5)


def test_a_directory_that_is_no_model_is_one_clear_line(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"is no model directory: it has no config\.json") as e:
        train("rm", str(tmp_path), tmp_path / "out")
    assert "\n" not in str(e.value)
    with pytest.raises(SetupError, match="is not there"):
        score_reward(str(tmp_path / "absent"), ITEMS, 64, quiet_step)


def test_a_folder_in_the_home_directory_is_loaded(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path(tiny).parent))
    train("rm", f"~/{Path(tiny).name}", tmp_path / "rm")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert score_reward("~/rm", ITEMS, 1024, quiet_step)


def test_models_of_the_wrong_kind_are_named_as_such(tiny: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for config in (T5Config(), BertConfig(vocab_size=300, hidden_size=12)):
        config.save_pretrained(tmp_path / config.model_type)
        tokenizer.save_pretrained(tmp_path / config.model_type)
        with pytest.raises(SetupError, match="is no causal language model") as e:
            train("dpo", str(tmp_path / config.model_type), tmp_path / "out")
        assert "\n" not in str(e.value)
    with pytest.raises(
        SetupError, match=r"is no reward model: it has no weights for score\.weight"
    ):
        score_reward(tiny, ITEMS, 64, quiet_step)
    train("rm", tiny, tmp_path / "rm")
    with pytest.raises(SetupError, match="is no causal language model: it has no weights for"):
        response_logprobs(str(tmp_path / "rm"), ITEMS, 64, quiet_step)


def test_a_target_that_is_somebody_elses_is_refused_before_training(
    tiny: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    def never(step: int, total: int, metrics: Mapping[str, float]) -> None:
        pytest.fail("trained")

    with pytest.raises(SetupError, match="holds files that are no model"):
        train_reward_model(tiny, GROUPS, SETTINGS, 0, tmp_path, never, pytest.fail)


def test_a_reward_model_can_be_trained_further(tiny: str, tmp_path: Path) -> None:
    first = train("rm", tiny, tmp_path / "rm")
    again = train("rm", str(tmp_path / "rm"), tmp_path / "rm")
    assert again.losses[0] < first.losses[0]


def test_a_policy_whose_reference_is_known_is_trained_packed(tiny: str, tmp_path: Path) -> None:
    references = response_logprobs(tiny, ITEMS, 1024, quiet_step)
    out = tmp_path / "dpo"
    # Whatever is said here would be that it does not pack.
    train_dpo(tiny, GROUPS, DPO, 0, out, quiet_step, pytest.fail, references)


def test_the_seconds_count_the_reference_too(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    plain = training.score_groups

    def slow(*arguments: Any, **named: Any) -> Any:
        now[0] += 1000
        return plain(*arguments, **named)

    monkeypatch.setattr(training, "score_groups", slow)
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    assert train("dpo", tiny, tmp_path / "dpo").seconds == 1000


def test_the_log_probability_of_a_sample_is_that_of_the_tokens_drawn_and_not_of_its_text(
    tiny: str,
) -> None:
    prompt = Prompt(id="0", messages=(Message(role="user", content="Q"),))
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    broken = [*tokenizer("an ")["input_ids"], *reversed(tokenizer("é")["input_ids"])]
    assert tokenizer.decode(broken) == "an \ufffd\ufffd"
    assert tokenizer("an \ufffd\ufffd")["input_ids"] != broken
    drawn = [broken, [*broken, tokenizer.eos_token_id], []]
    cut, ended, nothing = sampled_logprobs(
        tiny, [(prompt, ids) for ids in drawn], 1024, lambda *_: None
    )

    before = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    ids = [*before, *broken, tokenizer.eos_token_id]
    with torch.no_grad():
        log_probs_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    each = [float(log_probs_TV[t - 1, ids[t]]) for t in range(len(before), len(ids))]
    assert nothing is None
    assert cut == pytest.approx(sum(each[:-1]), abs=1e-4)
    assert ended == pytest.approx(sum(each), abs=1e-4)

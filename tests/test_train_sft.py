"""Fine-tuning on revised answers: the loss by hand, TRL as the oracle, the stage."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer

from rlaif.errors import SetupError
from rlaif.evaluate.schema import SFTSection
from rlaif.files import write_jsonl
from rlaif.stages import train_sft as stage
from rlaif.stages.train_sft import SFTConfig
from rlaif.train import scoring, training
from rlaif.train.collate import Batch, collate
from rlaif.train.groups import encode_examples
from rlaif.train.loading import load_causal, load_tokenizer
from rlaif.train.loss import LIKELIHOOD
from rlaif.train.scorers import LikelihoodScorer
from rlaif.train.scoring import sft_loss
from rlaif.train.settings import TrainSettings
from rlaif.train.sft import SFTExample
from rlaif.train.tiny import make_tiny
from rlaif.train.trainer import GroupTrainer
from rlaif.train.training import TrainResult, train_sft
from rlaif.types import Message, Prompt, Response, Revision, RevisionChain
from rlaif.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = TrainSettings(learning_rate=3e-3, epochs=2, batch_groups=4)
TURNS = (
    Message(role="system", content="Be kind."),
    Message(role="user", content="Hello"),
    Message(role="assistant", content="Hello to you."),
    Message(role="user", content="Why is the sky blue?"),
)
ROWS = [
    (TURNS, "Light scatters, and the short waves scatter most, so blue comes from all sides."),
    (TURNS[1:2], "Hi!"),
    (TURNS[1:2], "\n\nA reply that starts with line breaks"),
    (TURNS[:2], "naïve 🙂"),
    (TURNS[1:2], ""),
    (TURNS[1:2], "A last one, neither long nor short."),
    (TURNS[:2], "Go on.\n"),
]
EXAMPLES = [
    SFTExample(Prompt(id=str(n), messages=messages), text, True)
    for n, (messages, text) in enumerate(ROWS)
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(out, seed=0)
    return str(out)


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both trainers take the rows as they come."""
    for trainer in (GroupTrainer, SFTTrainer):
        monkeypatch.setattr(
            trainer,
            "_get_train_sampler",
            lambda self, dataset=None: SequentialSampler(self.train_dataset),
        )


def quiet_step(step: int, total: int, figures: Mapping[str, float]) -> None:
    assert step <= total


def train(
    base: str,
    out: Path,
    examples: Sequence[SFTExample] = EXAMPLES,
    seed: int = 0,
    **changes: Any,
) -> TrainResult:
    changed = SETTINGS.model_copy(update=changes)
    return train_sft(base, examples, changed, seed, out, quiet_step, pytest.fail)


def weights(directory: Path | str) -> bytes:
    return (Path(directory) / "model.safetensors").read_bytes()


def by_hand(directory: str, example: SFTExample) -> list[float]:
    """-log pi of each token of the answer, one softmax at a time."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    messages = [message.model_dump() for message in example.prompt.messages]
    opening = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    before = tokenizer(opening)["input_ids"]
    end = "<|im_end|>\n" if example.ended else ""
    ids = tokenizer(opening + example.text + end)["input_ids"]
    assert ids[: len(before)] == before
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids])).logits[0].double()
    probabilities_TV = logits_TV.exp() / logits_TV.exp().sum(-1, keepdim=True)
    return [-math.log(probabilities_TV[t - 1, ids[t]]) for t in range(len(before), len(ids))]


def test_the_loss_of_an_example_is_the_sum_worked_by_hand_over_its_answers_tokens(
    tiny: str,
) -> None:
    cut = EXAMPLES[0]._replace(ended=False)
    examples = [*EXAMPLES, cut]
    for example, found in zip(examples, sft_loss(tiny, examples, 1024, quiet_step), strict=True):
        each = by_hand(tiny, example)
        assert found is not None
        assert found.tokens == len(each)
        assert found.nll == pytest.approx(sum(each), rel=1e-5)
    # One token a byte: the text, and behind it the end and its line break.
    text = len(cut.text.encode())
    losses = sft_loss(tiny, [EXAMPLES[0], cut], 1024, quiet_step)
    assert [loss.tokens for loss in losses if loss] == [text + 2, text]


def test_the_loss_of_a_step_is_the_mean_over_all_its_tokens_not_over_its_answers(
    tiny: str, tmp_path: Path
) -> None:
    each = [by_hand(tiny, example) for example in EXAMPLES[:2]]
    assert [len(nll_T) for nll_T in each] == [81, 5]
    result = train(tiny, tmp_path / "sft", EXAMPLES[:2], epochs=1)
    assert result.losses == [pytest.approx((sum(each[0]) + sum(each[1])) / 86, rel=1e-5)]
    of_answers = (sum(each[0]) / 81 + sum(each[1]) / 5) / 2
    assert result.losses[0] != pytest.approx(of_answers, rel=1e-3)
    assert (result.groups, result.response_tokens, result.accuracies) == (2, 86, [])


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("pads_with_end", [False, True])
@pytest.mark.parametrize(("batch", "accumulation"), [(7, 1), (2, 2), (1, 3)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_losses_and_final_weights_are_trls(
    tiny: str, tmp_path: Path, batch: int, accumulation: int, pads_with_end: bool
) -> None:
    start = tmp_path / "start"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    if pads_with_end:
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    tokenizer.save_pretrained(start)
    ours = train(
        str(start),
        tmp_path / "ours",
        batch_groups=batch * accumulation,
        tokens_at_once=4096 if accumulation == 1 else 200,
    )
    rows = [
        {
            "prompt": [message.model_dump() for message in messages],
            "completion": [{"role": "assistant", "content": text}],
        }
        for messages, text in ROWS
    ]
    arguments = TRLConfig(
        output_dir=str(tmp_path / "trl"),
        completion_only_loss=True,
        learning_rate=SETTINGS.learning_rate,
        num_train_epochs=SETTINGS.epochs,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        warmup_steps=SETTINGS.warmup_ratio,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=load_causal(str(start)),
        processing_class=tokenizer,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert ours.steps == len(theirs) == 2 * math.ceil(7 / (batch * accumulation))
    assert ours.losses == pytest.approx(theirs, abs=1e-4)
    trained = load_causal(str(tmp_path / "ours")).state_dict()
    moved = 0.0
    for name, weight in trainer.model.state_dict().items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-4)
        moved = max(moved, float((weight - load_causal(str(start)).state_dict()[name]).abs().max()))
    assert moved > 1e-3


@given(
    st.lists(st.lists(st.tuples(st.floats(-900, 0), st.integers(1, 300)), min_size=1), min_size=1)
)
@settings(deadline=None)
def test_batches_by_their_weight_make_the_loss_of_all_answers_at_once(
    batches: list[list[tuple[float, int]]],
) -> None:
    def loss_of(answers: list[tuple[float, int]]) -> tuple[float, int]:
        tokens = sum(count for _, count in answers)
        batch: Any = {"target_M": torch.zeros(tokens)}
        scores_N = torch.tensor([log_prob for log_prob, _ in answers], dtype=torch.float64)
        return LIKELIHOOD.figures(scores_N, batch)["loss"].item(), int(LIKELIHOOD.weight(batch))

    parts = [loss_of(answers) for answers in batches]
    weight = sum(weight for _, weight in parts)
    whole, tokens = loss_of([answer for answers in batches for answer in answers])
    assert weight == tokens
    assert sum(loss for loss, _ in parts) / weight == pytest.approx(whole / tokens, rel=1e-9)


def test_only_positions_that_predict_the_answer_get_a_gradient(tiny: str) -> None:
    tokenizer = load_tokenizer(tiny)
    encoded = encode_examples(tokenizer, EXAMPLES[:4], 1024).groups
    batch: Batch = collate(encoded, tokenizer.pad_token_id, packed=False)
    model = load_causal(tiny)
    states: list[torch.Tensor] = []

    def remember(_: torch.nn.Module, inputs: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        states.append(output.last_hidden_state)

    model.base_model.register_forward_hook(remember)
    LIKELIHOOD.figures(LikelihoodScorer(model)(batch), batch)["loss"].backward()
    (state_BTH,) = states
    assert state_BTH.grad is not None
    trained = [set(row.nonzero().flatten().tolist()) for row in state_BTH.grad.abs().sum(-1)]
    assert trained == [
        set(range(len(g.prompt_ids) - 1, len(g.prompt_ids) + len(g.response_ids[0]) - 1))
        for g in encoded
    ]


def test_a_cut_answer_is_trained_on_without_an_end(tiny: str, tmp_path: Path) -> None:
    cut = [example._replace(ended=False) for example in EXAMPLES if example.text]
    tokenizer = load_tokenizer(tiny)
    for example, group in zip(cut, encode_examples(tokenizer, cut, 1024).groups, strict=True):
        assert tokenizer.decode(group.response_ids[0]) == example.text
    whole = train(tiny, tmp_path / "whole", [e._replace(ended=True) for e in cut])
    parts = train(tiny, tmp_path / "cut", cut)
    assert whole.response_tokens - parts.response_tokens == 2 * len(cut)
    assert weights(tmp_path / "whole") != weights(tmp_path / "cut")


def test_an_example_that_is_too_long_or_empty_is_dropped_counted_and_never_cut(
    tiny: str, tmp_path: Path
) -> None:
    nothing = SFTExample(EXAMPLES[1].prompt, "", False)
    short = [e for e in EXAMPLES if len(e.prompt.messages) == 1]
    lines: list[str] = []
    result = train_sft(
        tiny,
        [EXAMPLES[0], *short, nothing],
        SETTINGS.model_copy(update={"max_length": 100}),
        0,
        tmp_path / "some",
        quiet_step,
        lines.append,
    )
    assert lines == ["2 examples are empty or too long and are left out"]
    assert (result.groups, result.dropped_responses) == (len(short), 2)
    train(tiny, tmp_path / "short", short)
    assert weights(tmp_path / "some") == weights(tmp_path / "short")
    losses = sft_loss(tiny, [EXAMPLES[0], EXAMPLES[1], nothing], 100, quiet_step)
    assert [loss is None for loss in losses] == [True, False, True]


def test_nothing_left_to_train_on_is_an_error_that_names_the_limit(
    tiny: str, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match=r"max_length: no example is left .*: 7 answers") as e:
        train(tiny, tmp_path / "sft", max_length=10)
    assert "\n" not in str(e.value)
    with pytest.raises(SetupError, match="there is no example to train on"):
        train(tiny, tmp_path / "sft", [])
    assert not (tmp_path / "sft").exists()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny: str, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny, tmp_path / name, seed=seed, batch_groups=2)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_the_policy_is_a_plain_causal_model_that_learned_its_examples_by_heart(
    tiny: str, tmp_path: Path
) -> None:
    shown: list[Mapping[str, float]] = []
    result = train_sft(
        tiny,
        EXAMPLES[:2],
        SETTINGS.model_copy(update={"epochs": 60, "learning_rate": 1e-2}),
        0,
        tmp_path / "sft",
        lambda step, total, figures: shown.append(figures),
        pytest.fail,
    )
    assert [figures["loss"] for figures in shown] == result.losses
    assert {name for figures in shown for name in figures} == {"loss", "learning_rate"}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    assert isinstance(plain, LlamaForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft")
    asked = [message.model_dump() for message in EXAMPLES[1].prompt.messages]
    ids = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = plain.generate(**ids, max_new_tokens=20, do_sample=False)[0]
    assert tokenizer.decode(answer[ids["input_ids"].shape[1] :]) == "Hi!<|im_end|>"
    assert {p.name for p in tmp_path.iterdir()} == {"sft"}


RULE = "The answer is always the same."


def question(number: int) -> Prompt:
    return Prompt(id=str(number), messages=(Message(role="user", content=f"Question {number}"),))


def chain(number: int, *texts: str, finish_reason: str = "stop") -> RevisionChain:
    """An original answer and its revisions, on the prompt of that number."""
    return RevisionChain(
        prompt_id=str(number),
        original=Response(
            id=f"{number}/rev0",
            prompt_id=str(number),
            text="An original, never imitated.",
            finish_reason="stop",
            model="fake/policy",
            call="c",
        ),
        revisions=tuple(
            Revision(
                principle_id="p", critique="c", text=text, finish_reason=finish_reason, calls=()
            )
            for text in texts
        ),
    )


def revised(run: Path, chains: Sequence[RevisionChain], test: set[int]) -> None:
    """What the revise stage leaves behind."""
    numbers = sorted({int(c.prompt_id) for c in chains})
    write_jsonl(run / "revisions" / "chains.jsonl", chains)
    write_jsonl(
        run / "revisions" / "prompts.jsonl",
        [question(n) for n in numbers],
    )
    splits = {str(n): "test" if n in test else "train" for n in numbers}
    (run / "revisions" / "splits.json").write_text(json.dumps(splits))


CHAINS = [chain(n, "A first try.", RULE) for n in range(10)]


def run_stage(run: Path, base: str | None, **changes: Any) -> SFTSection:
    config = SFTConfig(base=base, learning_rate=3e-3, epochs=4, **changes)

    async def work() -> SFTSection:
        work = Workspace(run, 0, {})
        try:
            await stage.run(config, "fake/policy", work)
            return SFTSection.model_validate(work.part("sft"))
        finally:
            await work.close()

    return asyncio.run(work())


def test_the_stage_trains_on_last_revisions_and_measures_those_of_held_out_prompts(
    tiny: str, tmp_path: Path
) -> None:
    skipped = chain(10)
    revised(tmp_path, [*CHAINS, skipped], test={7, 8, 9})
    found = run_stage(tmp_path, f"vllm/{tiny}")
    # Seven prompts in batches of 4: two steps an epoch. 30 bytes, an end and a line break each.
    assert (found.examples, found.dropped_examples, found.steps) == (7, 0, 8)
    assert found.tokens == 7 * 32
    assert len(found.losses) == 8
    assert found.seconds > 0
    assert found.base.startswith("weights@")
    held_out = [SFTExample(question(n), RULE, True) for n in (7, 8, 9)]
    for model, interval in (
        (tiny, found.held_out_before),
        (str(tmp_path / "sft"), found.held_out_after),
    ):
        assert interval is not None
        each = [by_hand(model, example) for example in held_out]
        assert interval.value == pytest.approx(sum(map(sum, each)) / (3 * 32), rel=1e-5)
        assert (interval.n, interval.clusters) == (3 * 32, 3)
    assert found.held_out_before is not None
    assert found.held_out_after is not None
    assert found.held_out_change is not None
    assert found.held_out_change.high is not None
    assert found.held_out_change.high < -0.5
    assert found.held_out_change.value == pytest.approx(
        found.held_out_after.value - found.held_out_before.value
    )


def test_a_long_answer_weighs_by_its_tokens_in_the_held_out_figure(
    tiny: str, tmp_path: Path
) -> None:
    long = chain(9, RULE * 5, finish_reason="length")
    revised(tmp_path, [*CHAINS[:9], long], test={8, 9})
    found = run_stage(tmp_path, f"vllm/{tiny}")
    each = [
        by_hand(tiny, SFTExample(question(8), RULE, True)),
        by_hand(tiny, SFTExample(question(9), RULE * 5, False)),
    ]
    assert [len(nll_T) for nll_T in each] == [32, 150]
    assert found.held_out_before is not None
    assert found.held_out_before.value == pytest.approx(sum(map(sum, each)) / 182, rel=1e-5)


def test_held_out_prompts_are_never_trained_on(tiny: str, tmp_path: Path) -> None:
    other = [chain(n, "Something else altogether.") for n in (8, 9)]
    results = []
    for name, chains in (("a", CHAINS), ("b", [*CHAINS[:8], *other])):
        revised(tmp_path / name, chains, test={8, 9})
        results.append(run_stage(tmp_path / name, f"vllm/{tiny}"))
    assert weights(tmp_path / "a" / "sft") == weights(tmp_path / "b" / "sft")
    assert results[0].held_out_before != results[1].held_out_before


def test_without_held_out_prompts_there_is_no_held_out_figure(tiny: str, tmp_path: Path) -> None:
    revised(tmp_path, CHAINS, test=set())
    found = run_stage(tmp_path, f"vllm/{tiny}")
    assert found.examples == 10
    assert found.held_out_before is found.held_out_after is found.held_out_change is None


def test_a_second_run_trains_nothing_and_another_revision_trains_again(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"vllm/{tiny}"
    revised(tmp_path, CHAINS, test={8, 9})
    first = run_stage(tmp_path, base)
    before = weights(tmp_path / "sft")
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_sft", lambda *_: pytest.fail("trained"))
        assert run_stage(tmp_path, base) == first
    assert "sft: already made from the same revisions and settings" in capsys.readouterr().err
    revised(tmp_path, [*CHAINS[1:], chain(0, "Another answer.")], test={8, 9})
    second = run_stage(tmp_path, base)
    assert second.tokens == first.tokens - 30 + 15
    assert weights(tmp_path / "sft") != before
    run_stage(tmp_path, base, weight_decay=0.1)
    assert "already" not in capsys.readouterr().err


def test_a_training_that_was_stopped_before_its_figures_is_done_again(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    revised(tmp_path, CHAINS, test={8, 9})
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "sft_loss", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_stage(tmp_path, f"vllm/{tiny}")
    assert (tmp_path / "sft" / "model.safetensors").is_file()
    assert run_stage(tmp_path, f"vllm/{tiny}").examples == 8


def test_without_revisions_the_stage_says_what_to_run_first(tiny: str, tmp_path: Path) -> None:
    base = f"vllm/{tiny}"
    with pytest.raises(SetupError, match=r"chains\.jsonl: is not there .*run `rlaif revise` first"):
        run_stage(tmp_path, base)
    revised(tmp_path, [chain(0), chain(1)], test={1})
    with pytest.raises(SetupError, match="no answer has a revision to train on"):
        run_stage(tmp_path, base)
    revised(tmp_path, CHAINS, test=set())
    write_jsonl(tmp_path / "revisions" / "chains.jsonl", [*CHAINS, chain(77, RULE)])
    with pytest.raises(SetupError, match=r"chains\.jsonl:11: the prompt '77' is not in"):
        run_stage(tmp_path, base)
    assert not (tmp_path / "sft").exists()


@pytest.mark.parametrize(
    ("base", "line"),
    [
        (None, r"policy\.model: 'fake/policy' gives no weights to train from"),
        ("vllm/./nowhere", r"nowhere: sft\.base: is not a folder"),
        ("vlm/x", r"sft\.base: unknown model 'vlm/x' \(did you mean vllm"),
    ],
)
def test_a_base_that_gives_no_weights_is_one_clear_line(
    base: str | None, line: str, tmp_path: Path
) -> None:
    revised(tmp_path, CHAINS, test={9})
    with pytest.raises(SetupError, match=line) as e:
        run_stage(tmp_path, base)
    assert "\n" not in str(e.value)

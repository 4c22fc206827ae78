"""What a training takes is told before anything is loaded, and only what cannot fit is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_train_training import GROUPS, SETTINGS, quiet_step
from transformers import AutoModelForCausalLM as Causal
from transformers import Gemma2Config, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen2Config

from rlaif.errors import SetupError
from rlaif.files import write_text
from rlaif.stages._training import settings_of
from rlaif.train import fits, host, rl, training
from rlaif.train.collate import collate
from rlaif.train.ensemble import widen
from rlaif.train.groups import EncodedGroup
from rlaif.train.loading import in_precision, load_causal, load_reward, load_tokenizer
from rlaif.train.lora import Adapted
from rlaif.train.memory import Needs, Processes, Work, check, needs
from rlaif.train.rl_memory import check_rl, rl_needs
from rlaif.train.rl_settings import RLSettings
from rlaif.train.scorers import RewardScorer
from rlaif.train.settings import LoraSettings, RewardSettings
from rlaif.train.shapes import Model, parameters, read_model
from rlaif.train.tiny import make_tiny
from rlaif.types import Message, Prompt

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
KINDS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "biased": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "gemma": Gemma2Config(**SMALL),
}
BY_HAND = Model(
    {
        "model.embed_tokens.weight": (10, 4),
        "model.layers.0.input_layernorm.weight": (4,),
        "model.layers.0.self_attn.q_proj.weight": (4, 4),
        "model.layers.0.self_attn.k_proj.weight": (2, 4),
        "model.layers.0.self_attn.v_proj.weight": (2, 4),
        "model.layers.0.self_attn.o_proj.weight": (4, 4),
        "model.layers.0.post_attention_layernorm.weight": (4,),
        "model.layers.0.mlp.gate_proj.weight": (8, 4),
        "model.layers.0.mlp.up_proj.weight": (8, 4),
        "model.layers.0.mlp.down_proj.weight": (4, 8),
        "model.norm.weight": (4,),
        "lm_head.weight": (10, 4),
    },
    {
        "vocab_size": 10,
        "hidden_size": 4,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
)


def made(folder: Path, config: PreTrainedConfig) -> Path:
    Causal.from_config(config).save_pretrained(folder)
    return folder


def known(folder: Path) -> Model:
    model = read_model(folder)
    assert model is not None
    return model


def counted(module: torch.nn.Module) -> tuple[int, int]:
    of = list(module.parameters())
    return sum(p.numel() for p in of), sum(p.numel() for p in of if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=3)])
def test_parameters_are_those_of_the_model_that_is_trained(
    tmp_path: Path, kind: str, lora: LoraSettings | None
) -> None:
    folder = made(tmp_path / "m", KINDS[kind])
    for reward in (True, False):
        load = load_reward(str(folder), 0, new_head=True) if reward else load_causal(str(folder))
        model = Adapted(load, lora).model if lora else load
        assert parameters(known(folder), lora, reward=reward) == counted(model)


def test_adapters_of_named_layers_and_heads_of_an_ensemble_are_counted(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", KINDS["llama"])
    some = LoraSettings(rank=2, targets=("q_proj", "up_proj"))
    model = Adapted(load_causal(str(folder)), some).model
    assert parameters(known(folder), some, reward=False) == counted(model)
    three = load_reward(str(folder), 0, new_head=True)
    widen(three, 3)
    assert parameters(known(folder), None, reward=True, members=3) == counted(three)
    # A reward model that is trained further has its head in the file.
    load_reward(str(folder), 0, new_head=True).save_pretrained(tmp_path / "rm")
    assert parameters(known(tmp_path / "rm"), None, reward=True)[0] == counted(three)[0] - 2 * 48


def test_the_bytes_of_a_training_are_those_worked_by_hand() -> None:
    settings = RewardSettings(learning_rate=1.0, epochs=1, batch_groups=1)
    work = Work(tokens=10, width=5, longest=5)
    found = needs(BY_HAND, settings, work, reward=True)
    # 40 of the embedding, 144 of seven matrices, 12 of norms, 4 of the head.
    assert found.weights == 4 * 200
    # The embedding's gradient once more.
    assert found.trained == 12 * 200 + 4 * 40
    # A token: 24 bytes a number of the hidden state, 4 numbers of attention four times, 8 of the
    # MLP four times, and its row of the mask.
    assert found.step == 10 * (24 * 4 + 4 * 4 * 4 + 4 * 4 * 8 + 4 * 5)
    assert found.least == 800 + 2560 + 3080
    assert found.most == 1.1 * (800 + 2560) + 2.5 * 3080
    # A policy has the head for tokens, and three arrays of logits.
    policy = needs(BY_HAND, settings, work, reward=False)
    assert policy.weights == 4 * (196 + 40)
    assert policy.step == 3080 + 3 * 4 * 10 * 10


def test_the_bytes_of_several_processes_are_those_worked_by_hand() -> None:
    settings = RewardSettings(learning_rate=1.0, epochs=1, batch_groups=1)
    work = Work(tokens=10, width=5, longest=5)

    def of(sharded: bool, on_host: bool = True) -> Needs:
        processes = Processes(2, sharded, on_host)
        return needs(BY_HAND, settings, work, reward=True, processes=processes)

    # Each has all of it, and its gradients once more.
    assert of(sharded=False) == Needs(800, 2560 + 800, 3080)
    # A layer has 48 numbers of attention, 96 of the MLP and 8 of norms; 48 are outside of it.
    gathered = 4 * (48 + 2 * 152 + 152 + 2 * 152)
    # All weights and moments are put together in the first process: 4 and 8 bytes of 200.
    assert of(sharded=True) == Needs(400, 1280, 3080 + gathered, (800 + 1600) // 2)
    # Before they are divided, weights are whole; that is less than what comes after it.
    assert of(sharded=True, on_host=False).aside == 0
    few = settings.model_copy(update={"lora": LoraSettings(rank=1)})
    two = Processes(2, sharded=True, on_host=False)
    every, trained = parameters(BY_HAND, few.lora, reward=True)
    found = needs(BY_HAND, few, work, reward=True, processes=two)
    assert found.aside == 4 * every - 2 * every - 6 * trained


def test_several_processes_of_a_machine_share_its_memory_and_those_of_devices_do_not(
    tmp_path: Path,
) -> None:
    folder = made(tmp_path / "m", LlamaConfig(**SMALL))
    settings = RewardSettings(learning_rate=1.0, epochs=1, batch_groups=1)
    work = Work(600, 600, 600)

    def told(processes: Processes, free: float) -> str | None:
        return check(folder, settings, work, free, reward=True, processes=processes)

    def need(processes: Processes) -> Needs:
        return needs(known(folder), settings, work, reward=True, processes=processes)

    on_host, devices = Processes(3), Processes(3, on_host=False)
    one = need(devices)
    assert need(on_host) == one
    assert told(devices, one.most) is None
    assert told(on_host, 3 * one.most) is None
    for processes, free, where in (
        (on_host, 3 * one.least, " in 3 processes"),
        (devices, one.least, " on each device"),
    ):
        warned = told(processes, free)
        assert warned is not None
        assert f"of memory{where}, and " in warned
        with pytest.raises(SetupError, match=f"of memory{where}, and "):
            told(processes, free * 0.89)
    work = Work(1, 1, 1)
    warned = told(devices, need(Processes(3, sharded=True, on_host=False)).most)
    assert warned is not None
    assert "launch: fsdp" in warned


def test_the_bytes_of_rl_are_those_worked_by_hand() -> None:
    settings = RLSettings(batch_prompts=3, samples=2, answers_at_once=4, max_new_tokens=7)
    found = rl_needs(BY_HAND, [(BY_HAND, 2), (BY_HAND, 1)], settings, prompt=5)
    # Policy and reference have 236 numbers, each of three reward models 200.
    assert found.weights == 4 * (2 * 236 + 3 * 200)
    assert found.trained == 12 * 236 + 4 * 40
    # Of six answers three at once, of twelve tokens; logits of the answer's and one before it.
    assert found.step == 36 * (24 * 4 + 4 * 4 * 4 + 4 * 4 * 8 + 4 * 12) + 3 * 4 * 3 * 8 * 10
    # Where many are drawn: two heads of two numbers, keys and values, of each token, and its
    # logits thrice; there are no gradients then.
    many = settings.model_copy(update={"batch_prompts": 300, "answers_at_once": 1})
    drawn = 4 * 600 * (12 * 2 * 2 * 2 + 3 * 10)
    assert rl_needs(BY_HAND, [], many, prompt=5).step == drawn - 4 * 236


def test_a_config_that_leaves_the_key_value_heads_empty_has_as_many_as_heads() -> None:
    settings = RLSettings(batch_prompts=300, answers_at_once=1)
    empty = BY_HAND._replace(config={**BY_HAND.config, "num_key_value_heads": None})
    assert rl_needs(empty, [], settings, 5) == rl_needs(BY_HAND, [], settings, 5)


def test_of_a_large_vocabulary_fewer_answers_at_once_are_proposed(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", LlamaConfig(**(SMALL | {"vocab_size": 130_000})))
    settings = RLSettings(answers_at_once=16, max_new_tokens=128)
    found = rl_needs(known(folder), [], settings, prompt=12)
    assert found.step is not None
    # What TRL's loss took for 16 such answers: 2.9 arrays of their logits.
    logits = 4 * 16 * 129 * 130_000
    assert 2.9 * logits < found.step < 3.3 * logits
    told = check_rl(folder, [], settings, [12], found.most - 1)
    assert told is not None
    assert "answers_at_once: 8" in told


def test_rl_that_cannot_fit_is_refused_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny(tmp_path / "tiny", seed=0)
    prompts = [group.prompt for group in GROUPS]
    # One that exceeds the context does not count.
    long = Prompt(id="long", messages=(Message(role="user", content="x" * 9000),))
    settings = RLSettings(batch_prompts=4, max_new_tokens=32, normalise_on=8)
    monkeypatch.setattr(rl, "load_policy", lambda _: pytest.fail("loaded"))
    tiny = str(tmp_path / "tiny")

    def refused(prompts: list[Prompt], free: float) -> str:
        monkeypatch.setattr(rl, "free_memory", lambda: free)
        with pytest.raises(SetupError) as e:
            rl.train_rl(
                tiny,
                tiny,
                None,
                prompts,
                settings,
                0,
                tmp_path / "rl",
                quiet_step,
                lambda *_: None,
                pytest.fail,
            )
        return str(e.value)

    longest = max(len(rl.opening_ids(load_tokenizer(tiny), prompt)) for prompt in prompts)
    model = known(tmp_path / "tiny")
    found = rl_needs(model, [(model, 1)], settings, longest)
    said = refused([*prompts, long], found.least * 0.89)
    about = f"about {fits.size(found.least)} to {fits.size(found.most)} of memory"
    assert said.startswith(f"training takes {about}, and ")
    assert "answers_at_once: " in said
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        refused(prompts, found.most)


@pytest.mark.parametrize(
    "changes", [{}, {"dtype": "bfloat16"}, {"lora": LoraSettings(rank=2)}], ids=str
)
def test_a_step_keeps_for_its_backward_pass_what_was_estimated(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = LlamaConfig(**(SMALL | {"hidden_size": 64, "intermediate_size": 192}))
    folder = made(tmp_path / "m", config)
    settings = RewardSettings(learning_rate=1.0, epochs=1, batch_groups=1, **changes)
    model = load_reward(str(folder), 0, new_head=True)
    scorer = RewardScorer(Adapted(model, settings.lora).model if settings.lora else model)
    group = EncodedGroup(list(range(1, 101)), [list(range(1, 76))] * 4, (), (0.0,) * 4)
    batch = collate([group] * 2, 0, packed=True)
    weights = {p.untyped_storage().data_ptr() for p in scorer.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), in_precision(settings.dtype):
        scorer(batch)
    held = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    work = Work(tokens=batch["input_ids_BT"].numel(), width=400, longest=175)
    assert work.tokens == 800
    assert needs(known(folder), settings, work, reward=True).step == pytest.approx(held, rel=0.1)


def test_a_training_that_cannot_fit_is_refused_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny(tmp_path / "tiny", seed=0)
    monkeypatch.setattr(training, "free_memory", lambda: 3e6)
    monkeypatch.setattr(training, "load_reward", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(SetupError) as e:
        training.train_reward_model(
            str(tmp_path / "tiny"), GROUPS, SETTINGS, 0, tmp_path / "rm", quiet_step, pytest.fail
        )
    told = "training takes about 3.8 MB to 8.7 MB of memory, and 3.0 MB are free"
    assert e.value.problem == told


def test_where_it_may_not_fit_a_training_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny(tmp_path / "tiny", seed=0)
    monkeypatch.setattr(training, "free_memory", lambda: 4e6)
    told: list[str] = []
    training.train_reward_model(
        str(tmp_path / "tiny"), GROUPS, SETTINGS, 0, tmp_path / "rm", quiet_step, told.append
    )
    (line,) = told
    assert line.startswith("memory may be short: training takes about ")
    assert (tmp_path / "rm" / "config.json").is_file()


def test_only_settings_that_make_it_fit_are_proposed(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", LlamaConfig(**SMALL))
    settings = RewardSettings(learning_rate=1.0, epochs=1, batch_groups=1)
    work = Work(tokens=4096, width=4096, longest=600)

    def fix(free: float) -> str:
        try:
            told = check(folder, settings, work, free, reward=True)
        except SetupError as e:
            return e.fix
        assert told is not None
        return told.split("if it does not fit, ")[1]

    def most(tokens: int, **changes: Any) -> float:
        changed = settings.model_copy(update=changes)
        less = Work(tokens, tokens, 600)
        return needs(known(folder), changed, less, reward=True).most

    alone = {
        "gradient_checkpointing: true": most(4096, gradient_checkpointing=True),
        "dtype: bfloat16": most(4096, dtype="bfloat16"),
        "lora: {}": most(4096, lora=LoraSettings()),
    }
    for free in (*alone.values(), most(2048), most(1024)):
        named = fix(free).removeprefix("set ").split(" or ")
        # As many tokens as fit.
        tokens = next((n for n in (2048, 1024) if most(n) <= free), None)
        expected = {told for told, needed in alone.items() if needed <= free}
        assert set(named) == expected | ({f"tokens_at_once: {tokens}"} if tokens else set())
    # 512 tokens would be less than a response has, which is never divided.
    assert fix(most(1024) - 1).endswith(" and tokens_at_once: 1024 together")
    assert fix(1000.0) == "take a smaller base model, or a machine with more memory"


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path) -> None:
    settings = RewardSettings(learning_rate=1.0, epochs=1, batch_groups=1)
    work = Work(1, 1, 1)
    assert check(tmp_path / "org" / "name", settings, work, 0.0, reward=True) is None
    gpt = made(tmp_path / "gpt", GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99))
    found = needs(known(gpt), settings, work, reward=False)
    assert found.step is None
    assert found.least == 16 * counted(load_causal(str(gpt)))[0] + 4 * 1024 * 32
    assert found.most == 1.1 * found.least
    # What its config calls otherwise is known of no head: the rest is.
    rest = parameters(known(gpt), None, reward=True)[0]
    assert rest == counted(load_causal(str(gpt)).base_model)[0]
    write_text(tmp_path / "int" / "config.json", "{}")
    save_file({"w": torch.zeros(4, dtype=torch.int8)}, tmp_path / "int" / "model.safetensors")
    assert read_model(tmp_path / "int") is None
    (tmp_path / "int" / "model.safetensors").write_bytes(b"\xff" * 20)
    assert read_model(tmp_path / "int") is None


def test_a_control_group_leaves_its_limit_less_what_is_not_only_cached(tmp_path: Path) -> None:
    limit, used, stat = (tmp_path / name for name in ("max", "current", "stat"))
    assert host._left(limit, used, stat) == math.inf
    write_text(limit, "max\n")
    write_text(used, "700\n")
    write_text(stat, "anon 500\ninactive_file 150\nactive_file 50\n")
    assert host._left(limit, used, stat) == math.inf
    write_text(limit, "1000\n")
    assert host._left(limit, used, stat) == 1000 - 700 + 200
    assert 0 < host.free_on_host() < math.inf


def test_a_stage_names_the_section_whose_settings_would_help() -> None:
    with pytest.raises(SetupError, match=r"^dpo: too much \(set less\)$"), settings_of("dpo"):
        raise SetupError("too much", fix="set less")

"""Loading models and tokenizers by directory or hub name, quietly, with errors of one line."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rlaif.errors import SetupError
from rlaif.train.host import free_on_host
from rlaif.train.settings import Precision, check_directory

HEAD = "score.weight"

P = ParamSpec("P")
T = TypeVar("T")


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def devices() -> int:
    """How many accelerators there are; 1 where there is none."""
    return max(torch.accelerator.device_count(), 1)


def free_memory() -> float:
    """Bytes that are free where models are trained."""
    if not torch.accelerator.is_available():
        return free_on_host()
    free: int = torch.get_device_module(device()).mem_get_info()[0]
    return free


def in_precision(dtype: Precision) -> torch.autocast:
    """The forward pass in `dtype`, on `device()`."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def gives_memory_back(function: Callable[P, T]) -> Callable[P, T]:
    """Frees the function's models, on the host and on the accelerator, when it ends."""

    @functools.wraps(function)
    def freeing(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        finally:
            # Its frame is gone by now, but a trainer and its callbacks hold each other.
            gc.collect()
            if torch.accelerator.is_available():
                torch.get_device_module(device()).empty_cache()

    return freeing


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no notes of transformers inside the block; errors still raise."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token.

    A tokenizer without one pads with its end token, as TRL does: padding is masked everywhere, so
    the choice changes no score. Raises SetupError if there is no chat template or neither token.
    """
    check_directory(name)
    with quiet(), _one_line(name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(Path(name).expanduser())
        )
    if tokenizer.chat_template is None:
        raise SetupError(
            f"the tokenizer of {name} has no chat template",
            fix="name an instruct model, or add chat_template.jinja to its directory",
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise SetupError(
                f"the tokenizer of {name} has neither a padding nor an end token",
                fix="set pad_token in its tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token's number, which `load_tokenizer` made sure of."""
    number: int = tokenizer.pad_token_id
    return number


def pad_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    """Where a conversation ends with the padding token, pads with the begin token instead.

    transformers and TRL read a score at the last token that is not padding, vLLM at the last token:
    now these are the same. A tokenizer without a begin token is left as it is.
    """
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids[-1] == pad_id(tokenizer) and tokenizer.bos_token_id not in (None, ids[-1]):
        tokenizer.pad_token = tokenizer.bos_token


def load_causal(name: str) -> PreTrainedModel:
    """A causal language model in float32, in evaluation mode, on `device()`.

    Raises SetupError if `name` is none.
    """
    model, missing = _load(AutoModelForCausalLM, name, "causal language model")
    if missing:
        raise SetupError(
            f"{name} is no causal language model: it has no weights for {missing[0]}",
            fix="name the policy's directory, not a reward model's",
        )
    return model


def load_reward(name: str, pad_token_id: int, *, new_head: bool) -> PreTrainedModel:
    """A sequence classifier with one label, in float32, in evaluation mode, on `device()`.

    `new_head` allows a base model without a head; it then gets a random one, drawn from torch's
    global generator. Raises SetupError if `name` is none, or has several labels.
    """
    settings: dict[str, Any] = {"num_labels": 1} if new_head else {}
    model, missing = _load(AutoModelForSequenceClassification, name, "reward model", **settings)
    absent = [key for key in missing if not (new_head and key == HEAD)]
    if absent:
        raise SetupError(
            f"{name} is no reward model: it has no weights for {absent[0]}",
            fix="name a directory that train-rm wrote",
        )
    if model.config.num_labels != 1:
        raise SetupError(
            f"{name} gives {model.config.num_labels} labels, a reward model gives one",
            fix="name a directory that train-rm wrote",
        )
    model.config.get_text_config().pad_token_id = pad_token_id
    # Without it `pipeline` and vLLM put a sigmoid on the score, which is in nats.
    model.config.problem_type = "regression"
    return model


def _load(auto: Any, name: str, kind: str, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    check_directory(name)
    with quiet(), _one_line(name, f"{name} is no {kind}"):
        model, info = auto.from_pretrained(
            str(Path(name).expanduser()),
            dtype=torch.float32,
            output_loading_info=True,
            # A pickle runs what it likes when it is loaded, and so does code from a hub.
            use_safetensors=True,
            trust_remote_code=False,
            **settings,
        )
    module: torch.nn.Module = model
    module.to(device())
    return model, sorted(info["missing_keys"])


def beside_weights(name: str) -> Path:
    """The folder of what `rlaif` writes beside a reward model's weights: what its scores mean, and
    its other members. Of a hub name it is fetched. Raises SetupError where that cannot be."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    check_directory(name)
    with quiet(), _one_line(name):
        return Path(snapshot_download(name, allow_patterns=["reward.json", "members/*"]))


@contextlib.contextmanager
def _one_line(name: str, problem: str = "") -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        cause = str(e).strip().splitlines()[0]
        raise SetupError(
            f"{problem or f'{name} cannot be loaded'}: {cause}",
            fix="give a model directory or a hub name that this machine can reach",
        ) from e

"""The models that would be asked."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rlaif.judge.forms import Asked
from rlaif.models import embedded
from rlaif.models.fake import FakeModel
from rlaif.models.names import parse_model
from rlaif.models.pool import (
    ManagedModel,
    ModelConfig,
    gives_logprobs,
    identity_of,
    max_n,
    served_identity,
    weights_identity,
)
from rlaif.models.prices import Price

MAX_N = ManagedModel.max_n
"""Of weights that a run or a study trains, whatever serves them."""


class Voice(NamedTuple):
    """A model as it would be asked."""

    model: str
    """As the config names it: what its price goes by."""
    asked: Asked
    like: tuple[str, ...]
    """Identities of models whose stored calls tell what its calls will be like."""
    concurrency: int
    tokenizer: Path | None
    """Folder of its own tokenizer, or of one of the same kind; None: none is at hand."""
    price: Price | None = None
    """What the config itself says that it costs; None: it says nothing."""
    batched: bool = False
    """Whether the config asks it in batches."""


def voice_of(config: ModelConfig, field: str) -> Voice:
    """How a model would be asked; starts nothing and needs no key. Raises SetupError."""
    name = parse_model(config.model, field)
    identity = identity_of(name, field)
    match name.scheme:
        case "fake":
            identity = FakeModel(name.rest, field).identity
        case "vllm" | "embedded":
            identity = served_identity(identity, config.server)
    model = config.model
    asked = Asked(identity, gives_logprobs(model, field), max_n(model, field))
    folder = embedded.kept(name.rest) if name.scheme == "embedded" else name.directory
    own = config.usd_per_million_tokens
    price = Price(input=own[0], output=own[1]) if own else None
    tokenizer = with_tokenizer(folder)
    batched = config.batch is not None
    return Voice(config.model, asked, (identity,), config.concurrency, tokenizer, price, batched)


def with_tokenizer(folder: Path | None) -> Path | None:
    """The folder, if there is one with a tokenizer in it."""
    return folder if folder and (folder / "tokenizer_config.json").is_file() else None


def trained(policy: Voice, weights: Path, *, vllm: bool, name: str = "") -> Voice:
    """Weights in a folder, served by vLLM or by transformers. Where they are still to be made,
    their answers are taken to be like those of what they are made from. `name` tells them from
    others then; empty: the folder's."""
    scheme = "vllm" if vllm else "transformers"
    identity = f"run/{name or weights.name}"
    if (weights / "config.json").is_file():
        identity = weights_identity(weights)
        identity = identity if vllm else f"transformers/{identity}"
    asked = Asked(identity, gives_logprobs=True, max_n=MAX_N)
    tokenizer = with_tokenizer(weights) or policy.tokenizer
    like = (identity, *policy.like)
    return Voice(f"{scheme}/{weights}", asked, like, policy.concurrency, tokenizer)


class Begun(NamedTuple):
    """What a training starts from."""

    named: Voice
    """As its config names it."""
    served: Voice
    """As it is asked beside what is trained."""


def start_of(policy: ModelConfig, base: str | None, out: Path, *, vllm: bool) -> Begun:
    """The start of a DPO training: `base`, or the policy. Served as the stages serve it; weights
    that are not unpacked yet are taken to be in `out`. Raises SetupError."""
    field = "policy.model" if base is None else "dpo.base"
    model = policy.model if base is None else base
    voice = voice_of(policy.model_copy(update={"model": model}), field)
    if base is None and vllm:
        return Begun(voice, voice)
    name = parse_model(model, field)
    weights = embedded.kept(name.rest) if name.scheme == "embedded" else name.directory
    if weights is None:  # of a hub: known by its name
        hub = f"{'vllm' if vllm else 'transformers'}/{name.rest}"
        asked = Asked(hub, gives_logprobs=True, max_n=MAX_N)
        return Begun(voice, voice._replace(model=hub, asked=asked, like=(hub, *voice.like)))
    there = (weights / "config.json").is_file()
    return Begun(voice, trained(voice, weights if there else out / "start", vllm=vllm))

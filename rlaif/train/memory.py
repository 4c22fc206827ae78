"""How much memory a training takes, told before anything is loaded: by a model's config.json, the
headers of its safetensors and the settings. Free of torch.

Parameters, gradients and AdamW's moments are counted exactly. What a step holds for its backward
pass is estimated for decoders of Llama's kind, and was within a tenth of what autograd kept; of
others it is unknown and taken for nothing. The allocator takes more than is held: on a host up to
2.4 times that (benchmarks/RESULTS.md); on accelerators it was not measured. So there are two
figures, `least` and `most`: only the first refuses a training, the second warns.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.errors import SetupError
from rlaif.train.settings import LoraSettings, TrainSettings

OFF = 0.1
"""What a step holds may be less than estimated by so much, as a share of the whole: a training is
refused only where even that would be too much."""
SLACK = 2.5
"""Bytes taken from the machine for a byte that a step holds, at most: allocators keep pieces."""
STATES_SLACK = 1.1
"""The same for a byte of weights, gradients and moments."""
LOGITS_AT_ONCE = 2**26
"""Logits held at once, in float32 a quarter of a GiB."""
FLOATS = {"F64", "F32", "F16", "BF16"}
FLOAT32 = 4
MOMENTS = 2 * FLOAT32
"""Bytes of AdamW's two moments of a trained parameter."""
CGROUPS = (
    tuple(Path("/sys/fs/cgroup") / f for f in ("memory.max", "memory.current", "memory.stat")),
    tuple(
        Path("/sys/fs/cgroup/memory") / f
        for f in ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    ),
)
"""Limit, use and its parts, of control groups of version 2 and of version 1, seen from inside."""
HEADS = ("lm_head.weight", "score.weight")


class Model(NamedTuple):
    """What the files of a model tell of it."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of each tensor in its files."""
    config: Mapping[str, Any]
    """config.json; of a model of several parts that of its text."""


class Work(NamedTuple):
    """The most that is computed at once."""

    tokens: int
    """Tokens, padding included."""
    width: int
    """Tokens of the widest row."""
    longest: int
    """Tokens of the longest prompt and response, which are never divided."""


class Needs(NamedTuple):
    """Bytes of a training at its peak."""

    weights: int
    trained: int
    """Gradients, the largest of them twice where it is added to another, and AdamW's moments."""
    step: float | None
    """Activations of the tokens computed at once; None: the architecture is not known."""

    @property
    def least(self) -> float:
        """What is held."""
        return self.weights + self.trained + (self.step or 0.0)

    @property
    def most(self) -> float:
        """What is taken from the machine."""
        return STATES_SLACK * (self.weights + self.trained) + SLACK * (self.step or 0.0)


def read_model(folder: Path) -> Model | None:
    """None where the folder does not say: no folder of its own (a hub name), other files than
    safetensors, weights that are not floating-point numbers."""
    if not (folder / "config.json").is_file():
        return None
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        names = {"model.safetensors"}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        header = _header(folder / name)
        if header is None or any(entry["dtype"] not in FLOATS for entry in header.values()):
            return None
        shapes |= {tensor: tuple(entry["shape"]) for tensor, entry in header.items()}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Model(shapes, config.get("text_config", config))


def _header(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    with file.open("rb") as f:
        start = f.read(8)
        if len(start) < 8:
            return None
        (size,) = struct.unpack("<Q", start)
        if size > file.stat().st_size:
            return None
        header: dict[str, Any] = json.loads(f.read(size))
    header.pop("__metadata__", None)
    return header


def parameters(
    model: Model, lora: LoraSettings | None, *, reward: bool, members: int = 1
) -> tuple[int, int]:
    """All parameters of the model as it is trained, and those of them that are trained.

    `reward`: with a score head in place of the one for tokens. `members` of an ensemble are heads,
    or, with `lora`, trained one after the other.
    """
    body = sum(
        math.prod(shape)
        for name, shape in model.shapes.items()
        if not name.endswith((*HEADS, "inv_freq"))
    )
    head = _hidden(model) * (1 if lora else members) if reward else _token_head(model)
    if lora is None:
        return body + head, body + head
    adapters = sum(lora.rank * sum(shape) for shape in _matrices(model, lora.targets))
    # A new head is trained whole, and peft keeps the one that it replaces.
    trained = adapters + (head if reward else 0)
    return body + head + trained, trained


def _token_head(model: Model) -> int:
    tied = model.config.get("tie_word_embeddings", False)
    return sum(
        math.prod(shape)
        for name, shape in model.shapes.items()
        if name.endswith("lm_head.weight") and not tied
    )


def _hidden(model: Model) -> int:
    hidden: int = model.config["hidden_size"]
    return hidden


def _matrices(model: Model, targets: Sequence[str] = ("all-linear",)) -> Iterator[tuple[int, ...]]:
    """Shapes of the body's linear layers, or of those that `LoraSettings.targets` names."""
    for name, shape in model.shapes.items():
        layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
        embedding = "embed" in name or layer in ("wte", "wpe")
        if len(shape) != 2 or embedding or name.endswith(HEADS):
            continue
        if targets == ("all-linear",) or layer in targets:
            yield shape


def needs(
    model: Model, settings: TrainSettings, work: Work, *, reward: bool, members: int = 1
) -> Needs:
    """What training the model so takes."""
    every, trained = parameters(model, settings.lora, reward=reward, members=members)
    largest = 0 if settings.lora else max(map(math.prod, model.shapes.values()))
    return Needs(
        weights=FLOAT32 * every,
        trained=(FLOAT32 + MOMENTS) * trained + FLOAT32 * largest,
        step=_step(model, settings, work, reward=reward),
    )


def _step(model: Model, settings: TrainSettings, work: Work, *, reward: bool) -> float | None:
    """Bytes that are held for the backward pass of `work`."""
    config = model.config
    known = {"hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"}
    if not known <= config.keys() or any("expert" in key for key in config):
        return None
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    attention = heads * (config.get("head_dim") or hidden // heads)
    gated = any("gate" in name for name in model.shapes)
    mlp = config["intermediate_size"] * (4 if gated else 2)
    size = 2 if settings.dtype == "bfloat16" else FLOAT32
    # Each of a layer's two norms keeps what goes in and, where its weight is trained, the same
    # normalised, both in float32. What comes out is kept for the matrices behind it; where that is
    # another precision, for each of them.
    kept = 2 * FLOAT32 * (1 if settings.lora else 2)
    out = 2 * FLOAT32 if size == FLOAT32 else (5 if gated else 4) * size
    # Queries, keys, values and their mean.
    layer = hidden * (kept + out) + size * (4 * attention + mlp)
    # Attention takes the packed mask as numbers.
    mask = size * work.width
    if settings.gradient_checkpointing:
        held = layers * FLOAT32 * hidden + 2 * layer + mask
    else:
        held = layers * (layer + mask)
    found = float(work.tokens * held)
    if size < FLOAT32:
        # The matrices once more, in that precision.
        found += size * sum(math.prod(shape) for shape in _matrices(model))
    if not reward:
        # The logits, their logarithms of shares and the gradient.
        vocabulary = config["vocab_size"]
        found += 3 * FLOAT32 * min(work.tokens * vocabulary, LOGITS_AT_ONCE)
    return found


def check(
    folder: Path,
    settings: TrainSettings,
    work: Work,
    free: float,
    *,
    reward: bool,
    members: int = 1,
) -> str | None:
    """What to warn of where training the model in `folder` may not fit into `free` bytes; None
    where it fits, or where nothing is known. Raises SetupError, with the settings that would make
    it fit, where it cannot."""
    model = read_model(folder)
    if model is None:
        return None

    def most(settings: TrainSettings, work: Work) -> float:
        return needs(model, settings, work, reward=reward, members=members).most

    found = needs(model, settings, work, reward=reward, members=members)
    if found.most <= free:
        return None
    fix = _fix(settings, work, free, most)
    told = f"training takes about {size(found.least)} to {size(found.most)} of memory"
    if found.least * (1 - OFF) > free:
        raise SetupError(f"{told}, and {size(free)} are free", fix=fix)
    return f"{told}, and {size(free)} are free; if it does not fit, {fix}"


def _fix(
    settings: TrainSettings, work: Work, free: float, most: Callable[[TrainSettings, Work], float]
) -> str:
    """The settings that make it fit: each that does so by itself, or else all of them."""
    fewer = [2**n for n in range(13, 8, -1) if work.longest <= 2**n < work.tokens]
    helps: list[tuple[str, dict[str, Any], Work]] = []
    if settings.lora is None:
        helps.append(("lora: {}", {"lora": LoraSettings()}, work))
    if not settings.gradient_checkpointing:
        on: dict[str, Any] = {"gradient_checkpointing": True}
        helps.append(("gradient_checkpointing: true", on, work))
    for tokens in fewer:
        less = Work(tokens, min(work.width, tokens), work.longest)
        if most(settings, less) <= free or tokens == fewer[-1]:
            helps.append((f"tokens_at_once: {tokens}", {"tokens_at_once": tokens}, less))
            break
    if settings.dtype == "float32":
        helps.append(("dtype: bfloat16", {"dtype": "bfloat16"}, work))

    alone = [
        told
        for told, changes, less in helps
        if most(settings.model_copy(update=changes), less) <= free
    ]
    if alone:
        return f"set {' or '.join(alone)}"
    together: list[str] = []
    for told, changes, less in helps:
        before = most(settings, work)
        changed, smaller = settings.model_copy(update=changes), min(work, less)
        if most(changed, smaller) < before:
            together.append(told)
            settings, work = changed, smaller
        if most(settings, work) <= free:
            return f"set {', '.join(together[:-1])} and {together[-1]} together"
    return "take a smaller base model, or a machine with more memory"


def free_on_host() -> float:
    """Bytes that this machine, or the control group that the process lives in, still gives;
    infinite where Linux does not say."""
    free = math.inf
    told = Path("/proc/meminfo")
    if told.is_file():
        fields = dict(line.split(":", 1) for line in told.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    return min(free, *(_left(*files) for files in CGROUPS))


def _left(limit: Path, used: Path, stat: Path) -> float:
    """What a control group's limit leaves, where files that are only cached give way."""
    if not (limit.is_file() and used.is_file() and stat.is_file()):
        return math.inf
    most = limit.read_text().strip()
    if most == "max":
        return math.inf
    fields = dict(line.split() for line in stat.read_text().splitlines())
    cached = int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))
    return int(most) - int(used.read_text()) + cached


def size(count: float) -> str:
    """Bytes for people."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.0f} kB"

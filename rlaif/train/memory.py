"""How much memory a training takes, told before anything is loaded: by a model's config.json, the
headers of its safetensors and the settings. Free of torch.

Parameters, gradients and AdamW's moments are counted exactly. What a step holds for its backward
pass is estimated for decoders of Llama's kind, and was within a tenth of what autograd kept; of
others it is unknown and taken for nothing. The allocator takes more than is held: on a host up to
2.4 times that (benchmarks/RESULTS.md); on accelerators it was not measured. So there are two
figures, `least` and `most`: only the first refuses a training, the second warns. What several
processes take was measured on a host alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.train.fits import Help, largest_that_fits, verdict
from rlaif.train.rl_settings import RLSettings
from rlaif.train.settings import LoraSettings, TrainSettings
from rlaif.train.shapes import Model, matrices, parameters, read_model

SLACK = 2.5
"""Bytes taken from the machine for a byte that a step holds, at most: allocators keep pieces."""
STATES_SLACK = 1.1
"""The same for a byte of weights, gradients and moments."""
LOGITS_AT_ONCE = 2**26
"""Logits held at once, in float32 a quarter of a GiB."""
FLOAT32 = 4
MOMENTS = 2 * FLOAT32
"""Bytes of AdamW's two moments of a trained parameter."""


class Work(NamedTuple):
    """The most that is computed at once."""

    tokens: int
    """Tokens, padding included."""
    width: int
    """Tokens of the widest row."""
    longest: int
    """Tokens of the longest prompt and response, which are never divided."""


class Processes(NamedTuple):
    """Those that train together."""

    number: int = 1
    sharded: bool = False
    """FSDP: weights, gradients and moments are divided; else each process has all of them."""
    on_host: bool = True
    """All take of one memory, the machine's; else each has a device of its own."""

    @property
    def sharers(self) -> int:
        """How many take of one memory."""
        return self.number if self.on_host else 1


ALONE = Processes()


class Needs(NamedTuple):
    """Bytes of a training's process at its peak."""

    weights: int
    trained: int
    """Gradients, the largest of them twice where it is added to another, and AdamW's moments."""
    step: float | None
    """Activations of the tokens computed at once; None: the architecture is not known."""
    aside: int = 0
    """What is held at another time than a step: whole weights before they are divided, or what is
    put together for a checkpoint."""

    @property
    def least(self) -> float:
        """What is held."""
        return self.weights + self.trained + max(self.step or 0.0, self.aside)

    @property
    def most(self) -> float:
        """What is taken from the machine."""
        states = STATES_SLACK * (self.weights + self.trained + self.aside)
        return states + SLACK * (self.step or 0.0)


def needs(
    model: Model,
    settings: TrainSettings,
    work: Work,
    *,
    reward: bool,
    members: int = 1,
    processes: Processes = ALONE,
) -> Needs:
    """What each of the processes takes that train the model so."""
    every, trained = parameters(model, settings.lora, reward=reward, members=members)
    found = Needs(
        weights=FLOAT32 * every,
        trained=states(model, settings.lora, trained),
        step=step_bytes(model, settings, work, reward=reward),
    )
    n = processes.number
    if n == 1:
        return found
    if not processes.sharded:
        # DDP adds gradients up in buckets, which are another copy.
        return found._replace(trained=found.trained + FLOAT32 * trained)
    divided = found._replace(weights=found.weights // n, trained=found.trained // n)
    before = found.weights - divided.weights - divided.trained
    # The first process puts weights and moments together, on the host.
    whole = (found.weights + MOMENTS * trained) // n if processes.on_host else 0
    return divided._replace(
        step=(found.step or 0.0) + _gathered(model, every, settings.lora is None),
        aside=max(before, whole, 0),
    )


def states(model: Model, lora: LoraSettings | None, trained: int) -> int:
    """Bytes of gradients and AdamW's moments."""
    largest = 0 if lora else max(map(math.prod, model.shapes.values()))
    return (FLOAT32 + MOMENTS) * trained + FLOAT32 * largest


def _gathered(model: Model, every: int, whole: bool) -> int:
    """Bytes of weights that FSDP puts together for a pass: those outside of the layers, a layer's
    with the next one's, and the buffer that they come in; and the same of their gradients."""
    layers: Counter[str] = Counter()
    for name, shape in model.shapes.items():
        if found := re.match(r"(.+?\.\d+)\.", name):
            layers[found[1]] += math.prod(shape)
    outside, largest = every - layers.total(), max(layers.values(), default=0)
    unit = max(outside, largest)
    return FLOAT32 * (outside + 2 * largest + unit + (2 * unit if whole else 0))


def step_bytes(
    model: Model, settings: TrainSettings | RLSettings, work: Work, *, reward: bool
) -> float | None:
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
        found += size * sum(math.prod(shape) for shape in matrices(model))
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
    processes: Processes = ALONE,
) -> str | None:
    """What to warn of where training the model in `folder` may not fit into `free` bytes, of the
    machine or of each device; None where it fits, or where nothing is known. `work` is a process's.
    Raises SetupError, with the settings that would make it fit, where it cannot."""
    model = read_model(folder)
    if model is None:
        return None

    def figures(plan: Plan) -> tuple[float, float]:
        settings, work, processes = plan
        found = needs(model, settings, work, reward=reward, members=members, processes=processes)
        return processes.sharers * found.least, processes.sharers * found.most

    where = ""
    if processes.number > 1:
        where = f" in {processes.number} processes" if processes.on_host else " on each device"
    return verdict(Plan(settings, work, processes), figures, _helps, free, where)


class Plan(NamedTuple):
    """What can be changed in a training to make it fit."""

    settings: TrainSettings
    work: Work
    processes: Processes

    def changed(self, **changes: Any) -> Plan:
        return self._replace(settings=self.settings.model_copy(update=changes))


def _helps(plan: Plan, fits: Callable[[Plan], bool]) -> list[Help[Plan]]:
    settings, work, processes = plan
    helps: list[Help[Plan]] = []
    if settings.lora is None:
        helps.append(("lora: {}", lambda p: p.changed(lora=LoraSettings())))
    if not settings.gradient_checkpointing:
        helps.append(
            ("gradient_checkpointing: true", lambda p: p.changed(gradient_checkpointing=True))
        )
    fewer = [2**n for n in range(13, 8, -1) if work.longest <= 2**n < work.tokens]

    def of_tokens(tokens: int) -> Help[Plan]:
        less = Work(tokens, min(work.width, tokens), work.longest)
        return f"tokens_at_once: {tokens}", lambda p: p._replace(work=min(less, p.work))

    helps += largest_that_fits(plan, map(of_tokens, fewer), fits)
    if settings.dtype == "float32":
        helps.append(("dtype: bfloat16", lambda p: p.changed(dtype="bfloat16")))
    if processes.number > 1 and not processes.sharded:
        divided = processes._replace(sharded=True)
        helps.append(("launch: fsdp", lambda p: p._replace(processes=divided)))
    return helps

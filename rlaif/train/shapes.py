"""What the files of a model tell of its weights, before they are loaded. Free of torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.train.settings import LoraSettings

FLOATS = {"F64", "F32", "F16", "BF16"}
HEADS = ("lm_head.weight", "score.weight")


class Model(NamedTuple):
    """What the files of a model tell of it."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of each tensor in its files."""
    config: Mapping[str, Any]
    """config.json; of a model of several parts that of its text."""


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
    adapters = sum(lora.rank * sum(shape) for shape in matrices(model, lora.targets))
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
    # A head is next to nothing: of a config that calls it otherwise it is taken for that.
    hidden: int = model.config.get("hidden_size", 0)
    return hidden


def matrices(model: Model, targets: Sequence[str] = ("all-linear",)) -> Iterator[tuple[int, ...]]:
    """Shapes of the body's linear layers, or of those that `LoraSettings.targets` names."""
    for name, shape in model.shapes.items():
        layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
        embedding = "embed" in name or layer in ("wte", "wpe")
        if len(shape) != 2 or embedding or name.endswith(HEADS):
            continue
        if targets == ("all-linear",) or layer in targets:
            yield shape

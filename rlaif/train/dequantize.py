"""`python -m rlaif.train.dequantize FILE.gguf OUT`: a GGUF file as a plain float32 model directory.

What it writes is read by transformers and by vLLM alike, and can be trained.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from rlaif.errors import SetupError
from rlaif.train.loading import quiet
from rlaif.train.saving import written_whole

MAGIC = b"GGUF"


def dequantize(file: Path, out: Path) -> None:
    """Writes the model and tokenizer of a GGUF file to `out`, in float32.

    Raises SetupError if `file` is no GGUF file or `out` cannot be written.
    """
    if not file.is_file():
        raise SetupError("is not there", file=file)
    with file.open("rb") as f:
        if f.read(len(MAGIC)) != MAGIC:
            raise SetupError("is no GGUF file", file=file)
    folder, name = str(file.parent), file.name
    # The GGUF reader draws its own progress bar whatever transformers is told.
    with quiet(), contextlib.redirect_stderr(io.StringIO()), written_whole(out) as new:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlaif.train.dequantize", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        dequantize(arguments.file, arguments.out)
    except SetupError as e:
        print(e, file=sys.stderr)
        sys.exit(e.exit_code)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlaif.errors import SetupError
from rlaif.train.dequantize import dequantize
from rlaif.train.saving import written_whole
from rlaif.train.tiny import make_tiny


def test_the_tiny_model_is_an_ordinary_directory_that_reads_any_text(tmp_path: Path) -> None:
    make_tiny(tmp_path / "tiny", seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    text = "naïve 🙂\ttab\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert model.config.vocab_size == len(tokenizer)
    assert {p.name for p in tmp_path.iterdir()} == {"tiny"}


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_tiny(tmp_path / name, seed)
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b
    assert a != c


def test_the_command_prints_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlaif.train.tiny", str(tmp_path / "t"), "--seed", "3"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"wrote {tmp_path / 't'}\n"
    assert done.stderr == ""


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SetupError, match="holds files that are no model"):
        make_tiny(tmp_path, seed=0)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_error_while_writing_leaves_the_earlier_model(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with written_whole(out) as new:
        (new / "config.json").write_text("old")
    with contextlib.suppress(KeyboardInterrupt), written_whole(out) as new:
        (new / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert (out / "config.json").read_text() == "old"
    with written_whole(out) as new:
        (new / "config.json").write_text("new")
    assert (out / "config.json").read_text() == "new"
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def test_a_file_that_is_no_gguf_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(SetupError, match=r"x\.gguf: is no GGUF file"):
        dequantize(tmp_path / "x.gguf", tmp_path / "out")
    with pytest.raises(SetupError, match=r"absent\.gguf: is not there"):
        dequantize(tmp_path / "absent.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()

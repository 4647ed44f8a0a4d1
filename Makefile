# Everything a fresh checkout needs is one command away: `make test`, `make demo`.
# Needs Python >= 3.11 and, because Inductor compiles for the CPU in C++, a C++ compiler.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXAMPLES := $(VENV)/.installed-examples
NNSMITH := $(VENV)/nnsmith
PYTEST_ARGS ?=
WORKERS ?= 2
DEMO_ARGS ?=
BENCH_ARGS ?=
FUZZ_ARGS ?= --seconds 600 --seed 1 --workers 2
OPERATORS_ARGS ?=

export OMP_NUM_THREADS ?= 2
export PYTHONUNBUFFERED := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help $(VENV) test fuzz fuzz-nnsmith operators demo demo-vision demo-vae lint format bench clean

help:  ## show the targets
	@awk -F ':.*## ' '/^[.$$()a-zA-Z_-]+:.*## /{t=$$1; if (t=="$$(VENV)") t=".venv"; printf "  make %-12s %s\n", t, $$2}' $(MAKEFILE_LIST)

$(VENV): $(STAMP)  ## set up .venv (again when pyproject.toml or constraints.txt change)

# torch first and at its pinned version: an open range would pull the newest build with gigabytes of libraries.
$(STAMP): pyproject.toml constraints.txt
	@py=$$(PYTHON='$(PYTHON)' sh .ci/find-python) && { \
	  [ -x $(BIN)/python ] && $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    || { echo "creating $(VENV) with $$py"; rm -rf $(VENV); "$$py" -m venv $(VENV); }; }
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,dev]'
	@touch $@

# after torch: diffusers takes whichever torch is there
$(EXAMPLES): $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[examples]'
	@touch $@

test: $(STAMP)  ## run the tests, two at a time (WORKERS=1 PYTEST_ARGS="-k options")
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

fuzz: $(STAMP)  ## random programs against eager (FUZZ_ARGS="--seconds 600 --seed 1")
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

# by themselves: NNSmith asks for more than is used of it, and must not touch torch or numpy
$(NNSMITH): | $(STAMP)
	$(BIN)/python -m pip install -q --no-deps --target $@ nnsmith==0.1.0 z3-solver multipledispatch appdirs omegaconf \
	  antlr4-python3-runtime==4.9.3 pyyaml

fuzz-nnsmith: $(NNSMITH)  ## the same with networks of NNSmith
	PYTHONPATH=$(NNSMITH) $(BIN)/python -m tests.fuzz --nnsmith $(FUZZ_ARGS)

operators: $(STAMP)  ## PyTorch's own samples against eager (OPERATORS_ARGS="--ops add,mm --samples all --jobs 2")
	$(BIN)/python -m tests.operators $(OPERATORS_ARGS)

demo: $(STAMP)  ## train GPT-2 on Python's documentation under a memory budget
	$(BIN)/python examples/train_gpt2.py $(DEMO_ARGS)

demo-vision: $(EXAMPLES)  ## classify and enlarge a photograph patch by patch
	$(BIN)/python examples/patch_vision.py $(DEMO_ARGS)

demo-vae: $(EXAMPLES)  ## decode with Stable Diffusion's VAE, beside diffusers' tiling
	$(BIN)/python examples/vae_decode.py $(DEMO_ARGS)

lint: $(STAMP)  ## ruff check, ruff format --check, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict memcompile benchmarks examples tests

format: $(STAMP)  ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## run the benchmarks (long)
	$(BIN)/python benchmarks/rematerialize.py $(BENCH_ARGS)

clean:  ## remove .venv and build products
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

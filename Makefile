VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODEL ?= examples/tiny-llama
JOBS ?= 2
# Two processes with two threads each on two cores are many times slower than with one.
PYTEST := OMP_NUM_THREADS=$(or $(OMP_NUM_THREADS),1) $(BIN)/python -m pytest \
	--numprocesses $(JOBS) --dist loadgroup --no-loadscope-reorder

.PHONY: help setup demo test test-all fuzz check bench bench-fasp bench-memory bench-ratios

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

setup: $(READY) ## Make the environment: vLLM for the GPU if there is one, else for the CPU
	@echo "Ready: source $(BIN)/activate"

demo: $(READY) ## Prune a small real model and serve it
	@$(BIN)/python examples/demo.py

test: $(READY) ## Run the tests; choose some with ARGS="-k budget", and JOBS=0 for this process alone
	@$(PYTEST) $(ARGS)

test-all: $(READY) ## Run those too that are left out for their time: a server of its own for every family
	@$(PYTEST) --slow $(ARGS)

fuzz: $(READY) ## Run ten thousand damaged models, corpora, options and records; choose kinds with ARGS="-k weights"
	@$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=fuzz $(ARGS)

check: $(READY) ## Lint, check the format, check the types
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary

bench: $(READY) ## Time the projection of a million units beside a gate step of MODEL
	@$(BIN)/python benchmarks/projection.py $(MODEL)

bench-fasp: $(READY) ## Time FASP and its restoration on a random OPT-125M
	@$(BIN)/python benchmarks/fasp.py

bench-memory: $(READY) ## Memory of export at its peak on models of 1 and 3 B; choose with ARGS="--cases gates-whole"
	@$(BIN)/python benchmarks/memory.py $(ARGS)

bench-ratios: $(READY) ## Ten keep ratios of MODEL from one run beside runs of their own, into RATIOS
	@$(BIN)/python benchmarks/several_ratios.py $(MODEL) --output $(or $(RATIOS),several-ratios) \
		--dataset sampled --dataset-split '[:90%]' --evaluate 'prose=sampled[90%:]' --eval-samples 60

# The stamp is written last: an interrupted set-up is taken up again.
$(READY): pyproject.toml scripts/setup_env.py
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python scripts/setup_env.py
	@touch $@

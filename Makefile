# `make demo` and `make test` only need python3 (3.11 or newer, with venv and pip): they create an environment in .venv.
# See `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Pinned for reproducible benchmark figures and rounding. Installed first and repeated in later install commands, so that
# no dependency replaces it.
TORCH ?= torch==2.13.0
# Index of wheels without GPU libraries, which take several GB on Linux; on other systems the default index has them.
# Set to nothing to use pip's own sources, for a machine with a GPU: make demo TORCH_CPU_INDEX=
TORCH_CPU_INDEX ?= $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_OUTPUT ?= demo_output

LINTED := $(wildcard vasomim_hf tests training benchmarks)
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
# Settings that may change results: `make test-matrix` runs the tests under each of them.
MATRIX := OMP_NUM_THREADS=1 OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=default \
    ONEDNN_MAX_CPU_ISA=AVX2 VASOMIM_TEST_SEED=1 VASOMIM_TEST_SEED=2 VASOMIM_TEST_SEED=3 VASOMIM_TEST_SEED=4

.PHONY: help
help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 16

$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) into $(VENV); the first time takes a few minutes."
	@# the CPU wheel from pip's own sources, otherwise from its index, which may be unreachable
	@test -z "$(TORCH_CPU_INDEX)" \
	    || $(PIP) "$(TORCH)+cpu" 2>/dev/null \
	    || $(PIP) "$(TORCH)+cpu" --index-url "$(TORCH_CPU_INDEX)" --timeout 15 --retries 0 \
	    || echo "No CPU wheel of $(TORCH) from $(TORCH_CPU_INDEX): using pip's own sources, which may be a large download."
	$(PIP) "$(TORCH)"
	@touch $@

# Dependencies are in setup.cfg: when it changes, the environment is updated.
$(VENV)/.demo: $(VENV)/.torch setup.cfg pyproject.toml
	$(PIP) "$(TORCH)" --editable ".[data,training]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch setup.cfg pyproject.toml
	$(PIP) "$(TORCH)" --editable ".[dev]"
	@touch $@ $(VENV)/.demo

.PHONY: demo
demo: $(VENV)/.demo  ## Pre-train on synthetic angiograms, end to end, in demo_output
	$(BIN)/vasomim demo --output $(DEMO_OUTPUT)

.PHONY: test
test: lint docs unit  ## Run lint, build the documentation, run unit tests and docstring examples

.PHONY: lint
lint: $(VENV)/.dev  ## Check style, format and types
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/mypy

.PHONY: unit
unit: $(VENV)/.dev  ## Run the unit tests and docstring examples; plain pytest does the same in one process
	$(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --durations 10 $(PYTEST_ARGS)

.PHONY: test-matrix
test-matrix: $(VENV)/.dev  ## Run the unit tests under other thread counts, instruction sets and seeds
	@set -e; for setting in $(MATRIX); do echo "== $$setting"; \
	    env "$$setting" $(BIN)/python -m pytest --quiet --numprocesses $(PYTEST_WORKERS) $(PYTEST_ARGS); done

.PHONY: docs
docs: $(VENV)/.dev  ## Build the documentation site into site/, strictly
	$(BIN)/python -m mkdocs build --quiet --strict

.PHONY: test-upstream
test-upstream: $(VENV)/.dev  ## Run the common tests of transformers on our classes
	$(BIN)/python tests/upstream/run.py --numprocesses $(PYTEST_WORKERS) $(PYTEST_ARGS)

.PHONY: bench
bench: $(VENV)/.dev  ## Run every benchmark
	@set -e; for file in benchmarks/benchmark_*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

.PHONY: clean
clean:  ## Remove files created by the other targets
	rm -rf $(VENV) .upstream_tests .pytest_cache .ruff_cache .mypy_cache build dist vasomim_hf.egg-info $(DEMO_OUTPUT)
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

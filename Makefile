# `make demo` and `make test` need nothing but python3 (3.11 or newer, with venv and pip): they build their own
# environment in .venv. See `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One exact version, so that figures and rounding are the same for everyone. Installed before everything else and
# named again beside everything else, so that no dependency brings another one.
TORCH ?= torch==2.13.0
# Index of the wheels without GPU libraries, which are some GB on Linux; elsewhere the default index has them without.
# Empty: whatever pip's own sources have, for a machine with a GPU: make demo TORCH_CPU_INDEX=
TORCH_CPU_INDEX ?= $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_OUTPUT ?= demo_output

LINTED := $(wildcard vasomim_hf tests training benchmarks)
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
# One thread for each test process: two processes of two threads on two cores are slower than both alternatives.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: help
help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 16

$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) into $(VENV); the first time takes a few minutes."
	@# the CPU wheel from pip's own sources, or else from its index, which may be out of reach
	@test -z "$(TORCH_CPU_INDEX)" \
	    || $(PIP) "$(TORCH)+cpu" 2>/dev/null \
	    || $(PIP) "$(TORCH)+cpu" --index-url "$(TORCH_CPU_INDEX)" --timeout 15 --retries 0 \
	    || echo "No CPU wheel of $(TORCH) from $(TORCH_CPU_INDEX): taking what pip's own sources have, which may be large."
	$(PIP) "$(TORCH)"
	@touch $@

# What the package needs stands in setup.cfg: when that changes, the environment is brought up to date.
$(VENV)/.demo: $(VENV)/.torch setup.cfg pyproject.toml
	$(PIP) "$(TORCH)" --editable ".[data,training]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch setup.cfg pyproject.toml
	$(PIP) "$(TORCH)" --editable ".[dev]"
	@touch $@ $(VENV)/.demo

.PHONY: demo
demo: $(VENV)/.demo  ## Pre-train on synthetic angiograms, end to end, into demo_output
	$(BIN)/vasomim demo --output $(DEMO_OUTPUT)

.PHONY: test
test: lint doctest unit  ## Lint, examples of the docstrings, unit tests

.PHONY: lint
lint: $(VENV)/.dev  ## Check style, format and types
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/mypy

.PHONY: doctest
doctest: $(VENV)/.dev  ## Run the examples of the docstrings
	$(ONE_THREAD) $(BIN)/python -m pytest --quiet --doctest-modules vasomim_hf $(PYTEST_ARGS)

.PHONY: unit
unit: $(VENV)/.dev  ## Run the unit tests
	$(ONE_THREAD) $(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --durations 10 tests $(PYTEST_ARGS)

.PHONY: test-upstream
test-upstream: $(VENV)/.dev  ## Run transformers' own common tests against our classes
	$(BIN)/python tests/upstream/run.py --numprocesses $(PYTEST_WORKERS) $(PYTEST_ARGS)

.PHONY: bench
bench: $(VENV)/.dev  ## Run every benchmark
	@set -e; for file in benchmarks/benchmark_*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

.PHONY: clean
clean:  ## Remove what the other targets made
	rm -rf $(VENV) .upstream_tests .pytest_cache .ruff_cache .mypy_cache build dist vasomim_hf.egg-info $(DEMO_OUTPUT)
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

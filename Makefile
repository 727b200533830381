# Everything runs in one environment, made on first use. Later runs need no network.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# Processes that run tests, one a core; each test goes to the first that is free.
JOBS ?= auto

BIN := $(VENV)/bin
# Where compiled programs are kept from one run to the next.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/build/compiled
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.1
PARALLEL = --numprocesses $(JOBS) --dist worksteal
STAMP := $(VENV)/.installed
EXAMPLES = $(sort $(wildcard examples/[!_]*.py))
BENCHMARKS = $(sort $(wildcard benchmarks/[!_]*.py))

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-core test-long lint types examples bench clean

help:
	@echo "quickstart   set up and run examples/quickstart.py"
	@echo "test         all tests but the long ones, about 15 minutes on two cores"
	@echo "test-core    the subset that runs on every supported Python"
	@echo "test-long    end-to-end runs with default options, some two hours"
	@echo "lint, types  ruff, mypy"
	@echo "examples     run every example"
	@echo "bench        run every benchmark"
	@echo "clean        remove caches and build output, keep the environment"
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) PYTEST_ARGS=$(PYTEST_ARGS) JOBS=$(JOBS)"

# Without build isolation, a repeated install finds all that it needs in place.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "numpyro_epi needs Python 3.11 or later, and '$(PYTHON)' is not one:" \
	    "$$($(PYTHON) --version 2>&1). Use: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make an environment with pip in it. Install its venv" \
	    "package (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools>=77"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	@touch $@

quickstart: $(STAMP)
	$(BIN)/python examples/quickstart.py

test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m "not long" --durations=10 $(PYTEST_ARGS)

test-core: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m core $(PYTEST_ARGS)

test-long: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m long --durations=0 $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

examples: $(STAMP)
	@set -e; for script in $(EXAMPLES); do \
	  echo "$$script"; MPLBACKEND=Agg $(BIN)/python $$script; done

bench: $(STAMP)
	@set -e; for script in $(BENCHMARKS); do \
	  echo "$$script"; MPLBACKEND=Agg $(BIN)/python $$script; done

clean:
	rm -rf build dist out .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

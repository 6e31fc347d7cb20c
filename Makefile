# `make install`, `make demo`, `make test`: all that a fresh machine with Python 3.11, git and make needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# The CPU or the CUDA build of torch: whichever index this names wins (see README, "Choosing torch").
TORCH ?= torch==2.13.0
# One worker a core, one thread a worker. A file's tests stay together, they share models; in their order, so that the
# few slow ones of whole processes do not come last.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: install install-dev demo test lint unit slow explore e2e base-smollm clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# torch goes first and pinned: a looser requirement may pull a second build with gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)'
	$(PIP) --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[demo,ray,dev]'
	touch $@

demo: install
	$(BIN)/fedpeft simulate simulations/scenarios/airlines.toml

base-smollm: install
	$(BIN)/python simulations/scenarios/fetch_smollm.py

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What needs no model: about a minute.
unit: install-dev
	$(PYTEST) -m 'not slow and not gpu and not e2e and not torch'

test: lint
	$(PYTEST)

slow: install-dev
	$(PYTEST) -m 'slow'

explore: install-dev
	$(PYTEST) -m 'not slow and not gpu and not e2e' --hypothesis-profile=explore

e2e: install-dev
	$(BIN)/pytest -m e2e tests/e2e

clean:
	rm -rf $(VENV) build dist *.egg-info

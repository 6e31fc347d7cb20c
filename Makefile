# `make install`, `make demo`, `make test`: all that a fresh machine with Python 3.11, git and make needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# The CPU or the CUDA build of torch: whichever index this names wins (README.md, "More").
TORCH ?= torch==2.13.0
# One worker per core and two more: whole processes wait for each other and for deadlines, and three workers left a third
# of two cores idle (docs/adr/0059). One thread per worker. A file's tests stay together, they share models; in their
# order, so that the few slow ones of whole processes do not come last.
WORKERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 2 )))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
  -o tmp_path_retention_policy=failed -o tmp_path_retention_count=1
# Tests write where the system keeps files in memory, if 4 GB are free there and programs may lie there: nearly all that
# fedpeft writes is synced, and a disk makes every test wait for it. What is tested about disks brings its own.
MEMORY_FREE := $(shell df --output=avail /dev/shm 2>/dev/null | tail -n 1)
ifeq ($(shell test "$(MEMORY_FREE)" -gt 4194304 2>/dev/null && ! grep -q ' /dev/shm .*noexec' /proc/mounts && echo yes),yes)
export PYTEST_DEBUG_TEMPROOT ?= /dev/shm
endif
export FLWR_TELEMETRY_ENABLED := 0
# Some containers set it: then every process that a test starts would compile all of fedpeft anew.
unexport PYTHONDONTWRITEBYTECODE
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: help install install-dev demo test lint unit slow explore lock lowest newest mutate e2e faults base-smollm docs site clean
.DEFAULT_GOAL := help

help: ## What there is to make.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## A virtual environment with all that a user needs.
install-dev: $(VENV)/.installed-dev ## The same with the tools of development.

# torch goes first and pinned: a looser requirement may pull a second build with gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(foreach word,$(TORCH),'$(word)')
	$(PIP) --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[demo,ray,dev]'
	touch $@

demo: install ## The airline tweets: six devices, eight rounds, a report.
	$(BIN)/fedpeft simulate simulations/scenarios/airlines.toml --baselines

base-smollm: install ## Fetch SmolLM2 for the language-model scenarios.
	$(BIN)/python simulations/scenarios/fetch_smollm.py

lint: install-dev ## ruff, mypy and the import contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: install-dev ## The tests that need no model: about a minute.
	$(PYTEST) -m 'not slow and not gpu and not e2e and not torch'

test: lint ## lint and the test suite; T=PATH: these tests alone; DRAW=2: other cases of those that are drawn.
	$(PYTEST) $(T)

slow: install-dev ## The tests marked slow.
	$(PYTEST) -m 'slow'

explore: install-dev ## The property tests with many more examples.
	$(PYTEST) -m 'not slow and not gpu and not e2e' --hypothesis-profile=explore

mutate: install-dev ## Which changes to the guarding code no test notices: hours, resumable; SAMPLE=200 SEED=1: minutes.
	nice -n 19 $(BIN)/python benchmarks/mutation.py $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) $(foreach text,$(ONLY),--only $(text))

e2e: install-dev ## Whole runs, in processes of their own.
	$(BIN)/pytest -m e2e tests/e2e

faults: install-dev ## What goes wrong in a deployment, one after the other: the tests that docs/faults.md names.
	$(BIN)/pytest -m 'slow or not slow' $$(grep -o 'tests/[a-zA-Z_/0-9]*\.py\(::[a-z_A-Z0-9]*\)\?' docs/faults.md | sort -u)

lock: install-dev ## Write requirements.lock from pyproject.toml and constraints.txt, with hashes.
	$(BIN)/uv pip compile pyproject.toml $(foreach extra,demo dev harness mlflow ray sentencepiece serve sweep tensorboard wandb,--extra $(extra)) \
	  --constraint constraints.txt --generate-hashes --universal --python-version 3.11 --no-annotate \
	  --custom-compile-command "make lock" --quiet -o requirements.lock > /dev/null

newest: install-dev ## Whether Flower's newest release still has every name that fedpeft takes from it.
	$(PIP) --no-deps --upgrade --target build/newest flwr
	PYTHONPATH=build/newest $(BIN)/python tests/flower/imported_names.py

lowest: install-dev ## The tests without models on the lowest versions that pyproject.toml allows.
	$(BIN)/uv venv --clear --seed --python 3.11 build/lowest
	$(BIN)/uv pip install --quiet --python build/lowest --resolution lowest-direct --editable '.[demo,dev,ray]'
	OMP_NUM_THREADS=1 build/lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile -m 'not slow and not gpu and not e2e and not torch'

docs: install-dev ## Write the generated tables into docs/.
	$(BIN)/python docs/tables.py

site: install ## The documents as a site in build/site (installs mkdocs-material).
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --quiet --strict

clean: ## Remove the environment and what was built.
	rm -rf $(VENV) build dist *.egg-info

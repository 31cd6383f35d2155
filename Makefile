# Two commands do everything on a fresh machine:  make table  ·  make test
# Each creates .venv on first use and installs the exact versions of constraints.txt; a second call installs nothing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PROFILE ?= laptop
SEEDS   ?= 0
# Anything else for the table: ARGS="data_root=DIR trainer.steps=500"
ARGS    ?=
# Further options of pip for the first call; --no-compile is faster where few commands follow
PIP_OPTIONS ?=
# An interpreter for make gpu that has the packages already, where none can be installed
GPU_PYTHON ?= $(BIN)/python
# A launcher for the cells of the table: slurm, local (conf/hydra/launcher); none: on this machine, workers=N side by side
LAUNCHER ?=

# Python may keep its bytecode: the tests start many processes, and each would compile every module again
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup table figures report test test-all check lint render engine gpu bench publish wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "  PROFILE=laptop|smoke|cpu_real|...   SEEDS=0,1,2   LAUNCHER=slurm|local   ARGS='hydra overrides'"

setup: $(STAMP) ## create .venv and install the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "SpecAUF needs Python >= 3.11; $(PYTHON) is older. Try: make PYTHON=python3.11 setup"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (first time only) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

table: $(STAMP) ## train and evaluate what is missing, then print the tables of the paper (the main job)
	@$(BIN)/specauf table experiments/table*.yaml --seeds $(SEEDS) $(if $(LAUNCHER),--launcher $(LAUNCHER)) profile=$(PROFILE) $(ARGS)

figures: $(STAMP) ## draw the figures of the last table into runs/figures/
	@$(BIN)/specauf figures profile=$(PROFILE) $(ARGS)

report: $(STAMP) ## write the report of the last table to runs/reports/ (one HTML file)
	@$(BIN)/specauf report profile=$(PROFILE) $(ARGS)

publish: $(STAMP) ## the same, then copy the records into results/ and render there (clean tree only)
	@$(BIN)/specauf table experiments/table*.yaml --seeds $(SEEDS) $(if $(LAUNCHER),--launcher $(LAUNCHER)) --publish profile=$(PROFILE) $(ARGS)

render: $(STAMP) ## re-render everything under results/ from the committed records, docs/objectives.md, docs/engines.md, docs/targets.md and benchmarks/README.md
	@$(BIN)/specauf render
	@$(BIN)/python -m specauf_cli.reporting.gallery
	@$(BIN)/python -m specauf_cli.reporting.engines
	@$(BIN)/python -m benchmarks.goals
	@$(BIN)/python -m benchmarks.family_table

engine: $(STAMP) ## hold a real vLLM on this CPU to the replay (first time: 900 MB of wheels into .engine/)
	@$(BIN)/python -m benchmarks.engine.run $(ARGS)

gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(STAMP)) ## tests, benchmarks and a study on one NVIDIA GPU, 28 minutes, no network; the same again continues
	@$(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

bench: $(STAMP) ## refresh every record in benchmarks/ and the table of goals; leave the machine alone meanwhile
	@$(BIN)/python -m benchmarks.all $(ARGS)

test: $(STAMP) ## run the tests (offline, CPU)
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(STAMP) ## and the long ones and all of their cases: before a release, or after a change of many files
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not gpu and not network'

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

check: lint test ## ruff, format check, mypy --strict and the tests

wheel: $(STAMP) ## build the wheel into dist/
	@$(BIN)/python -m build --wheel --no-isolation

clean: ## remove caches and build output (never runs/ or results/)
	@rm -rf dist build .pytest_cache .mypy_cache .ruff_cache

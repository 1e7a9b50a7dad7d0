# Every target does its own set-up, in .venv: a machine needs python3 with venv, and uv is used if it is there.
# `make test PYTHON=/path/to/python3.13` uses another interpreter, and an environment of its own.

PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN := $(VENV)/bin
FLAKE ?= 20
WORKERS ?= 3

.PHONY: demo test quick check docs picture dist bench stress programs engines flake coverage clean

demo: $(VENV)/.base
	@$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

# For the work between: no builds, boots, crash sweeps or documentation, and one of each table of cases. Most tests wait
# most of the time, so there is one more at once.
quick: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(or $(QUICK_WORKERS),4) --quick $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n0 tests/test_cost.py
	$(BIN)/codespell
	$(BIN)/python -m pytest -q -n0 tests/test_docs_form.py
	$(MAKE) docs

docs: $(VENV)/.dev
	$(BIN)/python docs/record.py --if-changed
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

# The terminal sessions in the documentation, typed anew.
picture: $(VENV)/.dev
	$(BIN)/python docs/record.py

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m hatchling build
	$(BIN)/python -m twine check --strict dist/*

bench: $(VENV)/.bench
	$(BIN)/python bench/run.py $(ARGS)

# Faults, kills, contention, chaos, limits and rubbish, for so many minutes.
stress: $(VENV)/.dev
	$(BIN)/python stress/run.py --minutes $(or $(MINUTES),10) $(ARGS)

# Real programs, killed, reloaded under load and stopped at work; the table goes into docs/howto/programs.md.
programs: $(VENV)/.dev
	$(BIN)/python stress/real.py $(ARGS)

# Docker, Compose, Swarm, Podman and Slurm, from Debian's packages, in namespaces of their own; as root. `engines/run.py` has more.
engines: $(VENV)/.dev
	$(BIN)/python engines/run.py $(ARGS)

# The suite again and again, every second time with all cores loaded.
flake: $(VENV)/.dev
	$(BIN)/python tests/flake.py $(FLAKE) $(ARGS)

coverage: $(VENV)/.dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q $(ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

clean:
	rm -rf .venv .venv-* dist docs/_build .coverage* .hypothesis .*_cache

ifneq ($(shell command -v uv),)
INSTALL = uv pip install -q --python $(BIN)/python
CREATE = uv venv -q --allow-existing --python $$(command -v $(PYTHON)) $(VENV)
else
INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check
CREATE = $(PYTHON) -m venv $(VENV) && $(INSTALL) -U 'pip>=25.1'
endif

$(VENV)/.made:
	@$(CREATE)
	@touch $@

$(VENV)/.base: $(VENV)/.made pyproject.toml
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(INSTALL) --group dev
	@touch $@

# What can't be had is left out of the report.
$(VENV)/.bench: $(VENV)/.base
	-$(INSTALL) --group bench
	@touch $@

# make setup | demo | test | fuzz | check | docs | bench: each does its own set-up in .venv
PYTHON ?= python3
BIN := .venv/bin
# Idle OpenMP threads that spin cost up to half of the speed on a shared machine.
export OMP_WAIT_POLICY ?= passive

.PHONY: setup demo test test-all fuzz check format docs bench clean

setup: .venv/.installed

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "packtrain needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch>=2.9,<2.14'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/packtrain demo

# One process of tests per core, as long as each has some gigabytes.
test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-all: setup
	$(BIN)/python -m pytest -m "not network"

fuzz: setup
	$(BIN)/python -m pytest --hypothesis-profile=thorough --hypothesis-show-statistics tests/prepare/test_fuzz.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python -m packtrain.config.document > docs/configuration.md

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache src/*.egg-info

# make demo | test | check | site | dist | ...: each first installs what it needs itself, in .venv
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Idle OpenMP threads that spin cost up to half of the speed on a shared machine.
export OMP_WAIT_POLICY ?= passive

.PHONY: setup develop demo test test-slow test-all fuzz check format docs site dist offline-wheels bench clean

# What packtrain needs to run.
setup: .venv/.installed
# What tests and checks need beside it: more than the program itself.
develop: .venv/.developing

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "packtrain needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing packtrain and what it needs into .venv; the first time this downloads torch and takes minutes" >&2
	$(PIP) 'torch>=2.9,<2.14'
	$(PIP) -e .
	@touch $@

.venv/.developing: .venv/.installed
	@echo "installing what tests and checks need into .venv" >&2
	$(PIP) -e '.[dev]'
	@touch $@

.venv/.documenting: .venv/.installed
	$(PIP) -e '.[docs]'
	@touch $@

.venv/.packaging: .venv/.installed
	$(PIP) -e '.[release]'
	@touch $@

demo: setup
	$(BIN)/packtrain demo

test: develop
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# What takes more than about three seconds each. CI runs both; `make test-all` also runs what takes minutes.
test-slow: develop
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "slow and not very_slow and not gpu and not multi_gpu and not network"

test-all: develop
	$(BIN)/python -m pytest -m "not network"

fuzz: develop
	$(BIN)/python -m pytest --hypothesis-profile=thorough --hypothesis-show-statistics tests/prepare/test_fuzz.py

check: develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python -m packtrain.config.document > docs/configuration.md

# A folder of plain HTML, site/, which needs no server and no network: open site/index.html.
site: .venv/.documenting
	$(BIN)/mkdocs build --strict --quiet

# A wheel and an sdist in dist/, checked as an index would. Then one command publishes them: twine upload dist/*
dist: .venv/.packaging
	rm -rf dist build
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/e2e/installed_wheel.py dist

# For a GPU machine without a network that has torch and transformers; `make offline-wheels WHEELS="--python-version 3.12 ..."`
offline-wheels: develop
	$(BIN)/python -m benchmarks.offline_wheels $(WHEELS)

bench: develop
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache src/*.egg-info

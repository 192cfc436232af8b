# Each target makes .venv itself. PYTHON and TORCH_SOURCE may be set from outside:
#   make quickstart TORCH_SOURCE="--find-links /path/to/wheels"   where your CPU build of torch lies
PYTHON ?= python3
TORCH_SOURCE ?=
VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt $(TORCH_SOURCE)

# one process a core, each with one thread; a file's tests stay together, since they share fixtures. Byte code is kept, also where the
# environment says otherwise: without it every process compiles all tests anew
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-fast test-all lint bench docs site clean

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $@

$(VENV)/.test: $(VENV)/.runtime
	$(PIP) -e '.[test]'
	$(PIP) --no-deps steering-vectors==0.12.2  # it pins transformers < 5 and works with 5
	touch $@

quickstart: $(VENV)/.runtime
	$(BIN)/emscope quickstart --out quickstart

lint: $(VENV)/.test
	$(BIN)/ruff check --quiet src tests examples bench
	$(BIN)/ruff format --quiet --check src tests examples bench
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	$(PYTEST)

test-fast: lint
	$(PYTEST) -m 'not slow and not models and not heavy'

test-all: lint
	$(PYTEST) -m 'slow or not slow'

bench: $(VENV)/.test
	$(BIN)/python bench/preference.py
	$(BIN)/python bench/training.py
	$(BIN)/python bench/sampling.py
	$(BIN)/python bench/rates.py
	$(BIN)/python bench/activations.py
	$(BIN)/python bench/steering.py
	$(BIN)/python bench/probe.py

docs: $(VENV)/.runtime
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_schemas.py

$(VENV)/.docs: $(VENV)/.runtime
	$(PIP) -e '.[docs]'
	touch $@

site: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# `make check` is everything that has to hold before a change goes in; .ci/run calls it too.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready-for-tests
# Processes that the tests run in, each with one thread: more threads than cores make them crawl.
JOBS ?= 2

# An environment may serve several clones: what is tested is always this one.
export PYTHONPATH := $(CURDIR)

.PHONY: check environment format

# All of them run, whichever fails, and the tests come last.
check: environment
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check --quiet . || status=1; \
	$(BIN)/mypy || status=1; \
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile || status=1; \
	exit $$status

environment: $(READY)
	@:

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

format: environment
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

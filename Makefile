# `make check` runs all checks that a change must pass. .ci/run calls it too.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready-for-tests
# Number of test processes. Each has one thread, because more threads than cores are much slower.
JOBS ?= 2

# Several clones may share an environment. This makes the tests use this clone.
export PYTHONPATH := $(CURDIR)

.PHONY: check environment format

# If one check fails, the others still run. The tests run last.
check: environment
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check --quiet . || status=1; \
	$(BIN)/mypy || status=1; \
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder || status=1; \
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

# Every target is complete in itself: on a fresh machine it needs make, Python 3.11 (with venv) and, for the system
# tools, apt-get.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.isobit-setup
JOBS ?= 2
C_SOURCES = $(shell find runtime_stubs -name '*.[ch]' -o -name '*.cpp')

.PHONY: help system setup demo test test-slow lint fmt vectors status clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

system: ## the system tools, through apt where it may
	@tools/setup_system.sh

$(STAMP): pyproject.toml constraints.txt hatch_build.py | system
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: system $(STAMP) ## .venv with the pinned dependencies, and the system tools

demo: setup ## quantize a small model, build it for every target and verify
	$(BIN)/isobit demo

test: setup ## the tests that take under 10 minutes
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS)

# pytest exits with 5 when it selects no test.
test-slow: setup ## the other tests
	$(BIN)/python -m pytest -m slow -n $(JOBS) || [ $$? -eq 5 ]

lint: setup ## ruff, mypy and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy build/dev/isobit tests
	$(if $(C_SOURCES),clang-format --dry-run -Werror $(C_SOURCES))

fmt: setup ## format the Python and C sources
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(if $(C_SOURCES),clang-format -i $(C_SOURCES))

vectors: setup ## generate the conformance vectors
	$(BIN)/python -m isobit.tools.golden

status: setup ## generate the status tables
	$(BIN)/python -m isobit.tools.status_table

clean: ## remove what was generated; .venv stays, the next setup links it again
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis $(STAMP)
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

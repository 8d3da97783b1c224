# make demo and make test do all the set-up themselves; they need Python 3.11+ with venv, and GNU make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= demo-run
# a file of tests stays on one worker, which shares its fixtures; long files come first (tests/conftest.py)
PYTEST = $(BIN)/pytest -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test test-fast test-all check docs lint fmt bench bench-evidence install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pairsan needs Python 3.11 or newer; set PYTHON=")'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/emoji/demo.py --out $(RUN)

test: $(STAMP)
	$(PYTEST) -m 'not slow'

# units only: no model, no Ray, no whole command
test-fast: $(STAMP)
	$(PYTEST) -m 'not slow and not whole'

test-all: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,fuzz]'
	$(PYTEST) --hypothesis-profile=fuzz

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.speed.split
	$(BIN)/python -m benchmarks.speed.fit
	$(BIN)/python -m benchmarks.speed.text
	$(BIN)/python -m benchmarks.speed.clean
	$(BIN)/python -m benchmarks.speed.train

# The red team and the referee; hours, goes on where it stopped. `make bench-evidence QUICK=--quick`: under 25 minutes on 2 cores.
EVIDENCE ?= evidence-run
bench-evidence: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m benchmarks.evidence $(EVIDENCE) $(QUICK)

clean:
	rm -rf $(VENV) build *.egg-info demo-run evidence-run

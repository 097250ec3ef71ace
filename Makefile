# The commands of this project; each does its own set-up. `make demo` and `make test` are where to begin.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
PEERS := .venv-bench
PEERS_READY := $(PEERS)/.ready
# Each of several test processes has one core, and the files with few long tests, which come first, begin first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

# Else every process that a test starts would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv demo test lint bench bench-gpu chaos constraints clean

help:
	@echo "make demo       pack, train, preempt, resume, evaluate, look: the whole path on sample data, about 5 minutes"
	@echo "make test       the whole test suite"
	@echo "make lint       ruff and mypy"
	@echo "make bench      side-by-side measurements on this machine"
	@echo "make bench-gpu  checks and measures everything that needs a GPU, in under 9 minutes"
	@echo "make chaos      kills a run 50 times at random moments and compares it with one that was not; about 15 minutes"
	@echo "make venv       only the set-up: $(VENV) with the package, its extras, the tests' tools, and pinned torch"
	@echo "make clean      remove what these commands made"

venv: $(DEV)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(DEV): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(PEERS_READY): pyproject.toml bench/constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint bench/constraints.txt --editable '.[bench]'
	@touch $@

demo: $(READY)
	$(BIN)/python -m launch.demo

# Launched trainings wait for each other and for imports half of their time, so two at a time fit on two cores.
test: $(DEV)
	$(PYTEST) --numprocesses auto tests/dtrain tests/shard_tools tests/test_docs.py
	$(PYTEST) --numprocesses 2 tests/bench tests/end_to_end tests/launch

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY) $(PEERS_READY)
	$(PEERS)/bin/python -m bench.data
	$(PEERS)/bin/python -m bench.decoders
	$(BIN)/python -m bench.pack
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.saving

bench-gpu: $(READY)
	$(BIN)/python -m bench.gpu

chaos: $(DEV)
	$(BIN)/python -m bench.chaos --json chaos.json

constraints: $(DEV)
	echo "# The versions that make venv installs, tested together. Made by: make constraints" > constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//; s/+cu[0-9]*//' >> constraints.txt

clean:
	rm -rf $(VENV) $(PEERS) demo build dist bench/data *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The commands of this project; each does its own set-up. `make demo` and `make test` are where to begin.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
DEPTH := $(VENV)/.ready-depth
PEERS := .venv-bench
PEERS_READY := $(PEERS)/.ready

# Most modules are never imported; those that are get compiled then.
define install
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '$(1)'
	@touch $@
endef

# Launched trainings wait for each other a quarter of their time, so one test more than there are cores keeps them busy.
AT_A_TIME = $(shell $(PYTHON) -c 'import os; print(os.cpu_count() + 1)')

# Else every process would compile them anew.
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
	$(call install,.)

$(DEV): $(READY)
	$(call install,.[dev])

$(DEPTH): $(DEV)
	$(call install,.[depth])

$(PEERS_READY): pyproject.toml bench/constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint bench/constraints.txt --editable '.[bench]'
	@touch $@

demo: $(READY)
	$(BIN)/python -m launch.demo

# Long tests come first. Those of `--depth` come last: torchmetrics, and so each evaluation of each training, imports
# transformers where it is installed.
test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(AT_A_TIME) --dist loadfile --no-loadscope-reorder \
	    --ignore tests/shard_tools/test_depth_model.py \
	    tests/end_to_end tests/bench tests/launch tests/dtrain tests/shard_tools tests/test_docs.py
	$(MAKE) $(DEPTH)
	$(BIN)/python -m pytest tests/shard_tools/test_depth_model.py

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

constraints: $(DEV) $(DEPTH)
	echo "# The versions that make venv installs, tested together. Made by: make constraints" > constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//; s/+cu[0-9]*//' >> constraints.txt

clean:
	rm -rf $(VENV) $(PEERS) demo build dist bench/data *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Bodega's commands. `make run` and `make test` do all the set-up themselves.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup run serve test test-slow test-gpu benchmark lint proto clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

run: setup
	$(BIN)/python -m jobs.demo

serve: setup
	$(BIN)/python -m engine.serving out=.bodega/demo

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-gpu: setup
	$(BIN)/python -m pytest -m gpu -rs

benchmark: setup
	$(BIN)/python -m pytest -m benchmark -s

# Without a cache: whose imports are in order depends on which files there are, and a cache looks at each file alone.
lint: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint proto
	$(BIN)/python proto/generate.py --check

proto: setup
	$(BIN)/python proto/generate.py

clean:
	rm -rf $(VENV) .bodega build

# Two commands set everything up on a fresh machine with Python 3.11+, a C++17 compiler and make:
#   make demo   train a detector on generated pictures, score it, draw its boxes (about five minutes on two cores)
#   make test   lint, types, and every test
PYTHON ?= python3
VENV ?= .venv
# One known release, so that everybody tests the same. Another: make test TORCH='torch==2.14.1'
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: help demo test lint format table images clean
help:
	@sed -n 's/^#   //p' Makefile

$(READY): pyproject.toml CMakeLists.txt $(SOURCES)
	@echo "== Environment in $(VENV): torch, the packages that fastssd uses, and fastssd itself, compiled from this tree"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --group dev
	$(BIN)/python -m pip install --quiet --config-settings cmake.define.FASTSSD_WERROR=ON --editable '.[all]'
	@touch $(READY)

demo: $(READY)
	@echo "== A detector, from generated pictures to drawn boxes"
	$(BIN)/fastssd demo

test: lint
	@echo "== Tests"
	$(BIN)/python -m pytest

lint: $(READY)
	@echo "== Lint and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

# How every operator of every backend compares with the reference.
table: $(READY)
	$(BIN)/python -m tests.table

# The pictures of docs/how-ssd-works.md.
images: $(READY)
	$(BIN)/python -m fastssd.explain docs/images

clean:
	rm -rf $(VENV) build dist runs

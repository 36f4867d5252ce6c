# Two commands set everything up on a fresh machine with Python 3.11+, a C++17 compiler and make:
#   make demo   train a detector on generated pictures, score it, draw its boxes (about five minutes on two cores)
#   make test   lint, types, and every test
# Where torchvision is wanted beside: make test-hosts, make bench.
PYTHON ?= python3
VENV ?= .venv
# One known release, so that everybody tests the same. Another: make test TORCH='torch==2.14.1'
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: help demo test test-hosts lint format table bench bench-compare images clean
help:
	@sed -n 's/^#   //p' Makefile

.PHONY: FORCE
FORCE:

# An editable installation knows the modules that there were: it is made anew when one comes or goes.
MODULES := build/modules
$(MODULES): FORCE
	@mkdir -p build
	@find fastssd -name '*.py' | sort > $@.now
	@cmp -s $@.now $@ && rm $@.now || mv $@.now $@

$(READY): pyproject.toml CMakeLists.txt $(SOURCES) $(MODULES)
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
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m 'not alone'
	$(BIN)/python -m pytest -m alone

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

# Our operators and their peers, timed side by side in an environment of its own: docs/benchmarks.md.
BENCH := .bench-venv/bin
.bench-venv/.ready: pyproject.toml CMakeLists.txt $(SOURCES) $(MODULES)
	@echo "== Environment in .bench-venv: the peers (torchvision brings gigabytes) and fastssd, compiled from this tree"
	test -x $(BENCH)/python || $(PYTHON) -m venv .bench-venv
	$(BENCH)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BENCH)/python -m pip install --quiet --group bench
	$(BENCH)/python -m pip install --quiet --editable .
	@touch $@

# What only runs beside torchvision and the other hosts: their names on our kernels, and the examples.
test-hosts: .bench-venv/.ready
	$(BENCH)/python -m pytest tests/test_compat_*.py tests/test_examples.py tests/test_weights.py

bench: .bench-venv/.ready
	$(BENCH)/python benchmarks/report.py

# Two commits in alternating runs: make bench-compare A=main~1 B=main
bench-compare: .bench-venv/.ready
	$(BENCH)/python benchmarks/compare.py $(A) $(B)

# The pictures of docs/how-ssd-works.md.
images: $(READY)
	$(BIN)/python -m fastssd.explain docs/images

clean:
	rm -rf $(VENV) .bench-venv build dist runs

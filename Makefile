# Two commands set everything up on a fresh machine with Python 3.11+, a C++17 compiler and make:
#   make demo   train a detector on generated images, measure it, draw its boxes (about five minutes on two cores)
#   make test   lint, types, and every test
# Sanitizers and fuzzing, about five minutes (CONTRIBUTING.md): make sanitize. Longer: make fuzz. With torchvision and
# other peers: make test-hosts, make bench. Other releases of the dependencies: make test-oldest, make test-newest.
PYTHON ?= python3
VENV ?= .venv
# A fixed release, so that everybody tests the same. To use another: make test TORCH='torch==2.14.1'
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: help demo test test-busy test-baseline sanitize fuzz lint format table test-hosts test-oldest test-newest bench bench-compare images clean
help:
	@sed -n 's/^#   //p' Makefile

.PHONY: FORCE
FORCE:

# An editable installation has a list of modules, so it must be made again when a module is added or deleted.
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
	@echo "== A detector, from generated images to drawn boxes"
	$(BIN)/fastssd demo

test: lint
	@echo "== Tests"
	$(BIN)/python -m pytest -n auto --maxprocesses 4

# These show that no test depends on a fast or idle machine, or on the best instruction set.
BUSY ?= 4
test-busy: $(READY)
	@echo "== Tests beside $(BUSY) busy processes"
	@for i in $$(seq $(BUSY)); do (while :; do :; done) & busy="$$busy $$!"; done; trap 'kill $$busy' EXIT; \
	$(BIN)/python -m pytest -n auto --maxprocesses 4

test-baseline: export FASTSSD_ISA = baseline
test-baseline: $(READY)
	@echo "== Tests with FASTSSD_ISA=baseline"
	$(BIN)/python -m pytest -n auto --maxprocesses 4

# Sanitizers and fuzzing: see "How fastssd is kept from breaking" in CONTRIBUTING.md. Needs g++.
# libstdc++ is preloaded too, because AddressSanitizer needs its exceptions and Python does not load it.
SANITIZE := build/sanitize
CHECK := $(BIN)/python -m tests.sanitize
UNDER_ASAN = FASTSSD_LIBRARY=$$(echo $(SANITIZE)/site/fastssd/_C*.so) FASTSSD_BACKEND=cpp \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" UBSAN_OPTIONS=print_stacktrace=1 \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096
sanitize: $(SANITIZE)/.ready $(SANITIZE)/threads
	@echo "== ThreadSanitizer: the pool, the plan cache and the kernels from several threads"
	@# ThreadSanitizer needs addresses without randomisation; it prints an error if setarch may not switch it off.
	if setarch -R true 2> /dev/null; then setarch -R $(SANITIZE)/threads; else $(SANITIZE)/threads; fi
	@echo "== AddressSanitizer and UndefinedBehaviorSanitizer: cases, odd numbers, hostile calls"
	$(UNDER_ASAN) $(CHECK).operators
	$(UNDER_ASAN) $(CHECK).hostile
	@echo "== Hostile calls of the ordinary build"
	$(CHECK).hostile
	@echo "== Odd numbers: every instruction set and several threads against the reference"
	$(CHECK).differential
	@echo "== Broken files"
	$(BIN)/python -m tests.fuzz_files --rounds 200

# The same for as long as you like: make fuzz ROUNDS=100 SEEDS='7 8 9 10'
ROUNDS ?= 5000
SEEDS ?= 2 3 4 5 6 7 8 9
fuzz: $(READY)
	$(CHECK).differential --numba --seeds $(SEEDS)
	$(BIN)/python -m tests.fuzz_files --rounds $(ROUNDS)

# An unoptimised build of the kernels for AddressSanitizer, besides the usual one.
$(SANITIZE)/.ready: $(READY) $(SANITIZE)/runtimes
	@echo "== The kernels with AddressSanitizer and UndefinedBehaviorSanitizer"
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(SANITIZE)/site --config-settings cmake.build-type=Debug \
		--config-settings cmake.define.FASTSSD_SANITIZE=ON --config-settings build-dir=$(SANITIZE)/cmake .
	@touch $@

$(SANITIZE)/runtimes:
	@mkdir -p $(SANITIZE)
	@for name in asan tsan ubsan; do $(CXX) -print-file-name=lib$$name.so; done > $@
	@if grep -qv / $@; then rm $@; echo "make sanitize: $(CXX) has no sanitizer runtimes (libasan, libtsan, libubsan of gcc): \
	install them, or name a g++ that has them with CXX=" >&2; exit 1; fi

# Without Python: the thread pool, the plan cache and the kernels of one instruction set.
TSAN := -std=c++17 -O1 -g -fsanitize=thread -pthread -Icsrc -Wall -Wextra -Wconversion -Wshadow -Werror -Wno-psabi
$(SANITIZE)/threads: tests/sanitize/threads.cpp $(SOURCES) $(SANITIZE)/runtimes
	@echo "== The pool, the plan cache and the kernels with ThreadSanitizer"
	$(CXX) $(TSAN) -DFASTSSD_ISA=baseline $< csrc/kernels.cpp csrc/parallel.cpp csrc/dispatch.cpp -o $@

lint: $(READY)
	@echo "== Lint and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(SOURCES) tests/sanitize/threads.cpp
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES) tests/sanitize/threads.cpp

# A table that compares every operator of every backend with the reference.
table: $(READY)
	$(BIN)/python -m tests.table

# Benchmarks of our operators and their peers, in an environment of their own: docs/benchmarks.md.
BENCH := .bench-venv/bin
.bench-venv/.ready: pyproject.toml CMakeLists.txt $(SOURCES) $(MODULES)
	@echo "== Environment in .bench-venv: the peers (torchvision brings gigabytes) and fastssd, compiled from this tree"
	test -x $(BENCH)/python || $(PYTHON) -m venv .bench-venv
	$(BENCH)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BENCH)/python -m pip install --quiet --group bench
	$(BENCH)/python -m pip install --quiet --editable .
	@touch $@

# The tests that need torchvision and the other hosts: their names on our kernels, and the examples.
test-hosts: .bench-venv/.ready
	$(BENCH)/python -m pytest tests/test_compat_*.py tests/test_examples.py tests/test_weights.py

# The tests with the lowest release of every dependency that pyproject.toml declares, and with the newest.
# Each needs an environment of its own; torch has gigabytes.
test-oldest: .oldest-venv/.ready
	@echo "== Tests with the lowest declared release of every dependency"
	.oldest-venv/bin/python -m pytest -n auto --maxprocesses 4

test-newest: .newest-venv/.ready
	@echo "== Tests with the newest release of every dependency"
	.newest-venv/bin/python -m pytest -n auto --maxprocesses 4

.oldest-venv/.ready .newest-venv/.ready: pyproject.toml tests/oldest.py CMakeLists.txt $(SOURCES) $(MODULES)
	@echo "== Environment in $(@D), and fastssd, compiled from this tree"
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(@D)/bin/python tests/oldest.py > build/oldest.txt
	$(@D)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --group test --editable '.[all]' \
		$(if $(findstring oldest,$@),--constraint build/oldest.txt)
	$(@D)/bin/python -m pip list --format freeze
	@touch $@

bench: .bench-venv/.ready
	$(BENCH)/python benchmarks/report.py

# Compares two commits in alternating runs: make bench-compare A=main~1 B=main
bench-compare: .bench-venv/.ready
	$(BENCH)/python benchmarks/compare.py $(A) $(B)

# The pictures of docs/how-ssd-works.md.
images: $(READY)
	$(BIN)/python -m fastssd.explain docs/images

clean:
	rm -rf $(VENV) .bench-venv .oldest-venv .newest-venv build dist runs

# A fresh machine needs Python 3.10 to 3.13, make and a C compiler; every target below sets up the rest in .venv.

PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
COVERAGE_ARGS ?=
FUZZ_SECONDS ?= 1800
QUALITY_ARGS ?=
# e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" where the GPU build of torch is not wanted
PIP_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -c constraints.txt $(PIP_ARGS)
# The build tools live in .venv, so a rebuild after a change in C takes seconds and the pinned versions are the ones used.
EDITABLE := $(INSTALL) --no-build-isolation -e

C_SOURCES := $(shell find kernels backends tests benchmarks examples -name '*.[ch]' 2>/dev/null | sort)
BUILT_FROM := pyproject.toml constraints.txt CMakeLists.txt $(shell find kernels ! -name '*.py' -type f ! -path '*/__pycache__/*')

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz-graphs fuzz-weights lint format bench bench-kernels coverage bench-quality bench-cifar check-c check-arm dist test-wheel test-dist hooks clean
.DELETE_ON_ERROR:

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up ---------------------------------------------------------------------------------------------------------

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "coppice needs Python 3.10 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	@command -v $${CC:-cc} >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || { \
	  echo "coppice builds its kernels from C and finds no C compiler. Install gcc or clang (Debian: apt install gcc), or set CC." >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo "$(PYTHON) cannot make a virtual environment (Debian: apt install python3-venv)." >&2; rm -rf .venv; exit 1; }
	@touch $@

.venv/.build-tools: .venv/.created pyproject.toml constraints.txt
	$(INSTALL) 'scikit-build-core>=1.0' cmake ninja
	@touch $@

.venv/.demo: .venv/.build-tools $(BUILT_FROM)
	$(EDITABLE) '.[demo]'
	@touch $@

.venv/.test: .venv/.build-tools $(BUILT_FROM)
	$(EDITABLE) '.[demo,test]'
	@touch $@ .venv/.demo

.venv/.dev: .venv/.build-tools $(BUILT_FROM)
	$(EDITABLE) '.[demo,test,bench,dev]'
	@touch $@ .venv/.demo .venv/.test

setup: .venv/.dev ## everything a developer needs, in .venv; again after a change in C: rebuilds the kernels

# --- use and check --------------------------------------------------------------------------------------------------

demo: .venv/.demo ## train, compress, check and export a small model; results in out/demo
	$(BIN)/coppice demo --out out/demo

test: .venv/.test ## the whole test suite (PYTEST_ARGS="-m 'not slow'" for the quick part)
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS) tests

fuzz-graphs: .venv/.test ## 2,000 random networks and 1,600 nested ones, cut and proved; a failing one is kept in .hypothesis and tried first
	$(BIN)/python -m pytest -n $(JOBS) --hypothesis-profile nightly $(PYTEST_ARGS) tests/properties

# The corpus grows from run to run in build/fuzz-weights; what fails is left beside it, for `fuzz_weight FILE`.
fuzz-weights: .venv/.test ## FUZZ_SECONDS (1800) of libFuzzer on what loads weights, then damaged files by the thousand; needs clang
	@command -v clang >/dev/null || ls /usr/bin/clang-[0-9]* >/dev/null 2>&1 || { \
	  echo "fuzz-weights needs clang and its libFuzzer (Debian: apt install clang-14 libclang-rt-14-dev)." >&2; exit 1; }
	$(BIN)/cmake -S . -B build/fuzz-weights -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DCOPPICE_FUZZ=ON \
	  -DCMAKE_C_COMPILER=$$(command -v clang || ls /usr/bin/clang-[0-9]* | head -n 1)
	$(BIN)/cmake --build build/fuzz-weights --target fuzz_weight
	$(BIN)/python tests/kernels/fuzz_seeds.py build/fuzz-weights/seeds && mkdir -p build/fuzz-weights/corpus
	build/fuzz-weights/fuzz_weight -max_total_time=$(FUZZ_SECONDS) -max_len=512 -timeout=20 -print_final_stats=1 \
	  -artifact_prefix=build/fuzz-weights/ build/fuzz-weights/corpus build/fuzz-weights/seeds
	$(BIN)/python -m pytest --hypothesis-profile nightly $(PYTEST_ARGS) tests/kernels/test_format.py

lint: .venv/.dev ## ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(C_SOURCES),$(BIN)/clang-format --dry-run --Werror $(C_SOURCES))

format: .venv/.dev ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(C_SOURCES),$(BIN)/clang-format -i $(C_SOURCES))

bench: .venv/.dev ## kernels by layer shape and ISA (BENCH_ARGS go to coppice bench)
	$(BIN)/coppice bench $(BENCH_ARGS)

bench-kernels: .venv/.dev ## the kernels beside their goals and peers, every layer of ten models, threads, MobileNetV1 and the other layers, and their parts of docs/kernels.md (half an hour, on an idle machine)
	$(BIN)/python benchmarks/kernels.py --json out/kernels.json --docs docs/kernels.md $(BENCH_ARGS)
	$(BIN)/python benchmarks/threads.py --docs docs/kernels.md
	$(BIN)/python benchmarks/mobilenet.py --docs docs/kernels.md
	$(BIN)/python benchmarks/layers.py --docs docs/kernels.md

# timm, torchvision and Torch-Pruning stay out of .venv: torchvision's binary fits one torch only, its models are Python.
PEERS := torchvision==0.28.0 timm==1.0.31 torch-pruning==1.6.1 huggingface_hub pillow

build/peers/.installed: .venv/.test Makefile
	rm -rf build/peers && $(INSTALL) --no-deps --target build/peers $(PEERS)
	@touch $@

coverage: .venv/.test build/peers/.installed ## every model of the coverage list, and docs/coverage.md from it (an hour)
	PYTHONPATH=tests:benchmarks $(BIN)/python -m model_coverage --peers --docs docs/coverage.md $(COVERAGE_ARGS)

bench-quality: .venv/.test build/peers/.installed ## accuracy at 50, 30 and 15 % of the MACs on digits, all arms, and its part of docs/quality.md (ten minutes)
	PYTHONPATH=benchmarks $(BIN)/python -m quality digits --jobs $(JOBS) --docs docs/quality.md $(QUALITY_ARGS)

bench-cifar: .venv/.test build/peers/.installed ## the same on CIFAR-10 with ResNet8 and ResNet-20 (four hours; goes on where it was stopped)
	PYTHONPATH=benchmarks $(BIN)/python -m quality cifar --jobs $(JOBS) --docs docs/quality.md $(QUALITY_ARGS)

check-c: .venv/.build-tools ## the C library alone, under the address and undefined-behaviour sanitizers
	$(BIN)/cmake -S . -B build/check-c -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DCOPPICE_SANITIZE=ON -DCOPPICE_EMULATE=ON
	$(BIN)/cmake --build build/check-c -j $(JOBS)
	$(BIN)/ctest --test-dir build/check-c --output-on-failure --no-tests=error

# Two processors: one has NEON alone, the other all that qemu knows, half-precision arithmetic among it.
check-arm: .venv/.build-tools ## the C library for 64-bit Arm, checked under qemu (five minutes); needs a cross compiler and qemu-user
	@missing=; command -v aarch64-linux-gnu-gcc >/dev/null || missing="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"; \
	command -v qemu-aarch64 >/dev/null || missing="$$missing qemu-user"; [ -z "$$missing" ] || { \
	  echo "check-arm needs Debian's packages $$missing: apt install $$missing" >&2; exit 1; }
	$(BIN)/cmake -S . -B build/check-arm -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake
	$(BIN)/cmake --build build/check-arm -j $(JOBS)
	QEMU_CPU=cortex-a53 $(BIN)/ctest --test-dir build/check-arm --output-on-failure --no-tests=error
	QEMU_CPU=max $(BIN)/ctest --test-dir build/check-arm --output-on-failure --no-tests=error

hooks: .venv/.dev ## run the lint before every git commit
	$(BIN)/pre-commit install

# --- distribute -----------------------------------------------------------------------------------------------------

dist: .venv/.dev ## an sdist, and a wheel made from that sdist, in dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

# Both leave the repository before they run anything: what they import can only be the installed wheel.
test-wheel: dist ## install the wheel into an empty environment and look at it
	rm -rf build/venv-wheel && $(PYTHON) -m venv build/venv-wheel
	build/venv-wheel/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt $(PIP_ARGS) dist/*.whl
	cd / && $(abspath build/venv-wheel)/bin/coppice --version && $(abspath build/venv-wheel)/bin/coppice doctor

test-dist: test-wheel ## and run the demo from it
	build/venv-wheel/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt $(PIP_ARGS) "$$(echo dist/*.whl)[demo]"
	away=$$(mktemp -d) && cd $$away && $(abspath build/venv-wheel)/bin/coppice demo --out $$away/demo && rm -rf $$away

clean: ## delete everything that make made, .venv too
	rm -rf .venv build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# `make` prints this help. Everything runs in .venv, which `make install` (and every target that needs it) builds.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# PyTorch is installed first and alone: the CPU build is enough, and a plain `torch` would bring gigabytes of CUDA packages.
TORCH ?= torch==2.13.0
EXTRAS := calibrate,export,cpu,rtx,pipeline,report,dev
# Files of tests side by side, each on one thread: most models are too small for more. 1.5 GB of memory a job.
JOBS ?= 2
PRESET ?= $(if $(filter aarch64,$(shell uname -m)),jetson,x86_64)
# A worker that dies is not replaced: the next one would begin its file again, and again.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist loadfile --max-worker-restart 0

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check lint plugins cpp bench study clean

help: ## this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## build .venv with everything that the other targets need

$(STAMP): pyproject.toml requirements.lock Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -c requirements.lock -e '.[$(EXTRAS)]'
	touch $@

demo: $(STAMP) ## compile the bundled model and compare the clips: demo-out/report/index.html
	$(BIN)/vditc demo -o demo-out --force

test: $(STAMP) ## all tests but the slow ones, without a GPU
	$(PYTEST) -m "not slow"

test-all: $(STAMP) ## every test, the slow ones too
	$(PYTEST)

lint: $(STAMP) ## ruff, mypy, import rules, file lengths
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/check_lengths.py

check: lint ## lint, and the tests that compile no whole model
	$(PYTEST) -m "not slow and not demo"

plugins: $(STAMP) ## build libvditc_plugins.so, the kernels for GPUs, where compile finds it (ARCH=80,90a; default: all of this platform)
	{ command -v nvcc || test -n "$(CUDA_HOME)"; } >/dev/null && command -v cmake >/dev/null && command -v ninja >/dev/null || \
		$(BIN)/pip install -q -c requirements.lock -e '.[plugins]'
	$(BIN)/vditc plugins build --jobs $(JOBS) $(if $(ARCH),--arch $(ARCH))

cpp: $(STAMP) ## build libvditc, the C and C++ library, test it and install it below build/cpp (PRESET=x86_64, jetson, aarch64)
	cd runtimes/cpp && PATH="$(CURDIR)/$(BIN):$$PATH" cmake --preset $(PRESET) && cmake --build --preset $(PRESET) --parallel $(JOBS) && \
		ctest --preset $(PRESET) && cmake --install $(CURDIR)/build/cpp/$(PRESET)

bench: $(STAMP) ## measure the main job; figures go to docs/measurements/main_job.json
	$(BIN)/python benchmarks/main_job.py --out docs/measurements/main_job.json

study: $(STAMP) ## the quality study (hours; goes on where it was) and the tables of docs/quality.md
	$(BIN)/python benchmarks/quality/run.py
	$(BIN)/python benchmarks/quality/table.py

clean: ## remove the virtual environment and all outputs
	rm -rf $(VENV) demo-out runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

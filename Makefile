# The front door. Every target does its own set-up in .venv; stamp files make the second call fast.
# On a fresh machine it needs Python 3.10+ (with venv and headers) and a C++17 compiler, and says so if one is missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
# The version that continuous integration runs; any torch>=2.10 works: make test TORCH='torch>=2.10'. Left to make, a CPU
# build is preferred on machines without an NVIDIA GPU; what you name is taken as it is.
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
# Of the demo, all optional: STEPS (500), SIZE of the canvas (1280), DATA (a radiograph, folder or manifest of yours).
DEMO_ARGS ?=
# Processes that run tests side by side, and the threads of each: together one a core.
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
PYTEST_WORKERS ?= $(shell echo $$(($(CORES) < 8 ? $(CORES) : 8)))
THREADS = $(shell w=$(PYTEST_WORKERS); echo $$(($(CORES) / (w < 1 ? 1 : w > $(CORES) ? $(CORES) : w))))

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# No build isolation: the tools below are in .venv already, and the build keeps its objects between calls.
BUILD_TOOLS := "scikit-build-core>=0.11" "pybind11>=2.12" "cmake>=3.20" "ninja>=1.10"
INSTALL := $(PIP) install --no-build-isolation --config-settings=build-dir=build/venv
DEV_TOOLS = $(shell sed -n 's/^dev = \[\(.*\)\]/\1/p' pyproject.toml | sed 's|", "|" "|g')

# It tells at every start of another tool of its authors'.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

PACKAGE := pyproject.toml CMakeLists.txt LICENSE $(wildcard cmake/* csrc/*.* csrc/*/*) \
	$(shell find hdxray_fast -type f -not -name '*.so' -not -name '*.pyc' 2>/dev/null)
PYTHON_CODE := hdxray_fast benchmarks examples tools  # what runs for users of the oldest Python that is promised
CPP := $(wildcard csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)

# Files that share what is slow to set up stay together in the slow tests; the fast ones go to whoever is free.
PYTEST = OMP_NUM_THREADS=$(THREADS) $(BIN)/pytest -n $(PYTEST_WORKERS)

.PHONY: help demo test test-slow test-all integrations lint docs format bench sanitize gpu-check gpu-tune wheel constraints clean distclean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: $(VENV)/.demo  ## set up, then train on a real radiograph and show the reconstruction (demo/panel.png); STEPS=20 SIZE=640 is quick
	$(BIN)/hdxray-fast demo --out demo $(if $(STEPS),--steps "$(STEPS)") $(if $(SIZE),--img-size "$(SIZE)") \
		$(if $(DATA),--data "$(DATA)") $(DEMO_ARGS)

test: $(VENV)/.test  ## set up, then run the tests that check every feature once: minutes
	$(PYTEST) --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.test  ## the tests that test leaves out: builds, whole runs, several processes, every kernel
	$(PYTEST) --dist loadfile -m slow -v --durations=20 $(PYTEST_ARGS)

test-all: $(VENV)/.test  ## all tests, each named as it begins
	$(PYTEST) --dist loadfile -v --durations=40 $(PYTEST_ARGS)

integrations: $(VENV)/.integrations  ## install some ten tools that use the encoder, and try it in each of them
	$(PYTEST) --dist worksteal -rs tests/integrations $(PYTEST_ARGS)

lint: $(VENV)/.lint  ## ruff, the oldest Python, clang-format and the documentation's links, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vermin --quiet --no-tips --violations --target=3.10- --exclude long $(PYTHON_CODE)
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(MKDOCS) build --strict --quiet

docs: $(VENV)/.lint  ## the documentation as a site: build/site/index.html
	$(MKDOCS) build --strict --quiet
	@echo "build/site/index.html"

format: $(VENV)/.lint  ## the same tools, changing files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/.bench  ## time ours against the strongest rivals; results to benchmarks/results, tables to the documents
	$(BIN)/pytest benchmarks -q -s --benchmark-disable-gc --benchmark-columns=min,median,iqr,rounds $(PYTEST_ARGS)
	$(BIN)/python benchmarks/harness/table.py README.md docs/benchmarks.md
	$(BIN)/python benchmarks/experiments/tables.py --write

# On a machine with a GPU whose Python has PyTorch and the build tools; nothing is downloaded, and .venv is not used.
gpu-check:  ## on a machine with a GPU: build with CUDA, test, look for bad accesses, measure; 8 minutes (TUNE=1: 12)
	$(PYTHON) tools/gpu_check.py $(if $(filter-out 0,$(TUNE)),--tune) $(GPU_ARGS)

gpu-tune:  ## on a machine with a GPU: choose the attention kernels' configurations, then measure the attention
	$(PYTHON) tools/gpu_check.py --tune --only build tune attention backends table $(GPU_ARGS)

wheel: $(VENV)/.created  ## sdist and wheel into dist/
	$(PIP) install --quiet build $(BUILD_TOOLS)
	$(BIN)/python -m build --no-isolation --outdir dist .

# The core with AddressSanitizer and UndefinedBehaviorSanitizer, under the tests that call it.
SANITIZE_TESTS := tests/ops/test_native.py tests/ops/test_plan_masks.py tests/ops/test_mask_plan.py tests/ops/test_mask_plan_emulation.py \
	tests/ops/test_gather.py tests/ops/test_loss.py tests/ops/test_pixels_emulation.py tests/ops/test_view.py
sanitize: $(VENV)/.test  ## the core's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DHDXRAY_SANITIZE=ON -DHDXRAY_CUDA=OFF -DCMAKE_BUILD_TYPE=Debug \
		-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(BIN)/cmake --build build/sanitize
	rm -rf build/sanitize/site && mkdir -p build/sanitize/site
	cp -r hdxray_fast build/sanitize/site/ && rm -f build/sanitize/site/hdxray_fast/_core*
	$(BIN)/cmake --install build/sanitize --prefix build/sanitize/site
	@asan=$$($${CXX:-c++} -print-file-name=libasan.so); stdcpp=$$($${CXX:-c++} -print-file-name=libstdc++.so); \
	[[ -e "$$asan" ]] || { echo "make sanitize needs the sanitizer library of $${CXX:-c++} (libasan.so)" >&2; exit 1; }; \
	LD_PRELOAD="$$asan $$stdcpp" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		PYTHONPATH=$(CURDIR)/build/sanitize/site HDXRAY_EXPECT_SANITIZED=1 \
		$(BIN)/pytest -p no:cacheprovider -q -m "not slow" $(SANITIZE_TESTS) $(PYTEST_ARGS)

# uv is looked for on the PATH. One file for every Python and platform; registries are not named in it.
EXTRAS := demo embed prepare classify excel hf timm export report-scores text streaming
constraints:  ## newest versions that fit together, with hashes: constraints.txt
	uv pip compile pyproject.toml --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --upgrade -q $(EXTRAS:%=--extra %) -o constraints.txt

clean:  ## remove what was built; keeps .venv
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .benchmarks $(VENV)/.demo $(VENV)/.test $(VENV)/.bench $(VENV)/.integrations
	find hdxray_fast tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## remove .venv as well
	rm -rf $(VENV)

# --- set-up --------------------------------------------------------------------------------------------------------------
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) was not found; install Python 3.10 or later," \
		"or name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $(PYTHON) is" \
		"$$($(PYTHON) -V 2>&1), needed is 3.10 or later; name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) has no venv module;" \
		"on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Compiler and headers are looked for before anything large is downloaded.
$(VENV)/.torch: $(VENV)/.created
	@for c in "$${CXX:-c++}" g++ clang++; do command -v $$c >/dev/null && exit 0; done; \
		echo "make: no C++ compiler was found (looked for \$$CXX, c++, g++, clang++);" \
		"on Debian and Ubuntu: apt install g++" >&2; exit 1
	@$(BIN)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		|| { echo "make: the C headers of $$($(BIN)/python -V) are missing (Python.h);" \
		"on Debian and Ubuntu: apt install python3-dev" >&2; exit 1; }
	$(PIP) install --quiet $(BUILD_TOOLS)
	@tools/install_torch.sh $(BIN)/python "$(TORCH)" $(if $(filter-out file,$(origin TORCH)),asked)
	@touch $@

# What an extra needs is installed when pyproject.toml changes, beside the PyTorch that is there (torch.txt says which);
# the package itself whenever any of its files does.
SIZE_demo := 150 MB
SIZE_test := 800 MB
SIZE_bench := $(SIZE_test)
SIZE_integrations := 1 GB
$(VENV)/.deps-%: $(VENV)/.torch pyproject.toml
	@echo "The packages of the extra \"$*\": about $(SIZE_$*) to download; then the C++ core is compiled (minutes)"
	$(INSTALL) -c $(VENV)/torch.txt ".[$*]"
	@touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.bench $(VENV)/.integrations: $(VENV)/.%: $(VENV)/.deps-% $(PACKAGE)
	$(INSTALL) --quiet --no-deps --force-reinstall .
	@# for `python -m ...` run from here; by a rename, since a process may have the old one loaded
	@for core in $(VENV)/lib/python3*/site-packages/hdxray_fast/_core*.so; do \
		cp -f "$$core" hdxray_fast/.core.new && mv -f hdxray_fast/.core.new "hdxray_fast/$${core##*/}"; done
	@touch $@

$(VENV)/.lint: $(VENV)/.created pyproject.toml
	$(PIP) install --quiet $(DEV_TOOLS)
	@touch $@

.PRECIOUS: $(VENV)/.deps-demo $(VENV)/.deps-test $(VENV)/.deps-bench $(VENV)/.deps-integrations

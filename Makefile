# make demo     a trained face detector on a photograph, ReLU / Leaky ReLU / PReLU compared, timings
# make test     C++ tests, then Python tests; PYTEST_ARGS="-k layouts" for a few
# make build    the package in place, for the CPU and the GPU of this machine
# make docs     the manual, build/docs/index.html
# make bench    layer by layer against PyTorch and torch.compile; BENCH_ARGS="--help" tells more
# make gpu      tests and measures on the GPU of this machine, in at most 10 minutes; GPU_ARGS="--help" tells more
# make wheel    dist/: source distribution, the wheel built from it for all GPUs, a bill of materials inside
# make format   clang-format, ruff
#
# Checkers, other benchmarks, long tests: build_tools/targets.mk. Everything that a target needs is set up by it: a
# virtual environment with the pinned tools, the build.
#   TORCH_VERSION=2.11.0  another torch, in an environment of its own
#   PYTHON=python3.12     the interpreter of a new environment
#   VENV=DIR              an existing environment; nothing is installed if it has what is needed
#   FORCE_CPU=1, FORCE_CUDA=1, TORCH_CUDA_ARCH_LIST, MAX_JOBS   see docs/reference/environment-variables.md

TORCH_VERSION ?= 2.15.0
PYTHON ?= python3
VENV ?= .venv/torch-$(TORCH_VERSION)
BUILD := build/$(notdir $(abspath $(VENV)))
PY := $(abspath $(VENV))/bin/python
PYTEST_ARGS ?=
BENCH_ARGS ?=
GPU_ARGS ?=

export PYTHONPATH := $(CURDIR)
export TORCH_EXT_BUILD_DIR := $(abspath $(BUILD))
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: demo test build docs bench gpu wheel format

demo: build $(VENV)/.demo-ready
	$(PY) examples/python/demo.py

test: ctest pytest

# The library alone. The test programs are configured too, so that `make test` after it builds what is missing and no more.
build: system environment
	TORCH_EXT_CMAKE_ARGS="-DTORCH_EXT_TESTS=ON $(TORCH_EXT_CMAKE_ARGS)" $(PY) setup.py -q build_ext --inplace

# Warnings are errors; all of them are shown.
docs: build $(VENV)/.docs-ready
	$(PY) -m sphinx -W --keep-going -n -q -d build/docs/.doctrees docs build/docs

bench: build $(VENV)/.bench-ready
	$(PY) benchmarks/prelu.py $(BENCH_ARGS)

# Builds with what is installed, without network: uses $(VENV) if it exists or was given, else $(PYTHON).
GPU_PY := $(if $(or $(filter-out file,$(origin VENV)),$(wildcard $(PY))),$(PY),$(PYTHON))
gpu:
	$(GPU_PY) tests/gpu/session.py $(GPU_ARGS)

# Built by tools that are pinned by hash, in a separate environment; of $(VENV) only torch is used.
DIST ?= dist
WHEEL_TOOLS := $(BUILD)-wheel-tools
FIND_TORCH := $(PY) -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])'

wheel: environment $(WHEEL_TOOLS)/.ready
	rm -rf $(DIST)
	root="$$($(FIND_TORCH))" && export TORCH_EXT_TORCH_ROOT="$$root" \
	  SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 1700000000) \
	  && env -u TORCH_EXT_BUILD_DIR -u PYTHONPATH $(WHEEL_TOOLS)/bin/python -m build --no-isolation --outdir $(DIST) . \
	  && $(WHEEL_TOOLS)/bin/python build_tools/add_sbom.py $(DIST)/*.whl

format: environment
	$(VENV)/bin/clang-format -i $(CPP_FILES)
	$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

include build_tools/targets.mk

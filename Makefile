# make demo | test | build | format | check-format | check-types | clean
# make wheel           dist/: source distribution, the wheel built from it, a bill of materials inside
# make check-package   both, and every way to install and use them, also from C++ (CPU; with FORCE_CUDA=1: CUDA)
# make bench           PReLU layer by layer against PyTorch and torch.compile; BENCH_ARGS="--help" tells more
# make bench-kernels   the CPU kernels alone against a tuned copy
# make bench-models    training steps and inference of whole models
# make bench-compile   the same under torch.compile
# make bench-import    what `import torch_ext` adds to `import torch`
# make test-models     swaps in models of other packages, with their trained weights
# make gpu             tests and measures on the GPU of this machine, in at most 10 minutes; GPU_ARGS="--help" tells more
# make gpu-status      whether the CUDA sources of this tree have run on a GPU
# make check-static    clang as a second compiler, for CUDA too, clang-tidy, cppcheck, see tests/static.mk
# make asan | tsan | leaks | valgrind | fuzz   checkers that observe running programs, see tests/sanitizers.mk
# make coverage | mutants | repeat             tests of the tests, see tests/full.mk
# make full            all of these at full length, which takes hours
# make docs            the manual, build/docs/index.html
#
# Each target sets up what it needs: a virtual environment with the pinned tools, and the build.
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

.PHONY: demo docs test pytest ctest build wheel check-package bench bench-compile bench-import bench-kernels bench-models gpu gpu-status test-models format check-format check-types environment system clean

test: build ctest pytest

demo: build $(VENV)/.demo-ready
	$(PY) examples/python/demo.py

bench: build $(VENV)/.bench-ready
	$(PY) benchmarks/prelu.py $(BENCH_ARGS)

bench-models: build $(VENV)/.bench-models-ready
	$(PY) benchmarks/models.py $(BENCH_ARGS)

bench-compile: build $(VENV)/.bench-models-ready
	$(PY) -W ignore benchmarks/compile.py $(BENCH_ARGS)

bench-import: build
	$(PY) benchmarks/imports.py $(BENCH_ARGS)

test-models: build $(VENV)/.bench-models-ready
	OMP_WAIT_POLICY=passive $(PY) -m pytest -rs tests/test_real_models.py

# Warnings are errors; all of them are shown.
docs: build $(VENV)/.docs-ready
	$(PY) -m sphinx -W --keep-going -n -q -d build/docs/.doctrees docs build/docs

bench-kernels: system environment
	@test -e /usr/include/benchmark/benchmark.h || $(call debian_packages,libbenchmark-dev)
	cmake -S . -B $(BUILD)-kernels -G Ninja -DTORCH_EXT_BENCHMARKS=ON -DTORCH_EXT_CUDA=OFF \
	  -DCMAKE_PREFIX_PATH="$$($(PY) -c 'import torch; print(torch.__path__[0])')"
	cmake --build $(BUILD)-kernels --target kernels_benchmark
	$(BUILD)-kernels/benchmarks/cpp/kernels_benchmark $(BENCH_ARGS)

# Builds with what is installed, without network: uses $(VENV) if it exists or was given, else $(PYTHON).
GPU_PY := $(if $(or $(filter-out file,$(origin VENV)),$(wildcard $(PY))),$(PY),$(PYTHON))

gpu:
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests $(GPU_PY) -m gpu $(GPU_ARGS)

gpu-status:
	@PYTHONPATH=$(CURDIR)/tests $(GPU_PY) -m gpu.status $(GPU_ARGS)

# Passive: waiting threads must not take the cores from those that compile or compute. Two processes, each with whole
# files, so that a file prepares its fixtures once. Not reordered: files of few tests, which would come last, take longest.
PYTEST := OMP_WAIT_POLICY=passive $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
pytest: build
	$(PYTEST) $(PYTEST_ARGS)

ctest: build
	ctest --test-dir $(BUILD) --output-on-failure --no-tests=error -j2

build: system environment
	TORCH_EXT_CMAKE_ARGS="-DTORCH_EXT_TESTS=ON $(TORCH_EXT_CMAKE_ARGS)" $(PY) setup.py -q build_ext --inplace

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

$(WHEEL_TOOLS)/.ready: build_tools/requirements.txt $(VENV)/.ready
	$(PY) -m venv --clear $(WHEEL_TOOLS)
	$(WHEEL_TOOLS)/bin/python -m pip -q install --require-hashes -r $<
	touch $@

check-package: environment
	FORCE_CPU=$(if $(filter 1,$(FORCE_CUDA)),0,1) $(MAKE) wheel DIST=$(BUILD)-dist
	FORCE_CPU=$(if $(filter 1,$(FORCE_CUDA)),0,1) TORCH_EXT_DIST=$(abspath $(BUILD)-dist) \
	  $(PYTEST) --confcutdir=tests/wheels --basetemp=$(BUILD)-packages tests/wheels $(PYTEST_ARGS)

# --- what the targets above rely on -------------------------------------------------------------------

# Installs Debian's packages $(1) if this is Debian and the user is root, else names them and fails.
debian_packages = { command -v apt-get >/dev/null && test "$$(id -u)" = 0 \
  && apt-get update -qq && apt-get install -y -qq --no-install-recommends $(1); } \
  || { echo "torch_ext: this needs $(1) (names of Debian's packages)" >&2; false; }

# If an environment has a torch, it is kept; what is missing is added.
INSTALLED_TORCH := $(PY) -c 'import importlib.metadata as m; print(m.version("torch").partition("+")[0])' 2>/dev/null

environment: $(VENV)/.ready

$(VENV)/.ready: tests/requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	{ $(PY) -c "import torch, pybind11, setuptools, pytest, numpy, expecttest, hypothesis, onnxscript, matplotlib, xdist" && command -v cmake ninja; } >/dev/null 2>&1 \
	  || $(PY) -m pip install torch==$$($(INSTALLED_TORCH) || echo $(TORCH_VERSION)) -r tests/requirements.txt
	touch $@

$(VENV)/.bench-ready: benchmarks/requirements.txt $(VENV)/.ready
	$(PY) -c "import rich, matplotlib" || $(PY) -m pip install -r benchmarks/requirements.txt
	touch $@

$(VENV)/.bench-models-ready: benchmarks/models-requirements.txt $(VENV)/.ready
	$(PY) -m pip install -r benchmarks/models-requirements.txt \
	  "torch==$$($(INSTALLED_TORCH))"
	$(PY) -m pip install --no-deps facenet-pytorch==2.6.0
	touch $@

$(VENV)/.docs-ready: docs/requirements.txt $(VENV)/.ready
	$(PY) -c "import sphinx, furo, myst_parser, sphinx_copybutton" 2>/dev/null \
	  || $(PY) -m pip install -r docs/requirements.txt "torch==$$($(INSTALLED_TORCH))"
	touch $@

# facenet-pytorch pins old versions of packages that we have newer; hence it is installed last and without dependencies.
$(VENV)/.demo-ready: examples/python/requirements.txt $(VENV)/.ready
	$(PY) -c "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ('facenet_pytorch', 'sklearn', 'skimage', 'matplotlib', 'rich'))))" || { \
	  $(PY) -m pip install -r examples/python/requirements.txt \
	    "torch==$$($(INSTALLED_TORCH))" \
	  && $(PY) -m pip install --no-deps facenet-pytorch==2.6.0; }
	touch $@

# A C++20 compiler and GoogleTest. If they are elsewhere, CMake finds them.
system:
	@{ command -v c++ && test -e /usr/include/gtest/gtest.h; } >/dev/null || $(call debian_packages,g++ libgtest-dev) || true

CPP_FILES = $(shell git ls-files -co --exclude-standard '*.cpp' '*.h' '*.cu' '*.cuh')

format: environment
	$(VENV)/bin/clang-format -i $(CPP_FILES)
	$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

check-format: environment
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_FILES)
	$(VENV)/bin/ruff format --check . && $(VENV)/bin/ruff check .

check-types: environment
	$(VENV)/bin/mypy torch_ext

clean:
	rm -rf build dist torch_ext/lib torch_ext/include torch_ext/_build.json torch_ext/_C*.so

include tests/static.mk
include tests/sanitizers.mk
include tests/full.mk

# Further targets; the Makefile, which has the usual ones, includes this file.
#   make ctest | pytest    the C++ tests; the Python tests
#   make check-package     wheel and sdist, and every way to install and use them, from C++ too (FORCE_CUDA=1: CUDA)
#   make check-architectures   a build for all GPUs that the wheel is for, and what nvcc made of the kernels for each
#   make check-format | check-types
#   make check-static      clang as a second compiler, for CUDA too, clang-tidy, cppcheck: tests/static.mk
#   make asan | tsan | leaks | valgrind | fuzz   checkers that watch the programs run: tests/sanitizers.mk
#   make coverage | mutants | repeat             are the tests any good? tests/full.mk
#   make full              all of these in their long forms: hours
#   make test-models       swaps in models of other packages, with their trained weights
#   make gpu-prepare       before `make gpu` on another machine: builds for its torch and GPU, without one here
#   make gpu-status        have the CUDA sources of this tree run on a GPU?
#   make bench-kernels     the CPU kernels alone against a tuned copy
#   make bench-models      training steps and inference of whole models
#   make bench-compile     the same under torch.compile, PyTorch's PReLU against ours
#   make bench-import      what `import torch_ext` adds to `import torch`
#   make clean

.PHONY: ctest pytest build-tests test-models gpu-prepare gpu-status check-package all-gpus check-architectures check-format \
  check-types bench-compile bench-import bench-kernels bench-models environment system clean

# --- tests ----------------------------------------------------------------------------------------------------

build-tests: build
	cmake --build $(BUILD) $(if $(MAX_JOBS),--parallel $(MAX_JOBS)) --target tests/cpp/all

ctest: build-tests
	ctest --test-dir $(BUILD) --output-on-failure --no-tests=error -j2

# Passive: threads that wait must not take the cores from those that compile or compute. Two processes, each with whole
# files: what a file prepares is prepared once. Not reordered: files of few tests, which would come last, take longest.
# (Some tests run programs that the build of the C++ tests makes.)
PYTEST := OMP_WAIT_POLICY=passive $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
pytest: build-tests
	$(PYTEST) $(PYTEST_ARGS)

test-models: build $(VENV)/.bench-models-ready
	OMP_WAIT_POLICY=passive $(PY) -m pytest -rs tests/test_real_models.py

# What is then to travel with the sources: torch_ext/lib, torch_ext/include, torch_ext/_build.json, build/gpu/wheels.
GPU_ARCH ?= 9.0
gpu-prepare: system environment
	$(PY) -m pip download -q --no-deps -d build/gpu/wheels $$(grep '^expecttest=' tests/requirements.txt)
	TORCH_CUDA_ARCH_LIST=$(GPU_ARCH) $(PY) tests/gpu/build.py $(BUILD)-gpu

gpu-status:
	@$(GPU_PY) tests/gpu/record.py $(GPU_ARGS)

check-package: environment
	FORCE_CPU=$(if $(filter 1,$(FORCE_CUDA)),0,1) $(MAKE) wheel DIST=$(BUILD)-dist
	FORCE_CPU=$(if $(filter 1,$(FORCE_CUDA)),0,1) TORCH_EXT_DIST=$(abspath $(BUILD)-dist) \
	  $(PYTEST) --confcutdir=tests/wheels --basetemp=$(BUILD)-packages tests/wheels $(PYTEST_ARGS)

# Builds in place are for one GPU; this one is for all that the wheel is for. The next `make build` takes that back.
ALL_GPUS := $(shell sed -n 's/^ *set(default "\(.*\)")/\1/p' cmake/torch_ext-cuda.cmake)
all-gpus:
	@echo "$(ALL_GPUS)"
check-architectures:
	FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$(ALL_GPUS)" $(MAKE) build
	$(PY) -m pytest tests/test_cuda_machine_code.py

check-format: environment
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_FILES)
	$(VENV)/bin/ruff format --check . && $(VENV)/bin/ruff check .

check-types: environment
	$(VENV)/bin/mypy torch_ext

# --- benchmarks -----------------------------------------------------------------------------------------------

bench-models: build $(VENV)/.bench-models-ready
	$(PY) benchmarks/models.py $(BENCH_ARGS)

bench-compile: build $(VENV)/.bench-models-ready
	$(PY) -W ignore benchmarks/compile.py $(BENCH_ARGS)

bench-import: build
	$(PY) benchmarks/imports.py $(BENCH_ARGS)

bench-kernels: system environment
	@test -e /usr/include/benchmark/benchmark.h || $(call debian_packages,libbenchmark-dev)
	cmake -S . -B $(BUILD)-kernels -G Ninja -DTORCH_EXT_BENCHMARKS=ON -DTORCH_EXT_CUDA=OFF $(TORCH_EXT_CMAKE_ARGS) \
	  -DCMAKE_PREFIX_PATH="$$($(PY) -c 'import torch; print(torch.__path__[0])')"
	cmake --build $(BUILD)-kernels --target kernels_benchmark
	$(BUILD)-kernels/benchmarks/cpp/kernels_benchmark $(BENCH_ARGS)

# --- what the targets rely on -----------------------------------------------------------------------------------

$(WHEEL_TOOLS)/.ready: build_tools/requirements.txt $(VENV)/.ready
	$(PY) -m venv --clear $(WHEEL_TOOLS)
	$(WHEEL_TOOLS)/bin/python -m pip -q install --require-hashes -r $<
	touch $@

# Debian's packages $(1): installed if this is Debian and one has the rights to, else asked for. Fails if they are not there.
debian_packages = { command -v apt-get >/dev/null && test "$$(id -u)" = 0 \
  && apt-get update -qq && apt-get install -y -qq --no-install-recommends $(1); } \
  || { echo "torch_ext: this needs $(1) (names of Debian's packages)" >&2; false; }

# The torch of an environment that has one stays: what is missing is added to it.
INSTALLED_TORCH := $(PY) -c 'import importlib.metadata as m; print(m.version("torch").partition("+")[0])' 2>/dev/null

environment: $(VENV)/.ready

$(VENV)/.ready: tests/requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	{ $(PY) -c "import torch, pybind11, setuptools, pytest, numpy, expecttest, hypothesis, onnxscript, matplotlib, xdist, sybil" && command -v cmake ninja; } >/dev/null 2>&1 \
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

# facenet-pytorch pins old versions of what we have newer, hence last and alone.
$(VENV)/.demo-ready: examples/python/requirements.txt $(VENV)/.ready
	$(PY) -c "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ('facenet_pytorch', 'sklearn', 'skimage', 'matplotlib', 'rich'))))" || { \
	  $(PY) -m pip install -r examples/python/requirements.txt \
	    "torch==$$($(INSTALLED_TORCH))" \
	  && $(PY) -m pip install --no-deps facenet-pytorch==2.6.0; }
	touch $@

# A C++20 compiler and GoogleTest. Both may be elsewhere: CMake looks for them.
system:
	@{ command -v c++ && test -e /usr/include/gtest/gtest.h; } >/dev/null || $(call debian_packages,g++ libgtest-dev) || true

CPP_FILES = $(shell git ls-files -co --exclude-standard '*.cpp' '*.h' '*.cu' '*.cuh')

clean:
	rm -rf build dist torch_ext/lib torch_ext/include torch_ext/_build.json torch_ext/_C*.so

include tests/static.mk
include tests/sanitizers.mk
include tests/full.mk

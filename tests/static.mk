# Static checks: what can be said about the sources without running them. Included by build_tools/targets.mk.
#   make check-static   everything below
#   make check-cuda     a second CUDA front end: warns of what nvcc accepts (int n = int64_t, for one)
#   make check-tidy     clang-tidy on csrc/, as .clang-tidy says, with all warnings of the build, as errors
#   make check-clang    the CPU kernels compiled by clang, and their tests
#   make check-cppcheck
# Each first shows that it finds a planted fault. Rules on text, machine code and symbols are Python tests:
# test_source_rules.py, test_layering.py, test_machine_code.py, test_cuda_machine_code.py, test_native_library.py.

CLANG_VERSION := 22
CLANGXX := clang++-$(CLANG_VERSION)
STATIC := $(BUILD)-static
TORCH_ROOT = $(shell $(PY) -c 'from importlib.util import find_spec as f; print(f("torch").submodule_search_locations[0])')
CUDA_HOME ?= $(or $(patsubst %/bin/nvcc,%,$(shell command -v nvcc)),/usr/local/cuda)

.PHONY: check-static check-cuda check-tidy check-clang check-cppcheck static-tools

check-static: check-cuda check-cppcheck check-tidy check-clang

# clang knows CUDA up to 12.9 and takes 13 for that, and cooperative_groups knows nvcc only, unless told so.
# --cuda-device-only parses the host's half of the file as well.
CUDA_FRONT_END = $(CLANGXX) -fsyntax-only -x cuda --cuda-device-only --cuda-gpu-arch=sm_90 --cuda-path=$(CUDA_HOME) \
  -nocudalib -Xclang -target-sdk-version=12.9 -Wno-unknown-cuda-version -D_CG_CLUSTER_INTRINSICS_AVAILABLE \
  -std=c++20 -Icsrc -Icsrc/include -isystem $(TORCH_ROOT)/include \
  -isystem $(TORCH_ROOT)/include/torch/csrc/api/include -isystem $(CUDA_HOME)/include/cccl \
  -Werror -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wshorten-64-to-32 -Wsign-compare \
  -Wold-style-cast -Wcast-align -Wnon-virtual-dtor -Woverloaded-virtual -Wextra-semi

check-cuda: environment static-tools
	@test -e $(CUDA_HOME)/include/cuda_runtime.h || { echo "torch_ext: no CUDA toolkit at CUDA_HOME=$(CUDA_HOME)" >&2; exit 1; }
	echo '__global__ void f(long long n, int* x) { int j = n; *x = j; }' \
	  | $(MUST_FAIL) "Wshorten-64-to-32" $(CUDA_FRONT_END) -
	$(CUDA_FRONT_END) $(wildcard csrc/kernels/cuda/*.cu csrc/ops/*_cuda.cpp)

$(STATIC)/build.ninja: CMakeLists.txt tests/cpp/CMakeLists.txt $(wildcard cmake/*.cmake) | environment system static-tools
	cmake -S . -B $(STATIC) -G Ninja -DCMAKE_CXX_COMPILER=$(CLANGXX) -DTORCH_EXT_CUDA=OFF -DTORCH_EXT_TESTS=ON \
	  -DTORCH_EXT_PYTHON=ON -DTORCH_EXT_WERROR=ON -DTORCH_EXT_TORCH_ROOT=$(TORCH_ROOT) \
	  -DPython_EXECUTABLE=$(PY) -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir)

check-tidy: $(STATIC)/build.ninja
	@mkdir -p $(STATIC)/csrc
	@printf 'int f(long n) { int j = n; return j; }\n' > $(STATIC)/csrc/planted.cpp
	$(MUST_FAIL) "narrowing conversion" clang-tidy-$(CLANG_VERSION) --config-file=.clang-tidy $(STATIC)/csrc/planted.cpp --
	run-clang-tidy-$(CLANG_VERSION) -quiet -hide-progress -j 2 -p $(STATIC) -config-file=.clang-tidy '^$(CURDIR)/csrc/|/Unity/'

# (The whole library is not linked: clang would bring its own OpenMP runtime beside torch's.)
check-clang: $(STATIC)/build.ninja
	cmake --build $(STATIC) --target cpu_engine_test
	$(STATIC)/tests/cpp/cpu_engine_test --gtest_brief=1

# Without PyTorch's headers, so its macros are given. (An operation without its sums or outputs hides their number on purpose.)
CPPCHECK = cppcheck --quiet --std=c++20 --language=c++ --enable=warning,performance,portability --error-exitcode=1 \
  --suppress=missingInclude --suppress=duplInheritedMember:csrc/kernels/operation.h \
  --suppress=duplInheritedMember:csrc/kernels/cpu/engine.h -I csrc -I csrc/include -D__x86_64__ \
  -DCPU_CAPABILITY=AVX2 -DCPU_CAPABILITY_AVX2 '-DTORCH_LIBRARY(ns,m)=void library(Library& m)' \
  '-DTORCH_LIBRARY_IMPL(ns,key,m)=void library(Library& m)' '-DTORCH_LIBRARY_FRAGMENT(ns,m)=void library(Library& m)' \
  '-DPYBIND11_MODULE(name,m,option)=void module(Module& m)'

check-cppcheck: static-tools
	@mkdir -p $(STATIC)/planted && printf 'int f() { int a[4] = {}; return a[4]; }\n' > $(STATIC)/planted/planted.cpp
	$(MUST_FAIL) "arrayIndexOutOfBounds" $(CPPCHECK) $(STATIC)/planted
	$(CPPCHECK) csrc

# (The sanitizers' builds, sanitizers.mk, use the same clang.)
STATIC_TOOLS := $(CLANGXX) clang-tidy-$(CLANG_VERSION) run-clang-tidy-$(CLANG_VERSION) llvm-symbolizer-$(CLANG_VERSION) cppcheck
STATIC_PACKAGES := cppcheck $(foreach package,clang clang-tidy llvm,$(package)-$(CLANG_VERSION)) \
  libomp-$(CLANG_VERSION)-dev libclang-rt-$(CLANG_VERSION)-dev
STATIC_FILES := $(addprefix /usr/lib/llvm-$(CLANG_VERSION)/lib/clang/$(CLANG_VERSION)/,include/omp.h lib/linux/libclang_rt.asan-x86_64.so)

static-tools:
	@(for tool in $(STATIC_TOOLS); do command -v $$tool || exit 1; done && ls $(STATIC_FILES)) >/dev/null 2>&1 \
	  || $(call debian_packages,$(STATIC_PACKAGES))

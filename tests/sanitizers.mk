# Checkers that watch the programs run. Each has first to find a fault that is planted for it. Included by build_tools/targets.mk.
#   make asan      address and undefined-behaviour sanitizers: kernels in C++, operators from Python
#   make tsan      thread sanitizer: threads on the operators, tasks of one call at once
#   make leaks     leak sanitizer; growth of memory over calls from Python
#   make valgrind  reads of memory that nobody has written
#   make fuzz      libFuzzer against an oracle, for FUZZ_SECONDS
# Each is a subset that takes a minute or two once it is built; FULL=1 is all of it.
# Every tool that is missing is installed, on Debian and with the rights to.

FULL ?=
ASAN := $(BUILD)-asan
TSAN := $(BUILD)-tsan
MUST_FAIL := tests/canaries/must_fail.sh

ASAN_PYTEST := $(addprefix tests/test_,battery_state.py battery_errors.py battery_autograd.py battery_layouts.py)
# Of all tests, those are left out that look at the library as it is shipped, that run compilers (which do not bear
# the preloaded sanitizer), and that count or protect memory, which the sanitizer keeps for itself.
NOT_UNDER_ASAN := $(addprefix tests/test_,native_library.py cuda_machine_code.py planted_faults.py cuda_sanitizers.py \
  memory_growth.py battery_memory.py)
NOT_UNDER_ASAN_EITHER := \
  --deselect=tests/test_faults.py::test_a_process_without_memory_goes_on_when_there_is_some_and_loses_none
TSAN_ROUNDS := $(if $(FULL),1000,100)
# valgrind is some fifty times slower than the program.
VALGRIND_KERNELS := $(if $(FULL),*,CpuEngine/*.TakesEveryMisalignment:CpuEngine/*.LeavesOutWhatIsNotWanted:CpuOperations/*.GivesTheSumsAlone)
FUZZ_SECONDS ?= $(if $(FULL),600,60)
# Instruction sets, each with its share of the time; native is the best one that there is.
FUZZ_CAPABILITIES ?= native avx2 default

.PHONY: asan tsan leaks valgrind fuzz asan-build

# A comma, where one would end an argument.
, := ,
# $(call configure,FOLDER,SANITIZERS,OPTIONS): a build of its own. -O1: for compile times and stacks. Serial where it
# would use threads: torch's OpenMP runtime is not instrumented, and clang would bring its own beside it. Without the
# kernels that this machine cannot run.
BEST := $(shell grep -q avx512dq /proc/cpuinfo && echo AVX512 || echo AVX2)
RUNNABLE = DEFAULT;AVX2;$(BEST)
# WITH_PACKAGE: options for a build by clang with the Python package in it, which $(call package,FOLDER) then puts
# in FOLDER/package. Tests run from there, so that no other one is found.
configure = cmake -S . -B $(1) -G Ninja -DTORCH_EXT_SANITIZE=$(2) -DTORCH_EXT_TESTS=ON -DTORCH_EXT_CUDA=OFF \
  -DTORCH_EXT_OPENMP=OFF -DTORCH_EXT_INSTRUCTION_SETS="$(RUNNABLE)" -DTORCH_EXT_TORCH_ROOT=$(TORCH_ROOT) \
  -DCMAKE_CXX_FLAGS_RELEASE=-O1 $(3)
WITH_PACKAGE = -DCMAKE_CXX_COMPILER=$(CLANGXX) -DTORCH_EXT_IN_PLACE=ON -DTORCH_EXT_PYTHON=ON -DPython_EXECUTABLE=$(PY) \
  -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir)
package = rm -rf $(1)/package && cmake --install $(1) --prefix $(1)/package/torch_ext \
  && cp torch_ext/*.py* torch_ext/py.typed $(1)/package/torch_ext

# --- address, undefined behaviour ------------------------------------------------------------------------

# By clang, whose checks compile in half of GCC's time, and which brings the fuzzer.
asan-build asan leaks fuzz: export ASAN_OPTIONS := detect_leaks=0:detect_stack_use_after_return=1:check_initialization_order=1
asan-build asan leaks fuzz: export UBSAN_OPTIONS := print_stacktrace=1
asan-build asan leaks fuzz: export ASAN_SYMBOLIZER_PATH := /usr/bin/llvm-symbolizer-$(CLANG_VERSION)

asan-build: system environment static-tools
	$(call configure,$(ASAN),address$(,)undefined$(,)fuzzer-no-link,$(WITH_PACKAGE) -DTORCH_EXT_WERROR=ON -DTORCH_EXT_FUZZ=ON)
	cmake --build $(ASAN) --target torch_ext_C canary $(if $(FULL),all tests/cpp/all,cpu_engine_test)
	$(MUST_FAIL) "AddressSanitizer: heap-buffer-overflow" $(ASAN)/tests/cpp/canary read-past-the-end
	$(MUST_FAIL) "signed integer overflow" $(ASAN)/tests/cpp/canary overflow

# Python loads the sanitizer first and libstdc++ next: else the first C++ exception ends the process.
PRELOADED = PYTHONPATH=$(abspath $(ASAN)/package) \
  LD_PRELOAD="$$($(CLANGXX) -print-file-name=libclang_rt.asan-x86_64.so) $$(c++ -print-file-name=libstdc++.so)"

asan: asan-build
	$(if $(FULL),ctest --test-dir $(ASAN) --output-on-failure --no-tests=error -j2, \
	  seq 0 1 | GTEST_TOTAL_SHARDS=2 xargs -P2 -I% env GTEST_SHARD_INDEX=% $(ASAN)/tests/cpp/cpu_engine_test --gtest_brief=1)
	$(call package,$(ASAN))
	$(MUST_FAIL) "AddressSanitizer: heap-buffer-overflow" env $(PRELOADED) $(PY) tests/canaries/read_past_the_end.py
	cd $(ASAN)/package && $(PRELOADED) $(PYTEST) -p no:cacheprovider --rootdir=$(CURDIR) $(NOT_UNDER_ASAN_EITHER) \
	  $(abspath $(if $(FULL),$(filter-out $(NOT_UNDER_ASAN),$(wildcard tests/test_*.py)),$(ASAN_PYTEST)))

# --- threads -------------------------------------------------------------------------------------------------

# By GCC: clang's thread sanitizer does not see the 256 bits of an AVX load.
# (The CUDA kernels' threads are watched by `make ctest`, with float32; by FULL=1 with every dtype.)
tsan: export TSAN_OPTIONS := ignore_noninstrumented_modules=1:halt_on_error=1:suppressions=$(CURDIR)/tests/tsan_suppressions.txt
tsan: export OMP_NUM_THREADS := 1
# What a thread touches depends on the plan and on the length of vectors: the portable kernels and the best ones.
tsan: RUNNABLE = DEFAULT;$(BEST)$(if $(FULL),;AVX2)
tsan: system environment
	$(call configure,$(TSAN),thread)
	cmake --build $(TSAN) --target canary prelu_threads_test cpu_tasks_test $(if $(FULL),cuda_engine_test)
	$(MUST_FAIL) "ThreadSanitizer: data race" $(TSAN)/tests/cpp/canary race
	TORCH_EXT_TEST_ROUNDS=$(TSAN_ROUNDS) $(TSAN)/tests/cpp/prelu_threads_test --gtest_brief=1
	$(TSAN)/tests/cpp/cpu_tasks_test --gtest_brief=1 --gtest_filter='*.TasksMayRunAtOnce'
	$(if $(FULL),$(TSAN)/tests/cpp/cuda_engine_test --gtest_brief=1)

# --- leaks, uninitialised memory ---------------------------------------------------------------------------

leaks: asan-build
	cmake --build $(ASAN) --target prelu_repeated
	$(MUST_FAIL) "LeakSanitizer: detected memory leaks" env ASAN_OPTIONS=detect_leaks=1 $(ASAN)/tests/cpp/canary leak
	ASAN_OPTIONS=detect_leaks=1 $(ASAN)/tests/cpp/prelu_repeated
	$(if $(FULL),$(MAKE) pytest PYTEST_ARGS=tests/test_memory_growth.py)

MEMCHECK := valgrind --quiet --error-exitcode=9 --suppressions=tests/valgrind_suppressions.txt
valgrind: build-tests
	@command -v valgrind >/dev/null || $(call debian_packages,valgrind libc6-dbg)
	@mkdir -p $(BUILD)-valgrind && printf '#include <cstdlib>\nint main() { return *(volatile int*)std::malloc(4) == 42; }' \
	  | c++ -x c++ -o $(BUILD)-valgrind/planted -
	$(MUST_FAIL) "uninitialised" $(MEMCHECK) $(BUILD)-valgrind/planted
	$(MEMCHECK) $(BUILD)/tests/cpp/cpu_engine_test --gtest_brief=1 --gtest_filter='$(VALGRIND_KERNELS)'
	$(if $(FULL),cmake --build $(BUILD) --target prelu_repeated && $(MEMCHECK) $(BUILD)/tests/cpp/prelu_repeated 3)

# --- fuzzing ---------------------------------------------------------------------------------------------------

# What was found stays in the corpus, where the next run begins; an input that fails becomes a file that
# `prelu_fuzz FILE` runs again.
CORPUS := $(BUILD)-fuzz-corpus
FUZZER := $(ASAN)/tests/fuzz/prelu_fuzz -timeout=60 -rss_limit_mb=4096 -max_len=200 -len_control=0 -print_funcs=0 -artifact_prefix=$(CORPUS)/
fuzz: asan-build
	cmake --build $(ASAN) --target prelu_fuzz
	mkdir -p $(CORPUS)/planted $(CORPUS)/inputs
	$(MUST_FAIL) " at zero is " env TORCH_EXT_FUZZ_CANARY=value $(FUZZER)planted/ -max_total_time=60
	$(MUST_FAIL) "AddressSanitizer: heap-buffer-overflow" env TORCH_EXT_FUZZ_CANARY=bounds $(FUZZER)planted/ -max_total_time=60
	@set -e; for capability in $(FUZZ_CAPABILITIES); do \
	  echo "fuzzing for $$(($(FUZZ_SECONDS) / $(words $(FUZZ_CAPABILITIES)))) s, instruction set: $$capability"; \
	  [ $$capability = native ] || export ATEN_CPU_CAPABILITY=$$capability; \
	  $(FUZZER) -max_total_time=$$(($(FUZZ_SECONDS) / $(words $(FUZZ_CAPABILITIES)))) -verbosity=0 -print_final_stats=1 $(CORPUS)/inputs; \
	done

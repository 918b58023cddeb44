# Checkers that watch the programs run. Each has first to find a fault that is planted for it.
#   make asan      address and undefined-behaviour sanitizers: C++ tests, Python tests
#   make tsan      thread sanitizer: threads on the operators, the CUDA kernels' threads
#   make leaks     leak sanitizer; growth of memory over calls from Python
#   make valgrind  reads of memory that nobody has written
#   make fuzz      libFuzzer against an oracle, for FUZZ_SECONDS
#   make mutants   rules broken one at a time, each to be noticed by a test; MUTANTS="--only bfloat16" for some
# Every tool that is missing is installed, on Debian and with the rights to.

ASAN := $(BUILD)-asan
TSAN := $(BUILD)-tsan
FUZZ := $(BUILD)-fuzz
MUST_FAIL := tests/canaries/must_fail.sh

# Python tests of `make asan`, and how: ASAN_PYTEST=tests for all of them.
ASAN_PYTEST ?= tests/test_contract.py tests/test_errors.py tests/test_autograd.py tests/test_layouts.py
ASAN_PYTEST_ARGS ?=
# The CUDA kernels' tests take minutes with threads watched; TSAN_KERNELS='*' for all of them.
TSAN_KERNELS ?= *Determinism*:*Tails*:*MaskedOutputs*:*NonFiniteSums*
TSAN_ROUNDS ?= 1000
# valgrind is some fifty times slower than the program.
VALGRIND_KERNELS ?= *TakesEveryMisalignment:*LeavesOutWhatIsNotWanted
FUZZ_SECONDS ?= 60
# Instruction sets, each with its share of the time; native is the best one that there is.
FUZZ_CAPABILITIES ?= native avx2 default

.PHONY: asan tsan leaks valgrind fuzz asan-build mutants

# A comma, where one would end an argument.
, := ,
# $(call configure,FOLDER,SANITIZERS,OPTIONS): a build of its own. -O1: for compile times and stacks.
configure = cmake -S . -B $(1) -G Ninja -DTORCH_EXT_SANITIZE=$(2) -DTORCH_EXT_CUDA=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
  -DCMAKE_PREFIX_PATH="$$($(PY) -c 'import torch; print(torch.__path__[0])')" $(3)
# $(call install-tool,COMMAND,DEBIAN PACKAGE)
install-tool = @command -v $(1) >/dev/null || apt-get install -y -qq $(2)

# --- address, undefined behaviour ------------------------------------------------------------------------

asan asan-build leaks: export ASAN_OPTIONS := detect_leaks=0:detect_stack_use_after_return=1:check_initialization_order=1
asan asan-build leaks: export UBSAN_OPTIONS := print_stacktrace=1

asan-build: system environment
	$(call configure,$(ASAN),address$(,)undefined,-DTORCH_EXT_TESTS=ON -DTORCH_EXT_IN_PLACE=ON -DTORCH_EXT_PYTHON=ON \
	  -DPython_EXECUTABLE=$(PY) -Dpybind11_DIR="$$($(PY) -m pybind11 --cmakedir)")
	cmake --build $(ASAN) --target all canary prelu_repeated
	$(MUST_FAIL) "AddressSanitizer: heap-buffer-overflow" $(ASAN)/tests/cpp/canary read-past-the-end
	$(MUST_FAIL) "signed integer overflow" $(ASAN)/tests/cpp/canary overflow

# Python loads the sanitizer first and libstdc++ next: else the first C++ exception ends the process.
# The package lies in a folder of its own, from which the tests run, so that no other one is found.
PRELOADED = PYTHONPATH=$(abspath $(ASAN)/package) OMP_WAIT_POLICY=passive \
  LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)"

asan: asan-build
	ctest --test-dir $(ASAN) --output-on-failure --no-tests=error -j2
	rm -rf $(ASAN)/package
	cmake --install $(ASAN) --prefix $(ASAN)/package/torch_ext
	cp torch_ext/*.py* torch_ext/py.typed $(ASAN)/package/torch_ext
	$(MUST_FAIL) "AddressSanitizer: heap-buffer-overflow" env $(PRELOADED) $(PY) tests/canaries/read_past_the_end.py
	cd $(ASAN)/package && $(PRELOADED) $(PY) -m pytest -p no:cacheprovider $(ASAN_PYTEST_ARGS) $(abspath $(ASAN_PYTEST))

# --- threads -------------------------------------------------------------------------------------------------

# torch and its OpenMP runtime are not instrumented, so what they do to each other looks like races.
tsan: export TSAN_OPTIONS := ignore_noninstrumented_modules=1:halt_on_error=1
tsan: export OMP_NUM_THREADS := 1
tsan: system environment
	$(call configure,$(TSAN),thread,-DTORCH_EXT_TESTS=ON)
	cmake --build $(TSAN) --target canary prelu_threads_test channelwise_cuda_test
	$(MUST_FAIL) "ThreadSanitizer: data race" $(TSAN)/tests/cpp/canary race
	TORCH_EXT_TEST_ROUNDS=$(TSAN_ROUNDS) $(TSAN)/tests/cpp/prelu_threads_test
	$(TSAN)/tests/cpp/channelwise_cuda_test --gtest_filter='$(TSAN_KERNELS)'

# --- leaks, uninitialised memory ---------------------------------------------------------------------------

leaks: asan-build build
	$(MUST_FAIL) "LeakSanitizer: detected memory leaks" env ASAN_OPTIONS=detect_leaks=1 $(ASAN)/tests/cpp/canary leak
	ASAN_OPTIONS=detect_leaks=1 $(ASAN)/tests/cpp/prelu_repeated
	OMP_WAIT_POLICY=passive $(PY) -m pytest tests/test_memory_growth.py

MEMCHECK := valgrind --quiet --error-exitcode=9
valgrind: build
	$(call install-tool,valgrind,valgrind)
	cmake --build $(BUILD) --target canary
	$(MUST_FAIL) "uninitialised" $(MEMCHECK) $(BUILD)/tests/cpp/canary uninitialised
	$(MEMCHECK) $(BUILD)/tests/cpp/channelwise_test --gtest_filter='$(VALGRIND_KERNELS)'

# --- fuzzing ---------------------------------------------------------------------------------------------------

# What was found stays in $(FUZZ)/corpus, where the next run begins; an input that fails becomes a file that
# `prelu_fuzz FILE` runs again.
FUZZER := $(FUZZ)/tests/fuzz/prelu_fuzz -timeout=60 -rss_limit_mb=4096 -max_len=400 -artifact_prefix=$(FUZZ)/
fuzz: environment
	$(call install-tool,clang++,clang)
	$(call configure,$(FUZZ),address$(,)undefined,-DTORCH_EXT_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++)
	cmake --build $(FUZZ) --target prelu_fuzz
	$(MUST_FAIL) "WRONG: output" env TORCH_EXT_FUZZ_CANARY=value $(FUZZER) -max_total_time=60
	$(MUST_FAIL) "AddressSanitizer: heap-buffer-overflow" env TORCH_EXT_FUZZ_CANARY=bounds $(FUZZER) -max_total_time=60
	mkdir -p $(FUZZ)/corpus
	@set -e; for capability in $(FUZZ_CAPABILITIES); do \
	  echo "fuzzing, instruction set: $$capability"; \
	  [ $$capability = native ] || export ATEN_CPU_CAPABILITY=$$capability; \
	  $(FUZZER) -max_total_time=$$(($(FUZZ_SECONDS) / $(words $(FUZZ_CAPABILITIES)))) -print_final_stats=1 $(FUZZ)/corpus; \
	done

# --- the tests themselves ----------------------------------------------------------------------------------------

mutants: system environment $(VENV)/.bench-ready
	$(PY) tests/faults/mutate.py $(MUTANTS)

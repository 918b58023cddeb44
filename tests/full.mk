# Are the tests any good? And everything in its long form. Included by build_tools/targets.mk.
#   make mutants   rules broken one at a time, each to be noticed by a test; MUTANTS="sum layouts" for some
#   make coverage  lines and branches of C++ (the CUDA kernels by their emulation) and Python, with lower bounds
#   make repeat    the Python tests REPEATS times
#   make pythons   the wheel built with other Pythons, and the contract with each; PYTHONS="3.13" for one
#   make torches   the contract on each torch between the oldest and the newest; TORCHES="2.13.0" for one
#   make aarch64   the CPU kernels for Arm: compiled here, their machine code looked at, their tests emulated
#   make aarch64-package   the whole package in an emulated Debian for Arm, and the tests of values
#   make full      these, the checkers of sanitizers.mk with FULL=1, `pytest -m full`, the CUDA package: hours;
#                  FULL_ARGS="tsan fuzz" for some. What came of it: tests/full_result.txt

FULL_ARGS ?=
REPEATS ?= 20
COVERAGE := $(BUILD)-coverage

PYTHONS ?=
.PHONY: full mutants coverage repeat pythons torches aarch64 aarch64-package

full: environment $(VENV)/.bench-ready
	$(PY) tests/full.py $(FULL_ARGS)

mutants: system environment
	$(PY) tests/faults/mutate.py $(MUTANTS)

# By clang, which counts branches of the source (GCC: of the machine code, exceptions among them) and instances of a
# template as one.
COVERAGE_OBJECTS := $(addprefix -object=,libtorch_ext.so $(addprefix tests/cpp/,prelu_operations_test cpu_engine_test \
  launch_plan_test cuda_engine_test prelu_test prelu_threads_test))
coverage: export LLVM_PROFILE_FILE := $(abspath $(COVERAGE))/profiles/%m.profraw
coverage: system environment static-tools
	$(PY) -c "import pytest_cov" 2>/dev/null || $(PY) -m pip install pytest-cov==7.1.0
	$(call configure,$(COVERAGE),,$(WITH_PACKAGE) \
	  -DCMAKE_CXX_FLAGS="-fprofile-instr-generate -fcoverage-mapping -fprofile-update=atomic")
	cmake --build $(COVERAGE) --target all tests/cpp/all
	rm -rf $(COVERAGE)/profiles
	$(call package,$(COVERAGE))
	ctest --test-dir $(COVERAGE) --output-on-failure --no-tests=error -j2
	cd $(COVERAGE)/package && PYTHONPATH=$$PWD $(PYTEST) -p no:cacheprovider --rootdir=$(CURDIR) \
	  --cov=torch_ext --cov-branch --cov-report=term --cov-fail-under=95 \
	  $(abspath $(filter-out $(NOT_THE_SHIPPED_LIBRARY),$(wildcard tests/test_*.py)))
	cd $(COVERAGE) && llvm-profdata-$(CLANG_VERSION) merge -sparse -o all.profdata profiles/*.profraw \
	  && llvm-cov-$(CLANG_VERSION) export -summary-only -instr-profile=all.profdata _C*.so $(COVERAGE_OBJECTS) > summary.json
	$(PY) tests/native_coverage.py $(COVERAGE)/summary.json

# Tests of how the library is compiled and what is in it: not as here.
NOT_THE_SHIPPED_LIBRARY := $(addprefix tests/test_,native_library.py machine_code.py cuda_machine_code.py)

# By ccache: what the tests compile is the same every time.
WITH_CCACHE := PATH=/usr/lib/ccache:"$$PATH" CCACHE_DIR=$(abspath $(BUILD))-ccache
repeat: build-tests
	@command -v ccache >/dev/null || $(call debian_packages,ccache)
	@mkdir -p $(BUILD)-repeat; passed=0; for i in $$(seq $(REPEATS)); do \
	  $(WITH_CCACHE) $(PYTEST) > $(BUILD)-repeat/$$i.log 2>&1 && passed=$$((passed + 1)); \
	  tail -n 1 $(BUILD)-repeat/$$i.log; \
	done; echo "$$passed of $(REPEATS) runs without a failure"; test $$passed = $(REPEATS)

pythons: build
	@command -v debootstrap >/dev/null || $(call debian_packages,debootstrap)
	$(PY) tests/pythons/run.py $(PYTHONS)

# Each in an environment of its own, which is removed when it has passed. (The oldest and the newest are in CI.)
TORCHES ?= 2.12.1 2.13.0 2.14.1
torches:
	for version in $(TORCHES); do echo "torch $$version" \
	  && $(MAKE) ctest pytest TORCH_VERSION=$$version VENV=build/environments/torch-$$version FORCE_CPU=1 \
	    TORCH_EXT_CMAKE_ARGS=-DTORCH_EXT_KERNEL_TESTS=OFF PYTEST_ARGS="-m 'contract and not full'" \
	  && rm -rf build/environments/torch-$$version build/torch-$$version || exit 1; done

# Cross-compiled, and run by an emulator. They need torch's headers alone, which are the same for every processor.
AARCH64 := $(BUILD)-aarch64
AARCH64_TESTS := prelu_operations_test launch_plan_test cpu_engine_test
AARCH64_CMAKE := cmake -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64-static;-L;/usr/aarch64-linux-gnu"
aarch64: system environment
	@{ command -v aarch64-linux-gnu-g++ qemu-aarch64-static && test -e /usr/src/googletest; } >/dev/null \
	  || $(call debian_packages,g++-aarch64-linux-gnu qemu-user-static googletest)
	$(AARCH64_CMAKE) -S /usr/src/googletest -B $(AARCH64)/googletest -DBUILD_GMOCK=OFF \
	  -DCMAKE_INSTALL_PREFIX=$(abspath $(AARCH64))/installed
	cmake --build $(AARCH64)/googletest --target install
	$(AARCH64_CMAKE) -S . -B $(AARCH64) -DCMAKE_PREFIX_PATH=$(abspath $(AARCH64))/installed \
	  -DTORCH_EXT_TORCH_ROOT=$(TORCH_ROOT) -DTORCH_EXT_TESTS=ON -DTORCH_EXT_SANITIZED_TESTS=OFF -DTORCH_EXT_CUDA=OFF \
	  -DTORCH_EXT_OPENMP=OFF -DTORCH_EXT_WERROR=ON
	cmake --build $(AARCH64) $(if $(MAX_JOBS),--parallel $(MAX_JOBS)) --target \
	  prelu_cpu_DEFAULT norm_prelu_cpu_DEFAULT $(AARCH64_TESTS)
	TORCH_EXT_AARCH64=$(abspath $(AARCH64)) $(PY) -m pytest tests/test_aarch64_machine_code.py
	ctest --test-dir $(AARCH64) --output-on-failure --no-tests=error --timeout 7200 -j2 -R '_test\.'

aarch64-package: environment
	@{ command -v debootstrap qemu-aarch64-static aarch64-linux-gnu-g++; } >/dev/null \
	  || $(call debian_packages,debootstrap qemu-user-static g++-aarch64-linux-gnu)
	$(PY) tests/pythons/aarch64.py $(TORCH_VERSION)

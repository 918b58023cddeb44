# Are the tests any good? And everything in its long form. Included by build_tools/targets.mk.
#   make mutants   rules broken one at a time, each to be noticed by a test; MUTANTS="sum layouts" for some
#   make coverage  lines and branches of C++ (the CUDA kernels by their emulation) and Python, with lower bounds
#   make repeat    the Python tests REPEATS times
#   make pythons   the wheel built with other Pythons, and the contract with each; PYTHONS="trixie" for one
#   make full      these, the checkers of sanitizers.mk with FULL=1, `pytest -m full`, the CUDA package: hours;
#                  FULL_ARGS="tsan fuzz" for some. What came of it: tests/full_result.txt

FULL_ARGS ?=
REPEATS ?= 20
COVERAGE := $(BUILD)-coverage

PYTHONS ?=
.PHONY: full mutants coverage repeat pythons

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

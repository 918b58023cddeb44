# Are the tests any good? And everything in its long form. Included by the Makefile.
#   make mutants   rules broken one at a time, each to be noticed by a test; MUTANTS="--only bfloat16" for some
#   make coverage  lines and branches of C++ (the CUDA kernels by their emulation) and Python, with lower bounds
#   make repeat    the Python tests REPEATS times
#   make full      these, the checkers of sanitizers.mk with FULL=1, `pytest -m full`, the CUDA package: hours;
#                  FULL_ARGS="tsan fuzz" for some. What came of it: tests/full_result.txt

FULL_ARGS ?=
REPEATS ?= 20
COVERAGE := $(BUILD)-coverage

.PHONY: full mutants coverage repeat

full: environment $(VENV)/.bench-ready
	$(PY) tests/full.py $(FULL_ARGS)

mutants: system environment $(VENV)/.bench-ready
	$(PY) tests/faults/mutate.py $(MUTANTS)

# By clang, which counts branches of the source (GCC: of the machine code, exceptions among them) and instances of a
# template as one. The package lies in a folder of its own, from which the tests run.
COVERAGE_PROGRAMS := libtorch_ext.so $(addprefix tests/cpp/,prelu_math_test channelwise_test launch_plan_test \
  channelwise_cuda_test prelu_test prelu_threads_test)
coverage: export LLVM_PROFILE_FILE := $(abspath $(COVERAGE))/profiles/%m.profraw
coverage: system environment static-tools
	$(PY) -c "import pytest_cov" 2>/dev/null || $(PY) -m pip install pytest-cov==7.1.0
	cmake -S . -B $(COVERAGE) -G Ninja -DCMAKE_CXX_COMPILER=$(CLANGXX) -DTORCH_EXT_TESTS=ON -DTORCH_EXT_CUDA=OFF \
	  -DTORCH_EXT_OPENMP=OFF -DTORCH_EXT_IN_PLACE=ON -DTORCH_EXT_PYTHON=ON -DTORCH_EXT_TORCH_ROOT=$(TORCH_ROOT) \
	  -DPython_EXECUTABLE=$(PY) -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir) -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
	  -DCMAKE_CXX_FLAGS="-fprofile-instr-generate -fcoverage-mapping -fprofile-update=atomic"
	cmake --build $(COVERAGE)
	rm -rf $(COVERAGE)/profiles $(COVERAGE)/package
	cmake --install $(COVERAGE) --prefix $(COVERAGE)/package/torch_ext
	cp torch_ext/*.py* torch_ext/py.typed $(COVERAGE)/package/torch_ext
	ctest --test-dir $(COVERAGE) --output-on-failure --no-tests=error -j2
	cd $(COVERAGE)/package && PYTHONPATH=$$PWD OMP_WAIT_POLICY=passive $(PY) -m pytest -p no:cacheprovider \
	  -n 2 --dist loadfile --rootdir=$(CURDIR) --cov=torch_ext --cov-branch --cov-report=term --cov-fail-under=95 \
	  $(abspath $(filter-out $(NOT_THE_SHIPPED_LIBRARY),$(wildcard tests/test_*.py)))
	cd $(COVERAGE) && $(PY) $(CURDIR)/tests/native_coverage.py . $(COVERAGE_PROGRAMS) _C*.so

# Tests of how the library is compiled and what is in it: not as here.
NOT_THE_SHIPPED_LIBRARY := $(addprefix tests/test_,native_library.py machine_code.py cuda_machine_code.py)

repeat: build
	@mkdir -p $(BUILD)-repeat; passed=0; for i in $$(seq $(REPEATS)); do \
	  OMP_WAIT_POLICY=passive $(PY) -m pytest -n 2 --dist loadfile > $(BUILD)-repeat/$$i.log 2>&1 && passed=$$((passed + 1)); \
	  tail -n 1 $(BUILD)-repeat/$$i.log; \
	done; echo "$$passed of $(REPEATS) runs without a failure"; test $$passed = $(REPEATS)

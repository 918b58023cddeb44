"""Faults planted in the CUDA kernels' source are found on the CPU: by sanitizers, tests, compiler.

And the mutants of `make mutants` are looked at: whether each can be planted. (Whether a test notices it takes a
build each, hence that target.)
"""

import concurrent.futures
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))
import plant
from cuda_faults import CHECKS, FAULTS, Check, Fault
from mutants import MUTANTS

needs_compiler = pytest.mark.skipif(
    not Path("/usr/include/gtest/gtest.h").exists() or shutil.which("c++") is None,
    reason="needs a C++ compiler and GoogleTest (Debian: g++ libgtest-dev)",
)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each check said, as futures, by the fault's name; and without a fault. (Those that build and run a test
    are run without one by `make ctest`.)"""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:

        def start(check, fault=None):
            return pool.submit(plant.run, check, tmp_path_factory.mktemp("sources"), fault)

        found = {fault.name: start(CHECKS[fault.check], fault) for fault in FAULTS}
        yield {"compiler": start(CHECKS["compiler"])} | found


@needs_compiler
def test_the_compiler_finds_nothing_without_a_fault(said):
    assert said["compiler"].result() is None


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_found(fault, said):
    assert plant.problem_of(fault, said[fault.name].result()) is None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule)
def test_a_mutants_text_is_in_its_file_once_and_its_tests_exist(mutant):
    assert plant.replaced(plant.ROOT / mutant.file, mutant.old, mutant.new)
    suffix, folder = ("", "") if mutant.tests.endswith(".py") else (".cpp", "cpp")
    for name in mutant.tests.split():
        assert (plant.ROOT / "tests" / folder / f"{name}{suffix}").is_file(), name


def test_what_is_not_planted_or_not_found_or_found_for_another_reason_counts_as_a_problem(
    tmp_path, monkeypatch
):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "source.txt").write_text("one two two\n")
    monkeypatch.setattr(plant, "ROOT", tmp_path)

    def problem(old, finding="PLANTED", command="! grep -rn PLANTED src"):
        fault = Fault("a word", "", "src/source.txt", old, "PLANTED", finding)
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        said = plant.run(Check(("src",), (command,)), tmp_path / "copy", fault)
        return plant.problem_of(fault, said)

    assert problem("one") is None
    assert (tmp_path / "src" / "source.txt").read_text() == "one two two\n"
    assert "but not with" in problem("one", finding="data race")
    assert "nothing found it" in problem("one", command="true")
    for missing_or_twice in ("three", "two"):
        with pytest.raises(plant.NotPlanted):
            problem(missing_or_twice)

"""Faults planted in the CUDA kernels' source are found on the CPU: by sanitizers, tests, compiler."""

import concurrent.futures
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))
import plant
from table import CHECKS, FAULTS, Check, Fault

pytestmark = pytest.mark.skipif(
    not Path("/usr/include/gtest/gtest.h").exists() or shutil.which("c++") is None,
    reason="needs a C++ compiler and GoogleTest (Debian: g++ libgtest-dev)",
)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each check said, as futures: with each of the faults, and with none (by the check's name)."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:

        def start(check, fault=None):
            return pool.submit(plant.run, check, tmp_path_factory.mktemp("sources"), fault)

        yield {name: start(check) for name, check in CHECKS.items()} | {
            fault.name: start(CHECKS[fault.check], fault) for fault in FAULTS
        }


@pytest.mark.parametrize("check", CHECKS)
def test_each_check_passes_without_a_fault(check, said):
    assert said[check].result() is None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_found(fault, said):
    assert plant.problem_of(fault, said[fault.name].result()) is None


# ---- The runner itself -------------------------------------------------------------------------

GREP = Check(("src",), ("! grep -rn PLANTED src",))


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """What GREP says of a small source in which `old` has become PLANTED."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "source.txt").write_text("one two two\n")
    monkeypatch.setattr(plant, "ROOT", tmp_path)

    def run(old, finding="PLANTED"):
        fault = Fault("a word", "", "src/source.txt", old, "PLANTED", finding)
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        return plant.problem_of(fault, plant.run(GREP, copy, fault))

    return run


def test_a_fault_is_planted_in_a_copy_and_found(planted, tmp_path):
    assert planted("one") is None
    assert (tmp_path / "copy" / "src" / "source.txt").read_text() == "PLANTED two two\n"
    assert (tmp_path / "src" / "source.txt").read_text() == "one two two\n"


def test_a_fault_whose_text_is_missing_or_ambiguous_is_an_error(planted):
    for text in ("three", "two"):
        with pytest.raises(plant.NotPlanted):
            planted(text)


def test_a_failure_for_another_reason_does_not_count(planted):
    assert "but not with" in planted("one", finding="data race")


def test_a_check_that_passes_has_not_found_the_fault(planted, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "GREP", Check(("src",), ("true",)))
    assert "nothing found it" in planted("one")

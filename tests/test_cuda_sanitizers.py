"""compute-sanitizer has nothing to report of our kernels, after it has found a planted fault and acquitted its twin.

A tool that is missing, or cannot run here even on the innocent twin, is a skip with the reason; a blind one fails.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_testing import needs_gpu

TESTS = Path(__file__).parent
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 86  # the exit status that we ask for where errors were found
KERNELS = (
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    TESTS / "test_smallest.py",
)


def built_canaries(folder, *target):
    nvcc = shutil.which("nvcc") or pytest.skip("nvcc was not found")
    command = [nvcc, "-O1", "-lineinfo", *target, "-o", folder / "canaries"]
    subprocess.run([*command, TESTS / "gpu" / "canaries.cu"], check=True)
    return folder / "canaries"


def check(tool, canaries, kernels=KERNELS):
    sanitizer = shutil.which("compute-sanitizer") or pytest.skip("compute-sanitizer was not found")
    # The caching allocator hands out parts of large blocks, whose ends no tool knows.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TORCH_EXT_TEST_DEVICES": "cuda"}

    def run(*command):
        options = ["--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
        done = subprocess.run(
            *([sanitizer, *options, *map(str, command)],), env={**os.environ, **variables},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )  # fmt: skip
        print(done.stdout)
        return done

    clean = run(canaries, tool, "clean")
    if clean.returncode != 0:
        pytest.skip(f"compute-sanitizer does not work here: {clean.stdout.strip()[-200:]}")
    assert run(canaries, tool, "faulty").returncode == FOUND, "the planted fault was not reported"
    ours = run(*kernels)
    assert ours.returncode == 0, ours.stdout[-3000:]
    assert "SUMMARY" in ours.stdout, "there is no summary"


@needs_gpu
@pytest.mark.parametrize("tool", TOOLS)
def test_it_finds_the_planted_fault_and_none_of_ours(tool, tmp_path):
    check(tool, built_canaries(tmp_path, "-arch=native"))


def test_every_tool_has_a_canary_and_they_compile(tmp_path):
    program = built_canaries(tmp_path, "-arch=sm_90")
    assert subprocess.run([program], check=False).returncode == 2  # without a tool's name
    assert all(f'"{tool}"' in (TESTS / "gpu" / "canaries.cu").read_text() for tool in TOOLS)


@pytest.mark.parametrize(
    ("clean", "faulty", "kernels", "outcome"),
    [
        (0, FOUND, "echo ERROR SUMMARY: 0 errors", None),
        (1, FOUND, "echo ERROR SUMMARY: 0 errors", pytest.skip.Exception),
        (0, 0, "echo ERROR SUMMARY: 0 errors", AssertionError),
        (0, FOUND, f"echo RACECHECK SUMMARY; exit {FOUND}", AssertionError),
        (0, FOUND, "echo nothing was attached", AssertionError),
    ],
    ids=["good", "does_not_work_here", "blind", "guilty_kernels", "no_summary"],
)
def test_what_it_says_is_believed_only_of_a_tool_that_sees(
    clean, faulty, kernels, outcome, tmp_path, monkeypatch
):
    script = tmp_path / "compute-sanitizer"
    lines = f"*clean) exit {clean};;\n*faulty) exit {faulty};;\n*) {kernels};;"
    script.write_text(f'#!/bin/sh\ncase "$*" in\n{lines}\nesac\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if outcome is None:
        check("memcheck", "canaries")
    else:
        with pytest.raises(outcome):
            check("memcheck", "canaries")

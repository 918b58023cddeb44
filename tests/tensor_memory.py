"""Memory of tensors that ends at a page nobody may touch, or that cannot be had: for tests that
run a function of theirs in a process of its own, whose allocator is tensor_memory.cpp."""

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import torch_ext

HERE = Path(__file__).parent
SECONDS = 300

BEHIND, BEFORE = "behind", "before"
_GUARDS = {None: 0, BEHIND: 1, BEFORE: 2}


# ---- In the test: start a process --------------------------------------------------------------


@functools.cache
def _library():
    """The allocator, compiled once; it is small."""
    compiler = shutil.which("c++") or pytest.skip("needs a C++ compiler")
    path = Path(tempfile.mkdtemp()) / "libtensor_memory.so"
    source = HERE / "tensor_memory.cpp"
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", source, "-o", path]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return path


def start(function, *arguments, environment=None, preload=True):
    """Calls a function of a test file in a new process, and returns how that ended.

    The arguments are handed on as Python writes them.
    """
    call = f"import {function.__module__} as test; test.{function.__name__}(*{arguments!r})"
    return subprocess.run(
        [sys.executable, "-c", call],
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={
            **os.environ,
            "PYTHONPATH": f"{HERE}:{Path(torch_ext.__file__).parent.parent}",
            **({"LD_PRELOAD": str(_library())} if preload else {}),
            **(environment or {}),
        },
    )


def run(function, *arguments, **options):
    """The same; what it prints. It fails the test if the process fails."""
    done = start(function, *arguments, **options)
    if done.returncode != 0:
        pytest.fail(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout


def capabilities():
    """The instruction sets of this processor that there are kernels for, as PyTorch writes them."""
    known = ["default", "avx2", "avx512"]
    best = torch.backends.cpu.get_cpu_capability().lower()
    return known[: known.index(best) + 1] if best in known else known[:1]


# ---- In that process ---------------------------------------------------------------------------


@functools.cache
def _allocator():
    return ctypes.CDLL(None)


def guard_pages(where):
    """From now on tensors end (BEHIND) or start (BEFORE) at a page that faults; None: no longer."""
    _allocator().torch_ext_test_guard(_GUARDS[where])


def fail_allocation(number):
    """The number-th tensor from now on finds no memory; 0: all do."""
    _allocator().torch_ext_test_fail(ctypes.c_long(number))


def allocations(function):
    """How many tensors a call takes memory for."""
    fail_allocation(0)
    function()
    return _allocator().torch_ext_test_taken()

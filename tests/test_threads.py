"""Any number of threads, from any thread, as often as you like: the same bits."""

import ctypes
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import finite_slopes, forward_backward, random_values
from reference import assert_both_branches, assert_same_bits

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu

COUNTS = (1, 2, 3, 4, 7, 8, 16)
PYTHON_THREADS = 8
ROUNDS = 1000

# Enough elements for 16 threads; planes, columns, one slope.
SHAPES = {
    "planes": ((8, 16, 70, 71), (16,)),
    "columns": ((9001, 70), (70,)),
    "one": ((700001,), ()),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def arguments(request, dtypes):
    """input, weight and grad_output of random reals: another order of sums is another result."""
    (shape, slopes), (dtype, weight_dtype) = request.param, dtypes
    input, grad_output = (random_values(shape, dtype, seed=seed) for seed in (1, 2))
    return input, finite_slopes(slopes, weight_dtype), grad_output


def _assert_same(actual, expected):
    for result, expectation in zip(actual, expected, strict=True):
        assert_same_bits(result, expectation)


def test_bits_are_the_same_with_any_number_of_threads(arguments, threads):
    threads(1)
    expected = forward_backward(prelu, *arguments)
    assert_both_branches(arguments[0], *expected)
    for count in COUNTS:
        threads(count)
        assert torch.get_num_threads() == count
        _assert_same(forward_backward(prelu, *arguments), expected)


def test_twenty_repeats_give_the_same_bits(arguments, threads):
    threads(4)
    expected = forward_backward(prelu, *arguments)
    for _ in range(20):
        _assert_same(forward_backward(prelu, *arguments), expected)


# ---- Inside a parallel region ------------------------------------------------------------------


def _openmp():
    """The runtime that PyTorch and torch_ext share, which this process has loaded already."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            if re.search(r"/libgomp\b[^/]*$", line.strip()):
                return ctypes.CDLL(line.split()[-1])
    return pytest.skip("PyTorch runs on another OpenMP runtime than GNU's")


def _in_parallel(function, count):
    """Calls function(number of the thread) on `count` threads of one OpenMP team."""
    openmp = _openmp()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def member(_):
        function(openmp.omp_get_thread_num())

    openmp.GOMP_parallel(member, None, count, 0)


@pytest.mark.parametrize("count", (2, 5))
def test_bits_are_the_same_inside_a_parallel_region(count, arguments):
    """As in a loop of at::parallel_for that calls the operator: it must not wait for its team."""
    expected = forward_backward(prelu, *arguments)
    results = {}

    def member(number):
        results[number] = (
            _openmp().omp_in_parallel(),
            forward_backward(prelu, *arguments),
        )

    _in_parallel(member, count)
    assert sorted(results) == list(range(count))
    for inside, actual in results.values():
        assert inside
        _assert_same(actual, expected)


# ---- Threads of Python -------------------------------------------------------------------------


def test_eight_threads_share_a_module_for_a_thousand_rounds():
    """Forward and backward, each thread on a size of its own: some split over threads inside."""
    module = torch_ext.PReLU(24)
    with torch.no_grad():
        module.weight.copy_(finite_slopes((24,), torch.float32))
    steps = []
    for index in range(PYTHON_THREADS):
        shape = (2, 24, 4 + 5 * index, 9)
        input, grad_output = (random_values(shape, torch.float32, seed=seed) for seed in (1, 2))
        expected = forward_backward(prelu, input, module.weight, grad_output)
        assert_both_branches(input, *expected)
        steps.append((input, grad_output, expected))
    start = threading.Barrier(PYTHON_THREADS)

    def work(step):
        input, grad_output, expected = step
        start.wait()
        for _ in range(ROUNDS):
            leaf = input.detach().requires_grad_()
            output = module(leaf)
            gradients = torch.autograd.grad(output, (leaf, module.weight), grad_output)
            for result, expectation in zip((output, *gradients), expected):
                assert torch.equal(result, expectation)

    with ThreadPoolExecutor(PYTHON_THREADS) as pool:
        for job in [pool.submit(work, step) for step in steps]:
            job.result()


SMALL_STACKS = """
import sys, torch, torch_ext
from torch import nn
torch.set_num_threads(4)
for dtype in (torch.float64, torch.float32, torch.bfloat16):
    for shape in ((4096, 3000), (64, 96, 7, 7), (8, 130, 30, 30)):
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
        layer = (torch_ext if "ours" in sys.argv else nn).PReLU(shape[1], dtype=dtype)
        layer(x).sum().backward()
        assert x.grad.isfinite().all() and layer.weight.grad.isfinite().all()
print("done by", torch.get_num_threads())
"""


@pytest.mark.parametrize("layer", ("ours", "pytorchs"))
def test_worker_threads_with_small_stacks(layer):
    """64 KiB, as musl and embedding programs give them: where PyTorch's own runs, so does ours."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_STACKS, layer],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_STACKSIZE": "64k"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "done by 4"

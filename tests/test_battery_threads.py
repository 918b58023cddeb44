"""Any number of threads, from any thread, as often as you like: the same bits; fresh memory never shows."""

import contextlib
import ctypes
import functools
import os
import re
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from batteries import (
    CASES,
    DATA_TYPES,
    DTYPES,
    ELEMENT_SIZES,
    EMPTY_CASES,
    LARGE_CASES,
    battery,
    first_setting,
    is_native,
)
from cases import Case, single_value
from reference import assert_both_branches, assert_same_bits
from test_battery_autograd import cotangents, leaves_of, present, wanted

pytestmark = pytest.mark.contract

COUNTS = (2, 3, 4, 7, 8, 16)
SHORT = ("planes", "columns", "one_slope")  # of the large cases, one for each way through memory
PYTHON_THREADS = 8
ROUNDS = 500


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        assert torch.get_num_threads() == count
        yield
    finally:
        torch.set_num_threads(before)


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert_same_bits(one, other)


def run(operator, arguments):
    """Results and gradients of random reals: another order of sums is another result."""
    leaves = leaves_of(operator, arguments)
    results = operator(*leaves, **first_setting(operator))
    gradients = ()
    if operator.backward is not None:
        outputs = operator.derivable(results)
        gradients = torch.autograd.grad(outputs, wanted(leaves), cotangents(outputs))
    return [*(result.detach() for result in present(results)), *gradients]


def _large(operator, dtypes, case, device="cpu"):
    layouts = dict.fromkeys(operator.data, case.layout)
    arguments = operator.make(case, dtypes, device, layouts=layouts)
    if case.name == "planes":  # and once with a gradient that is one number for all
        for name in set(operator.data) - {"input"}:
            at = operator.place(name)
            arguments[at] = single_value(arguments[at])
    return arguments


# ---- Threads of the kernels --------------------------------------------------------------------


@battery(dtypes=ELEMENT_SIZES, case=LARGE_CASES)
def test_bits_do_not_depend_on_the_number_of_threads(operator, dtypes, case):
    arguments = _large(operator, dtypes, case)
    with threads(1):
        expected = run(operator, arguments)
    assert_both_branches(arguments[operator.place("input")], *expected)
    for count in COUNTS:
        with threads(count):
            assert_same(run(operator, arguments), expected)


@battery(dtypes=ELEMENT_SIZES, case=LARGE_CASES)
def test_repeats_give_the_same_bits(operator, dtypes, case, device):
    arguments = _large(operator, dtypes, case, device)
    with threads(4):
        expected = run(operator, arguments)
        for _ in range(20 if device == "cuda" or case.name in SHORT else 4):
            assert_same(run(operator, arguments), expected)


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


@battery(dtypes=ELEMENT_SIZES)
def test_bits_are_the_same_inside_a_parallel_region(operator, dtypes):
    """As in a loop of at::parallel_for that calls the operator: it must not wait for its team."""
    for name in SHORT:
        case = LARGE_CASES(operator).get(name)
        if case is None:
            continue
        arguments = _large(operator, dtypes, case)
        expected = run(operator, arguments)
        for count in (2, 5):
            results = {}

            def member(number, arguments=arguments, results=results):
                results[number] = _openmp().omp_in_parallel(), run(operator, arguments)

            _in_parallel(member, count)
            assert sorted(results) == list(range(count))
            for inside, actual in results.values():
                assert inside
                assert_same(actual, expected)


# ---- Threads of Python -------------------------------------------------------------------------


@battery()
def test_eight_threads_do_not_disturb_one_another(operator, device):
    """Each on a size of its own: some split over threads inside."""
    problems = []
    for index in range(PYTHON_THREADS):
        case = Case("python threads", (2, 24, 4 + 5 * index, 9), (24,))
        arguments = operator.make(case, (torch.float32, torch.float32), device, seed=index)
        problems.append((arguments, run(operator, arguments)))
        assert_both_branches(arguments[operator.place("input")], *problems[-1][1])
    start = threading.Barrier(PYTHON_THREADS)

    def work(arguments, expected):
        start.wait()
        for _ in range(ROUNDS if operator.most is None else ROUNDS // 10):
            actual = run(operator, arguments)
            assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))

    with ThreadPoolExecutor(PYTHON_THREADS) as pool:
        for job in [pool.submit(work, *problem) for problem in problems]:
            job.result()


SMALL_STACKS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import cases, operators, test_battery_threads
torch.set_num_threads(4)
for row in operators.OPERATORS:
    if row.native:
        for dtypes in row.dtypes:
            for shape in ((100, 3000), (64, 96, 7, 7), (8, 130, 30, 30)):
                case = cases.Case("small stacks", shape, shape[1:2])
                for result in test_battery_threads.run(row, row.make(case, dtypes)):
                    assert result.isfinite().all()
        print(row.name, "by", torch.get_num_threads(), flush=True)
"""


@functools.cache
def with_small_stacks():
    """64 KiB, as musl and embedding programs give them."""
    return subprocess.run(
        [sys.executable, "-c", SMALL_STACKS, os.path.dirname(__file__)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_STACKSIZE": "64k"},
    )


@battery(is_native)
def test_worker_threads_with_small_stacks(operator):
    done = with_small_stacks()
    assert f"{operator.name} by 4" in done.stdout.splitlines(), done.stderr[-2000:]
    assert done.returncode == 0


# ---- Deterministic mode ------------------------------------------------------------------------


@contextlib.contextmanager
def _deterministic():
    """Warnings are errors; fresh memory is full of NaN, so an element never written would show."""
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.utils.deterministic.fill_uninitialized_memory
            assert torch.empty(4).isnan().all()
            yield
    finally:
        torch.use_deterministic_algorithms(False)


@battery(
    dtypes=DATA_TYPES,
    case=lambda operator: CASES(operator) | EMPTY_CASES(operator) | LARGE_CASES(operator),
)
def test_fresh_memory_full_of_nan_never_shows(operator, dtypes, case, device):
    """In any layout, with every setting, in gradients; and nothing warns of being nondeterministic."""
    for arguments in operator.signs(operator.make(case, dtypes, device)):
        expected = run(operator, arguments)
        assert all(result.isfinite().all() for result in expected)
        with _deterministic():
            assert_same(run(operator, arguments), expected)
            for setting in operator.settings.values():
                if operator.masked(setting):
                    results = operator(*arguments, **setting)
                    for one, other in zip(results, operator(*arguments, **first_setting(operator))):
                        assert one is None or torch.equal(one, other)


@battery()
def test_other_derivatives_work_in_deterministic_mode(operator, device):
    """Those that are composed of PyTorch's operators: second order, forward mode, vmap."""
    arguments = operator.make(Case("others", (6, 4, 5), (4,)), operator.dtypes[0], device)
    setting = first_setting(operator)

    def function(*tensors):
        return tuple(operator.derivable(operator(*tensors, **setting)))

    def of_differentiable(*tensors):
        given = iter(tensors)
        pairs = zip(operator.arguments, arguments)
        return function(*(next(given) if a.differentiable else t for a, t in pairs))

    def others():
        leaves = leaves_of(operator, arguments)
        loss = sum(result.sum() for result in function(*leaves))
        first = torch.autograd.grad(loss, wanted(leaves), create_graph=True)
        loss = sum(gradient.square().sum() for gradient in first)
        second = torch.autograd.grad(loss, wanted(leaves), materialize_grads=True)
        free = tuple(t for a, t in zip(operator.arguments, arguments) if a.differentiable)
        _, tangents = torch.func.jvp(of_differentiable, free, free)
        mapped = torch.func.vmap(function)(*(torch.stack([t, t]) for t in arguments))
        return (*second, *tangents, *mapped)

    expected = others()
    assert_both_branches(arguments[operator.place("input")], *expected)
    with _deterministic():
        assert_same(others(), expected)


# ---- The floating-point environment ------------------------------------------------------------


@battery(dtypes=DTYPES)
def test_the_floating_point_environment_is_not_touched(operator, dtypes):
    """Subnormal numbers are kept by what runs after a call, on this and on other threads."""
    smallest = sys.float_info.min
    with threads(2):
        run(operator, operator.make(Case("environment", (8, 16, 64, 64), (16,)), dtypes))
        assert smallest / 4 != 0
        many = torch.full((2**18,), smallest, dtype=torch.float64)  # on the worker threads
        assert (many / 4 != 0).all()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: smallest / 4).result() != 0

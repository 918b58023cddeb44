"""Nothing outside of arguments and results is touched, whatever the tail, the layout and the instruction set:
every tensor ends or begins at a page that must not be touched. And any allocation may fail."""

import ctypes
import functools
import json
import signal
import sys

import pytest
import tensor_memory
import torch
from batteries import battery, each, first_setting, is_native
from cases import Case, contiguous, rotated
from operators import OPERATORS
from reference import assert_same_bits
from test_battery_autograd import leaves_of, present, wanted

TAILS = range(64)
SIDES = (tensor_memory.BEHIND, tensor_memory.BEFORE)
NO_MEMORY = r"can't allocate memory|not enough memory|DefaultCPUAllocator"


def print_of_each_operator(check):
    """By the operator's name, what a check returns; as JSON."""
    results = {}
    for operator in filter(is_native, OPERATORS):
        # (Whose turn it was, should the process end.)
        print(operator.name, file=sys.stderr, flush=True)
        results[operator.name] = check(operator)
    print(json.dumps(results))


@functools.cache
def of_each_operator(function, **environment):
    """What a function has printed so. In one process for all operators: importing torch takes longer than most."""
    return json.loads(tensor_memory.run(function, environment=environment))


# ---- What runs beside guard pages --------------------------------------------------------------


def _cases(tail):
    """Planes, columns, one slope, short runs: with `tail` elements behind whole vectors."""
    yield Case("planes", (2, 2, 64 + tail), (2,))
    yield Case("columns", (3, 64 + tail), (64 + tail,))
    yield Case("one slope", (128 + tail,), ())
    yield Case("short runs", (3, 5, 1 + tail % 8, 1 + tail // 8), (5,))


def _layout_cases():
    """Also where other data are copied first, or many tasks leave partial sums."""
    for layout in (contiguous, rotated):
        yield Case("few", (5, 7, 9, 11), (7,), layout)
        yield Case("tasks", (9, 33, 29, 31), (33,), layout)
        yield Case("one slope", (999, 70), (), layout)


def _assert_guarded(tensor, where):
    """Else this test would prove nothing."""
    if tensor is not None and tensor.numel() and tensor.is_contiguous():
        end = tensor.data_ptr() + tensor.nbytes
        assert (end if where == tensor_memory.BEHIND else tensor.data_ptr()) % 4096 == 0


def _assert_the_same_beside_pages(operator, arguments):
    for setting in operator.settings.values():
        expected = operator(*arguments, **setting)
        for where in SIDES:
            tensor_memory.guard_pages(where)
            guarded = [tensor.clone() for tensor in arguments]
            actual = operator(*guarded, **setting)
            for tensor in (*guarded, *actual):
                _assert_guarded(tensor, where)
            tensor_memory.guard_pages(None)
            for one, other in zip(present(actual), present(expected), strict=True):
                assert_same_bits(one, other)


def _every_tail_and_layout(operator):
    count = 0
    for dtypes in operator.dtypes[: 2 if operator.most else None]:
        mixed = dtypes[0] != dtypes[1]  # the same kernels with values per channel of another type
        tails = TAILS[:: 3 if operator.most else 8 if mixed else 1]
        for case in (*(case for tail in tails for case in _cases(tail)), *_layout_cases()):
            if operator.takes(case):
                arguments = operator.make(case, dtypes, dyadic=True)
                _assert_the_same_beside_pages(operator, arguments)
                count += 1
    return count


def every_tail_and_layout():
    print_of_each_operator(_every_tail_and_layout)


def _large_results(operator):
    """From 32 MiB on, with and without whole cache lines at the ends."""
    for extra in (0, 17):
        case = Case("large", (1, 2, 2**22 + extra), (2,))
        arguments = operator.make(case, (torch.float32, torch.float32), dyadic=True)
        _assert_the_same_beside_pages(operator, arguments)
    return 2


def large_results():
    print_of_each_operator(_large_results)


def read_one_byte_outside(where):
    tensor_memory.guard_pages(where)
    tensor = torch.ones(77)
    inside = tensor.data_ptr() + (tensor.nbytes - 1 if where == tensor_memory.BEHIND else 0)
    ctypes.string_at(inside, 1)
    print("inside is fine", flush=True)
    ctypes.string_at(inside + (1 if where == tensor_memory.BEHIND else -1), 1)


@pytest.mark.parametrize("where", SIDES)
def test_a_guard_page_is_fatal_to_who_touches_it(where):
    """Else the tests below would prove nothing."""
    done = tensor_memory.start(read_one_byte_outside, where)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "inside is fine\n"), done.stderr


@battery(is_native, capability=each(tensor_memory.capabilities()))
def test_nothing_outside_is_touched_whatever_tail_and_layout(operator, capability):
    counts = of_each_operator(every_tail_and_layout, ATEN_CPU_CAPABILITY=capability)
    assert counts[operator.name] > 64


@battery(is_native)
def test_nothing_outside_is_touched_by_stores_past_the_caches(operator):
    assert of_each_operator(large_results)[operator.name] == 2


# ---- No memory ---------------------------------------------------------------------------------


def _problem(operator):
    """Many tasks: partial sums. Other data in another order: a copy."""
    case = Case("no memory", (2 if operator.most else 16, 33, 17, 31), (33,), rotated)
    return operator.make(case, (torch.float32, torch.float32))


def _derivatives(operator, arguments, order):
    leaves = leaves_of(operator, arguments)
    results = operator.derivable(operator(*leaves, **first_setting(operator)))
    loss = sum(result.sum() for result in results)
    first = torch.autograd.grad(loss, wanted(leaves), create_graph=order == 2)
    if order == 1:
        return first
    loss = sum(gradient.square().sum() for gradient in first)
    return torch.autograd.grad(loss, wanted(leaves), materialize_grads=True)


def _every_allocation_fails_once(operator):
    """The first, the second, ... tensor: of every setting, and of both orders of derivatives."""
    arguments = _problem(operator)
    calls = {
        f"setting {key}": lambda setting=setting: present(operator(*arguments, **setting))
        for key, setting in operator.settings.items()
    }
    calls |= {f"order {n}": lambda n=n: _derivatives(operator, arguments, n) for n in (1, 2)}
    counts = {}
    for what, call in calls.items():
        call()  # what is made once and kept
        expected = [result.clone() for result in call()]
        counts[what] = tensor_memory.allocations(call)
        for number in range(1, counts[what] + 1):
            tensor_memory.fail_allocation(number)
            with pytest.raises(RuntimeError, match=NO_MEMORY):
                call()
            tensor_memory.fail_allocation(0)
            for one, other in zip(call(), expected, strict=True):
                assert_same_bits(one, other)
    return counts


def every_allocation_fails_once():
    print_of_each_operator(_every_allocation_fails_once)


@battery(is_native)
def test_any_allocation_may_fail(operator):
    """An error that says what happened, nothing lost, and the next call is right."""
    counts = of_each_operator(every_allocation_fails_once)[operator.name]
    assert len(counts) == len(operator.settings) + 2
    for key, setting in operator.settings.items():
        assert counts[f"setting {key}"] >= sum(operator.wanted(setting))
    assert counts["order 2"] > counts["order 1"] >= 2

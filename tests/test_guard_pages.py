"""Every tensor of a call touches a page that must not be touched: nothing is read or written
outside of arguments and results, with any number of elements, in any instruction set."""

import ctypes
import signal

import pytest
import tensor_memory
import torch
from cases import DTYPE_PAIRS, contiguous, finite_slopes, integer_values, rotated
from reference import assert_same_bits

import torch_ext  # noqa: F401  (registers the operators)

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

TAILS = range(64)
MASKS = ([True, True], [False, True], [True, False])
capability = pytest.mark.parametrize("capability", tensor_memory.capabilities())
where = pytest.mark.parametrize("where", (tensor_memory.BEHIND, tensor_memory.BEFORE))


def _shapes(tail):
    """Planes, columns, one slope, short runs: with `tail` elements behind whole vectors."""
    return (
        ((2, 2, 64 + tail), (2,)),
        ((3, 64 + tail), (64 + tail,)),
        ((128 + tail,), ()),
        ((3, 5, 1 + tail % 8, 1 + tail // 8), (5,)),
    )


def _results(input, weight, grad_output):
    yield prelu(input, weight)
    for mask in MASKS:
        yield from (gradient for gradient in prelu_backward(grad_output, input, weight, mask))


def _assert_the_same_beside(where, input, weight, grad_output):
    expected = list(_results(input, weight, grad_output))
    tensor_memory.guard_pages(where)
    guarded = [tensor.clone() for tensor in (input, weight, grad_output)]
    for tensor in guarded:
        _assert_guarded(tensor, where)
    actual = list(_results(*guarded))
    for result in actual:
        _assert_guarded(result, where)
    tensor_memory.guard_pages(None)
    for result, expectation in zip(actual, expected, strict=True):
        assert (result is None) == (expectation is None)
        if result is not None:
            assert_same_bits(result, expectation)


def _assert_guarded(tensor, where):
    """Else this test would prove nothing."""
    if tensor is not None and tensor.numel() and tensor.is_contiguous():
        end = tensor.data_ptr() + tensor.nbytes
        assert (end if where == tensor_memory.BEHIND else tensor.data_ptr()) % 4096 == 0


# ---- What runs beside guard pages --------------------------------------------------------------


def every_tail(where):
    for dtype, weight_dtype in DTYPE_PAIRS:
        for tail in TAILS:
            for shape, slopes in _shapes(tail):
                input = integer_values(shape, dtype, seed=tail)
                grad_output = integer_values(shape, dtype, seed=tail + 1, largest=3)
                weight = finite_slopes(slopes, weight_dtype)
                _assert_the_same_beside(where, input, weight, grad_output)


def every_tail_and_layout(where):
    every_tail(where)
    every_layout(where)


def every_layout(where):
    """Also where grad_output is copied first, or many tasks leave partial sums."""
    for dtype, weight_dtype in DTYPE_PAIRS:
        for layout in (contiguous, rotated):
            for shape, slopes in (((5, 7, 9, 11), (7,)), ((9, 33, 29, 31), (33,)), ((999, 70), ())):
                input = layout(integer_values(shape, dtype, seed=1))
                grad_output = integer_values(shape, dtype, seed=2, largest=3)
                weight = finite_slopes(slopes, weight_dtype)
                _assert_the_same_beside(where, input, weight, grad_output)


def large_results(where):
    """From 32 MiB on, with and without whole cache lines at the ends."""
    values = integer_values((2**23 + 34,), torch.float32)
    for extra in (0, 17):
        input = values[: 2**23 + 2 * extra].view(1, 2, -1)
        _assert_the_same_beside(where, input, torch.tensor([0.5, 2.0]), input)


def read_one_byte_outside(where):
    tensor_memory.guard_pages(where)
    tensor = torch.ones(77)
    inside = tensor.data_ptr() + (tensor.nbytes - 1 if where == tensor_memory.BEHIND else 0)
    ctypes.string_at(inside, 1)
    print("inside is fine", flush=True)
    ctypes.string_at(inside + (1 if where == tensor_memory.BEHIND else -1), 1)


# ---- Tests -------------------------------------------------------------------------------------


@where
def test_a_guard_page_is_fatal_to_who_touches_it(where):
    """Else the tests below would prove nothing."""
    done = tensor_memory.start(read_one_byte_outside, where)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "inside is fine\n"), done.stderr


@capability
@where
def test_nothing_outside_is_touched_whatever_tail_and_layout(where, capability):
    environment = {"ATEN_CPU_CAPABILITY": capability}
    tensor_memory.run(every_tail_and_layout, where, environment=environment)


@where
def test_nothing_outside_is_touched_by_stores_past_the_caches(where):
    tensor_memory.run(large_results, where)

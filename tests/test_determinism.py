"""The same bits with any number of threads, every time, and an untouched floating-point unit."""

import concurrent.futures
import contextlib
import sys
import warnings

import pytest
import torch
from cases import (
    CASES,
    EMPTY_CASES,
    Case,
    case_inputs,
    channels_last,
    finite_slopes,
    forward_backward,
    random_values,
    rotated,
    single_value,
)
from reference import assert_both_branches, assert_same_bits, same_bits

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

LARGE = (
    Case("planes", (8, 16, 64, 65), (16,)),
    Case("channels_last", (8, 19, 50, 50), (19,), channels_last),
    Case("one_slope", (700001,), ()),
    Case("one_slope_even_shares", (84 * 8335,), ()),  # of 2, 3, 4 or 7 threads
    Case("one_large_plane", (1, 2, 300007), (2,)),
    Case("wide_rows", (40, 15013), (15013,)),
    Case("tall_rows", (60001, 5), (5,)),
    Case("rotated", (33, 12, 40, 40), (12,), rotated),
    Case("expanded_grad", (8, 16, 64, 65), (16,)),
)


@pytest.fixture(params=LARGE, ids=lambda case: case.name)
def large(request, dtypes):
    dtype, weight_dtype = dtypes
    case = request.param

    def make(device):
        (input,) = case_inputs(case, dtype, device)
        grad_output = case.layout(random_values(case.shape, dtype, device, seed=1))
        grad_output = single_value(grad_output) if case.name == "expanded_grad" else grad_output
        return input, finite_slopes(case.slopes, weight_dtype, device), grad_output

    return make


def _assert_same_results(actual, expected):
    for result, expectation in zip(actual, expected):
        assert_same_bits(result, expectation)


def test_bits_do_not_depend_on_the_number_of_threads(large, threads):
    input, weight, grad_output = large("cpu")
    threads(1)
    expected = forward_backward(prelu, input, weight, grad_output)
    assert_both_branches(input, *expected)
    for count in (2, 3, 4, 7):
        threads(count)
        assert torch.get_num_threads() == count
        _assert_same_results(forward_backward(prelu, input, weight, grad_output), expected)


def test_repeats_give_the_same_bits(large, device):
    input, weight, grad_output = large(device)
    expected = forward_backward(prelu, input, weight, grad_output)
    for _ in range(20 if device == "cuda" else 5):
        _assert_same_results(forward_backward(prelu, input, weight, grad_output), expected)


def test_python_threads_do_not_disturb_each_other(device):
    input, grad_output = (
        random_values((8, 16, 40, 40), torch.float32, device, seed=seed) for seed in (1, 2)
    )
    weights = [torch.full((16,), slope, device=device) for slope in (-1.0, 0.25, 0.5, 2.0)]
    expected = [forward_backward(prelu, input, weight, grad_output) for weight in weights]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            jobs = [
                pool.submit(forward_backward, prelu, input, weight, grad_output)
                for weight in weights
            ]
            for job, expectation in zip(jobs, expected):
                _assert_same_results(job.result(), expectation)


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


def test_deterministic_mode_has_nothing_to_complain_about(large, device):
    input, weight, grad_output = large(device)
    expected = forward_backward(prelu, input, weight, grad_output)
    assert all(result.isfinite().all() for result in expected)
    with _deterministic():
        _assert_same_results(forward_backward(prelu, input, weight, grad_output), expected)


@pytest.mark.parametrize(
    "case", CASES + EMPTY_CASES, ids=[case.name for case in CASES + EMPTY_CASES]
)
def test_fresh_memory_full_of_nan_never_shows(case, dtypes, device):
    """In any layout, for any subset of the gradients."""
    dtype, weight_dtype = dtypes
    weight = finite_slopes(case.slopes, weight_dtype, device)
    for input in case_inputs(case, dtype, device):
        grad_output = random_values(case.shape, dtype, device, seed=1)
        expected = forward_backward(prelu, input, weight, grad_output)
        assert all(result.isfinite().all() for result in expected)
        with _deterministic():
            _assert_same_results(forward_backward(prelu, input, weight, grad_output), expected)
            for mask in ([True, False], [False, True]):
                gradients = prelu_backward(grad_output, input, weight, mask)
                for gradient, expectation in zip(gradients, expected[1:]):
                    assert gradient is None or same_bits(gradient, expectation)


def test_other_derivatives_work_in_deterministic_mode(device):
    """Those that are composed of PyTorch's operators: second order, forward mode, vmap."""
    input = random_values((6, 4, 5), torch.float32, device).requires_grad_()
    weight = finite_slopes((4,), torch.float32, device).requires_grad_()

    def others():
        first = torch.autograd.grad(prelu(input, weight).sum(), (input, weight), create_graph=True)
        loss = sum(gradient.square().sum() for gradient in first)
        second = torch.autograd.grad(loss, (input, weight))
        primals = input.detach(), weight.detach()
        _, tangent = torch.func.jvp(prelu, primals, primals)
        mapped = torch.func.vmap(prelu, in_dims=(0, None))(primals[0][:, None], primals[1])
        return (*second, tangent, mapped)

    expected = others()
    assert_both_branches(input, *expected)
    with _deterministic():
        _assert_same_results(others(), expected)


# ---- The floating-point environment ------------------------------------------------------------


def test_denormals_are_kept(dtype, device):
    """By the kernels, and by everything that runs after them on this and on other threads."""
    tiny = torch.finfo(dtype).tiny
    input = torch.full((3, 4, 37), -tiny, dtype=dtype, device=device)
    weight = torch.tensor([0.25, 0.5, 0.125, 0.75], dtype=dtype, device=device)
    output, grad_input, grad_weight = forward_backward(prelu, input, weight, -input)
    expected = (weight.double() * -tiny).to(dtype).view(1, 4, 1).expand(3, 4, 37)
    assert (expected != 0).all()
    assert_same_bits(output, expected.contiguous())
    assert_same_bits(grad_input, -expected.contiguous())
    grad_weight = prelu_backward(torch.ones_like(input) / 8, input, weight, [False, True])[1]
    assert_same_bits(grad_weight, torch.full_like(weight, -tiny * 3 * 37 / 8))


def test_the_floating_point_environment_is_not_touched(threads):
    threads(2)
    input = random_values((8, 16, 64, 64), torch.float32)
    forward_backward(prelu, input, finite_slopes((16,), torch.float32), input)
    smallest = sys.float_info.min
    assert smallest / 4 != 0
    assert (
        torch.full((2**18,), smallest, dtype=torch.float64) / 4 != 0
    ).all()  # on the worker threads
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: smallest / 4).result() != 0

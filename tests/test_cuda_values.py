"""CPU and CUDA give the same bits: output and input gradient always, sums where they are exact.

test_battery_values.py compares both with PyTorch's and with the float64 oracle; its long sums are held to the
bound there. Here are what only two devices can show, and sizes that fill a GPU.
"""

import pytest
import reference
import torch
import torch.nn.functional as F
from cases import (
    SLOPES,
    Case,
    case_inputs,
    case_weights,
    channels_last,
    contiguous,
    finite_slopes,
    forward_backward,
    integer_values,
    random_values,
    rotated,
    special_values,
    transposed,
)
from cuda_testing import (
    assert_same_on_both,
    needs_gpu,
    prelu,
    prelu_backward,
    run,
)
from reference import assert_both_branches, assert_grad_weight_within_bound, assert_same_bits

pytestmark = needs_gpu

BOTH = ("cpu", "cuda")

# Each fills the device: many blocks, and sums that are split among them.
LARGE = (
    Case("planes", (16, 64, 56, 56), (64,)),
    Case("odd_planes", (8, 32, 57, 59), (32,)),
    Case("planes_channels_last", (16, 64, 56, 56), (64,), channels_last),
    Case("tiny_planes", (64, 512, 7, 7), (512,)),
    Case("tiny_planes_channels_last", (64, 512, 7, 7), (512,), channels_last),
    Case("two_channels", (2, 2, 500_009), (2,)),
    Case("one_slope", (2_000_003,), ()),
    Case("one_slope_planes", (8, 16, 111, 113), (1,)),
    Case("tall_24", (40_009, 24), (24,)),
    Case("tall_3", (300_007, 3), (3,)),
    Case("tall_7", (100_003, 7), (7,)),
    Case("wide", (64, 10_240), (10_240,)),
    Case("widest", (3, 300_007), (300_007,)),
    Case("rotated", (64, 48, 20, 20), (48,), rotated),
    Case("transposed", (96, 40, 11, 30), (40,), transposed),
)


@pytest.fixture(params=LARGE, ids=lambda case: case.name)
def large(request):
    return request.param


def test_output_and_input_gradient_have_the_bits_of_the_cpu(case, dtypes):
    dtype, weight_dtype = dtypes
    inputs = zip(*(case_inputs(case, dtype, device) for device in BOTH))
    for cpu_input, cuda_input in inputs:
        cpu_grad, cuda_grad = (random_values(case.shape, dtype, device, 1) for device in BOTH)
        for weight in case_weights(case, weight_dtype):
            expected = run(cpu_input, weight, cpu_grad)[:2]
            actual = run(cuda_input, weight.cuda(), cuda_grad)[:2]
            assert_both_branches(cpu_input, *expected)
            assert_same_on_both(actual, expected)


def test_large_problems_have_the_bits_of_the_cpu(large, dtypes):
    """Ordinary values for output and input gradient; integers of -1 and 1 for exact sums."""
    dtype, weight_dtype = dtypes
    weight = finite_slopes(large.slopes, weight_dtype)
    for values in (random_values, lambda *where, **seed: integer_values(*where, **seed, largest=1)):
        (expected, input), (actual, _) = (
            _large(large, values, dtype, weight, device) for device in BOTH
        )
        assert_both_branches(input, *expected)
        exact = values is not random_values
        assert_same_on_both(actual[: 3 if exact else 2], expected[: 3 if exact else 2])


def _large(case, values, dtype, weight, device):
    input = case.layout(values(case.shape, dtype, device, seed=1))
    grad_output = case.layout(values(case.shape, dtype, device, seed=2))
    return run(input, weight.to(device), grad_output), input


def test_large_sums_are_within_the_bound(large, dtypes):
    dtype, weight_dtype = dtypes
    input, grad_output = (
        large.layout(random_values(large.shape, dtype, "cuda", seed=seed)) for seed in (3, 4)
    )
    weight = finite_slopes(large.slopes, weight_dtype, "cuda")
    _, grad_weight = prelu_backward(grad_output, input, weight, [True, True])
    assert_grad_weight_within_bound(grad_weight, grad_output, input, weight)


# ---- Special values ------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("layout", (contiguous, channels_last), ids=lambda f: f.__name__)
def test_special_values_have_the_bits_of_the_cpu(slope, layout, dtypes):
    """All pairs of sixteen inputs and sixteen gradients."""
    dtype, weight_dtype = dtypes
    values = special_values(dtype)
    inputs, grads = values.repeat_interleave(16), values.repeat(16)
    results = []
    for device in BOTH:
        input, grad_output = (
            layout(one.repeat(3).reshape(2, 3, 128).to(device)) for one in (inputs, grads)
        )
        weight = torch.full((3,), slope, dtype=weight_dtype, device=device)
        results.append(run(input, weight, grad_output))
    assert_same_on_both(results[1], results[0])
    assert results[0][2].isnan().all()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=("fp16", "bf16"))
@pytest.mark.parametrize("mixed", (False, True), ids=("one_dtype", "float32_slope"))
def test_all_16_bit_inputs_times_many_slopes_have_the_bits_of_the_cpu(dtype, mixed):
    """2^16 inputs for each of 256 slopes, denormal ones and NaN among them."""
    patterns = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    slopes = torch.arange(0, 1 << 16, 257).to(torch.int16).view(dtype)[:256]
    weight = slopes.float() * 1.001 if mixed else slopes
    input = patterns.view(1 << 16, 1).expand(1 << 16, 256).contiguous()
    assert_same_on_both([prelu(input.cuda(), weight.cuda())], [prelu(input, weight)])


def test_denormal_results_are_not_flushed(dtype):
    tiny = torch.finfo(dtype).tiny
    input = torch.full((4, 8, 33), -tiny, dtype=dtype, device="cuda")
    weight = torch.full((8,), 0.25, dtype=dtype, device="cuda")
    output, grad_input, _ = run(input, weight, input)
    assert (output == -tiny / 4).all() and (grad_input == -tiny / 4).all()
    assert tiny / 4 != 0


# ---- No farther from the truth than stock --------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", (torch.float32, torch.float16, torch.bfloat16), ids=("fp32", "fp16", "bf16")
)
def test_the_error_of_sums_is_no_larger_than_stocks(dtype):
    """Root mean square over 60 draws; stock rounds each product to the dtype, then sums."""
    squares = {"ours": 0.0, "stock": 0.0}
    for seed in range(60):
        input, grad_output = (
            random_values((8, 3, 1111), dtype, "cuda", seed=2 * seed + i) for i in (0, 1)
        )
        grad_output = grad_output / 8  # so that half can hold the sum
        weight = finite_slopes((3,), dtype, "cuda")
        exact = torch.from_numpy(reference.exact_grad_weight(grad_output, input, weight))
        for name, operator in (("ours", prelu), ("stock", F.prelu)):
            grad_weight = forward_backward(operator, input, weight, grad_output)[2]
            squares[name] += (grad_weight.cpu().double() - exact).square().sum().item()
    assert squares["stock"] > 0
    assert squares["ours"] <= squares["stock"]


def test_a_float32_slope_keeps_its_bits_under_autocast(autocast_dtype):
    """The same as on the CPU, cast by autocast there too."""
    results = []
    for device in BOTH:
        input = random_values((4, 8, 20, 20), torch.float32, device, seed=1)
        weight = torch.linspace(-0.9, 1.7, 8, device=device)
        with torch.autocast(device, dtype=autocast_dtype):
            results.append(prelu(input, weight))
    assert results[1].dtype == autocast_dtype
    assert_same_on_both(results[1:], results[:1])
    cast = random_values((4, 8, 20, 20), torch.float32, seed=1).to(autocast_dtype)
    assert_same_bits(results[0], reference.forward(cast, torch.linspace(-0.9, 1.7, 8)))

"""Sizes around warps, blocks and grids, and storage that starts anywhere, against the CPU's bits.

test_battery_layouts.py has every layout with every other one, on both devices.
"""

import math

import pytest
import torch
from cases import (
    Case,
    channels_last,
    contiguous,
    finite_slopes,
    integer_values,
    offset,
    significant_strides,
)
from cuda_testing import assert_same_on_both, needs_gpu, prelu_backward, run
from reference import assert_both_branches, assert_same_bits

pytestmark = needs_gpu

BOTH = ("cpu", "cuda")
AROUND = sorted(
    {near for power in range(5, 14) for near in (2**power - 1, 2**power, 2**power + 1)}
    | {3 * 256 - 1, 3 * 256, 3 * 256 + 1, 10_007}
)


def _exact_on_both(shape, slopes, dtypes, layout=contiguous):
    """Small integers, whose sums are exact; so all three results must agree."""
    results = []
    for device in BOTH:
        input = layout(integer_values(shape, dtypes[0], device, seed=1, largest=1))
        grad_output = layout(integer_values(shape, dtypes[0], device, seed=2, largest=1))
        weight = finite_slopes(slopes, dtypes[1], device)
        results.append(run(input, weight, grad_output))
    assert_both_branches(input, *results[0][:2])
    assert_same_on_both(results[1], results[0])
    for actual, expected in zip(results[1], results[0]):
        assert significant_strides(actual) == significant_strides(expected)


@pytest.mark.parametrize("size", AROUND)
def test_sizes_around_warps_and_blocks(size, dtypes):
    for shape, slopes in (
        ((3, size), (size,)),
        ((2, 3, size), (3,)),
        ((size, 3), (3,)),
        ((size, 40), (40,)),
        ((size,), ()),
        ((3, size, 7), (size,)),
    ):
        _exact_on_both(shape, slopes, dtypes)


@pytest.mark.parametrize("channels", (1, 3, 5, 7, 8, 24, 31, 33, 63, 65, 127, 129, 255, 257, 1000))
def test_odd_numbers_of_channels_last(channels, dtypes):
    _exact_on_both((3, channels, 13, 17), (channels,), dtypes, channels_last)
    _exact_on_both((3, channels, 13, 17), (1,), dtypes, channels_last)


@pytest.mark.parametrize("inner", (1, 2, 3, 5, 9, 15, 25, 49, 121, 127, 128, 129, 255, 257, 400))
def test_planes_of_every_small_size(inner, dtypes):
    _exact_on_both((11, 37, inner), (37,), dtypes)


# What a grid's second and third dimension could not hold, and what few threads would take long for.
LIMITS = (
    Case("many_samples", (70_001, 3, 2), (3,)),
    Case("many_rows", (140_003, 2), (2,)),
    Case("many_channels", (2, 70_001, 3), (70_001,)),
    Case("many_planes", (66_001, 5, 5), (5,)),
    Case("many_channels_of_one_sample", (1, 1_000_003), (1_000_003,)),
    Case("many_channels_last", (2, 70_001, 1, 2), (70_001,), channels_last),
    Case("one_long_channel", (1, 1, 3_000_001), (1,)),
)


@pytest.mark.parametrize("case", LIMITS, ids=lambda case: case.name)
def test_no_dimension_meets_a_limit_of_the_grid(case, dtypes):
    _exact_on_both(case.shape, case.slopes, dtypes, case.layout)


@pytest.mark.parametrize("start", range(8))
@pytest.mark.parametrize(
    "case",
    (
        Case("planes", (3, 5, 1021), (5,)),
        Case("rows", (509, 40), (40,)),
        Case("odd_rows", (701, 13), (13,)),
        Case("one_slope", (20_011,), ()),
    ),
    ids=lambda case: case.name,
)
def test_input_and_gradient_may_start_anywhere(case, start, dtypes):
    """Every pair of misalignments: 16 bytes hold 2, 4 or 8 elements."""
    dtype, weight_dtype = dtypes
    input = integer_values(case.shape, dtype, "cuda", seed=3, largest=1)
    grad_output = integer_values(case.shape, dtype, "cuda", seed=4, largest=1)
    weight = finite_slopes(case.slopes, weight_dtype, "cuda")
    expected = run(input, weight, grad_output)
    assert_both_branches(input, *expected)
    for other in range(8):
        actual = run(offset(input, start), offset(weight, other), offset(grad_output, other))
        for result, expectation in zip(actual, expected):
            assert_same_bits(result, expectation)


def test_what_lies_around_a_tensor_is_neither_read_nor_written(dtypes):
    """Its neighbours are NaN: read, they would show; written, they would be gone."""
    dtype, weight_dtype = dtypes
    for shape, slopes in (((3, 5, 77), (5,)), ((91, 13), (13,)), ((1001,), ())):
        grads = []
        for around in (0, 16):
            buffers = [
                torch.full((math.prod(shape) + 2 * around,), math.nan, dtype=dtype, device="cuda")
                for _ in range(2)
            ]
            views = [buffer[around : len(buffer) - around].view(shape) for buffer in buffers]
            for seed, view in enumerate(views):
                view.copy_(integer_values(shape, dtype, "cuda", seed=seed, largest=1))
            weight = finite_slopes(slopes, weight_dtype, "cuda")
            grads.append(prelu_backward(views[1], views[0], weight, [True, True]))
            for buffer in buffers:
                edges = torch.cat((buffer[:around], buffer[len(buffer) - around :]))
                assert edges.isnan().all()
        assert grads[0][1].abs().sum() > 0
        for one, other in zip(*grads):
            assert_same_bits(one, other)

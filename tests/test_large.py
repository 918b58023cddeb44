"""More than 2^31 elements: exact at both ends, around 2^31, and in the sum.

Inputs and gradients are anonymous memory that is zero but for some marked elements; pages that were
never written take no memory, so only results do: 4.3 GB in bfloat16.
"""

import math
import mmap
import os

import pytest
import torch

import torch_ext  # noqa: F401  (registers the operators)

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

PAST_32_BITS = 2**31 + 1032  # divisible by 8, so that shapes of it are
GIB = 2**30


def _needs(gibibytes):
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    if free < gibibytes * GIB:
        pytest.skip(f"needs {gibibytes} GiB of memory; {free / GIB:.1f} are free")


def _zeros(count, dtype):
    """Contiguous; memory is taken for what is written."""
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)


def _marked(count):
    """Indices of elements that are not zero: ends, both sides of 2^31, a few on the way."""
    return torch.tensor(
        [0, 1, 12345, count // 3, 2**31 - 1, 2**31, 2**31 + 1, count - 2, count - 1]
    )


# Where the size is: in the run of one slope, in rows, in planes, in the batch.
SHAPES = {
    "one_slope": ((PAST_32_BITS,), 1),
    "rows": ((PAST_32_BITS // 4, 4), 4),
    "planes": ((1, 2, PAST_32_BITS // 2), 2),
    "batch": ((PAST_32_BITS // 8, 2, 4), 2),
}


def _problem(name, dtype=torch.bfloat16):
    shape, slopes = SHAPES[name]
    marked = _marked(PAST_32_BITS)
    input, grad_output = _zeros(PAST_32_BITS, dtype), _zeros(PAST_32_BITS, dtype)
    # Negative and, every third, positive.
    values = torch.tensor([2.0 if i % 3 == 2 else -(i + 1.0) for i in range(len(marked))])
    input[marked], grad_output[marked] = values.to(dtype), (values.abs() + 2).to(dtype)
    weight = torch.tensor([0.5, 2.0, 4.0, 0.25][:slopes], dtype=dtype)
    return input, grad_output, weight, shape, marked


def _slope_of(marked, shape, weight):
    """The slope of each marked element, from its flat index; and which it is."""
    if len(weight) == 1:
        channel = torch.zeros_like(marked)
    else:
        channel = marked // math.prod(shape[2:]) % shape[1]
    return weight[channel], channel


def _assert_marked(result, marked, expected):
    flat = result.view(-1)
    assert flat[marked].tolist() == expected.tolist()
    # As 64-bit words: each marked element is in one, every other word must be zero.
    words = torch.unique(marked // 4).numel()
    assert torch.count_nonzero(flat.view(torch.int64)).item() == words


@pytest.mark.parametrize("name", ("one_slope", "rows", "planes", "batch"))
def test_the_sum_of_more_than_two_to_the_31_terms_is_exact(name):
    """Reads what is not there: takes no memory."""
    input, grad_output, weight, shape, marked = _problem(name)
    x, g = input[marked].double(), grad_output[marked].double()
    _, channel = _slope_of(marked, shape, weight)
    terms = torch.where(x > 0, 0, x * g)
    expected = torch.zeros(len(weight), dtype=torch.float64).index_add_(0, channel, terms)
    arguments = grad_output.view(shape), input.view(shape), weight
    _, grad_weight = prelu_backward(*arguments, [False, True])
    assert (expected != 0).all()
    assert grad_weight.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ("one_slope", "rows"))
def test_an_output_of_more_than_two_to_the_31_elements_is_exact(name):
    _assert_output_is_exact(*_problem(name))


@pytest.mark.full
@pytest.mark.parametrize("name", SHAPES)
def test_results_are_exact_wherever_the_size_is(name):
    problem = _problem(name)
    _assert_output_is_exact(*problem)
    _assert_grad_input_is_exact(*problem)


def _assert_output_is_exact(input, grad_output, weight, shape, marked):
    _needs(6)
    slope, _ = _slope_of(marked, shape, weight)
    x = input[marked]
    output = prelu(input.view(shape), weight)
    _assert_marked(output, marked, torch.where(x > 0, x, slope * x))


def _assert_grad_input_is_exact(input, grad_output, weight, shape, marked):
    _needs(6)
    slope, _ = _slope_of(marked, shape, weight)
    x, g = input[marked], grad_output[marked]
    arguments = grad_output.view(shape), input.view(shape), weight
    grad_input, _ = prelu_backward(*arguments, [True, False])
    _assert_marked(grad_input, marked, torch.where(x > 0, g, slope * g))


@pytest.mark.full
def test_an_input_that_one_element_was_expanded_to():
    """It is written out first, as its gradient is: 13 GB."""
    _needs(16)
    input = torch.full((1,), -3.0, dtype=torch.bfloat16).expand(PAST_32_BITS)
    grad_output = torch.full((1,), 0.5, dtype=torch.bfloat16).expand(PAST_32_BITS)
    weight = torch.tensor([0.25], dtype=torch.float32)
    ends = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, PAST_32_BITS - 1]
    output = prelu(input, weight)
    assert output[ends].tolist() == [-0.75] * len(ends)
    assert (output.view(torch.int64) == output.view(torch.int64)[0]).all()
    del output
    grad_input, grad_weight = prelu_backward(grad_output, input, weight, [True, True])
    assert grad_input[ends].tolist() == [0.125] * len(ends)
    assert grad_weight.item() == torch.tensor(-1.5 * PAST_32_BITS, dtype=torch.float64).float()


def test_a_slope_for_each_of_many_channels():
    """Ten million channels of one dimension each, and as many slopes."""
    channels = 10**7 + 3
    input = torch.where(torch.arange(channels) % 3 == 0, 1.0, -1.0).view(1, channels)
    weight = torch.arange(channels, dtype=torch.float32)
    output = prelu(input, weight)
    assert torch.equal(output, torch.where(input > 0, 1.0, -weight))
    _, grad_weight = prelu_backward(output, input, weight, [False, True])
    assert torch.equal(grad_weight, torch.where(input[0] > 0, 0.0, weight))

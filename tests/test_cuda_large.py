"""More than 2^31 and more than 2^32 elements: both ends, both sides of the boundary, exact sums.

Inputs are 1 but for few -1 at known places, so that every sum is a small integer; results are
compared with the definition in pieces that 32-bit indices can hold.
"""

import pytest
import torch
from cases import channels_last, contiguous, significant_strides
from cuda_testing import TWO_TO_31, need_memory, needs_gpu, prelu, prelu_backward

pytestmark = needs_gpu

PIECE = 1 << 28
EVERY = 65_537  # one negative element in so many: no power of two, so channels get different shares
SLOPE = 0.5

# Which of the dimensions carries the size.
SHAPES = {
    "one_channel": ((1, 1, TWO_TO_31 + 1031), (1,)),
    "shared": ((3, TWO_TO_31 // 3 + 1031), (1,)),
    "samples": ((TWO_TO_31 // 12 + 7, 3, 4), (3,)),
    "planes": ((2, 3, TWO_TO_31 // 6 + 1031), (3,)),
    "rows": ((TWO_TO_31 // 24 + 1031, 24), (24,)),
    "channels": ((TWO_TO_31 // 1_000_003 + 1, 1_000_003), (1_000_003,)),
    "odd_channels_last": ((1, 3, TWO_TO_31 // 3 + 1031), (3,)),
    "above_2_to_32": ((1, 2, TWO_TO_31 + 1031), (2,)),
}


@pytest.fixture(params=SHAPES, ids=SHAPES)
def problem(request):
    """input, grad_output (the same memory, to save some), weight, places of the negative ones."""
    shape, slopes = SHAPES[request.param]
    count = 1
    for size in shape:
        count *= size
    need_memory(9 * count)  # four tensors of 2 bytes, and pieces
    flat = torch.ones(count, dtype=torch.bfloat16, device="cuda")
    flat[::EVERY] = -1
    special = [0, count - 1, TWO_TO_31 - 1, TWO_TO_31, TWO_TO_31 + 1]
    special = [at for at in special if at < count]
    for at in special:
        flat[at] = -1
    places = torch.arange(0, count, EVERY, device="cuda")
    places = torch.cat((places, torch.tensor(special, device="cuda"))).unique()
    assert (flat < 0).sum() == len(places)
    layout = channels_last if request.param.endswith("channels_last") else contiguous
    if layout is channels_last:
        input = flat.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
        channel_of = places % shape[1]
    else:
        input = flat.view(shape)
        inner = count // (shape[0] * shape[1])
        channel_of = places // inner % shape[1]
    assert input.numel() > TWO_TO_31
    yield input, flat, torch.full(slopes, SLOPE, dtype=torch.bfloat16, device="cuda"), channel_of
    del input, flat
    torch.cuda.empty_cache()


def _in_memory_order(tensor, like):
    """As one dimension, in the order of memory."""
    assert significant_strides(tensor) == significant_strides(like)
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def _assert_selected(result, flat):
    """1 where the input was positive, the slope's share where it was not; piece by piece."""
    for start in range(0, len(flat), PIECE):
        piece = flat[start : start + PIECE]
        expected = torch.where(piece > 0, piece, piece * SLOPE)
        assert torch.equal(result[start : start + PIECE], expected), f"after element {start}"


def test_forward(problem):
    input, flat, weight, _ = problem
    output = prelu(input, weight)
    _assert_selected(_in_memory_order(output, input), flat)


def test_backward(problem):
    """The gradient is the input itself: grad_input is then the output, and each term is 1."""
    input, flat, weight, channel_of = problem
    grad_input, grad_weight = prelu_backward(input, input, weight.float(), [True, True])
    _assert_selected(_in_memory_order(grad_input, input), flat)
    counts = torch.bincount(channel_of * (weight.numel() > 1), minlength=weight.numel())
    assert counts.sum() > TWO_TO_31 // EVERY
    assert torch.equal(grad_weight, counts.float())


def test_a_hundred_million_channels():
    channels = min(10**8, TWO_TO_31 // 8)
    need_memory(40 * channels)
    input = torch.ones((2, channels), device="cuda")
    input[:, ::3] = -1
    weight = torch.full((channels,), SLOPE, device="cuda")
    output = prelu(input, weight)
    assert torch.equal(output, torch.where(input > 0, input, SLOPE * input))
    grad_input, grad_weight = prelu_backward(input, input, weight, [True, True])
    assert torch.equal(grad_input, output)
    expected = torch.zeros(channels, device="cuda")
    expected[::3] = 2
    assert torch.equal(grad_weight, expected)

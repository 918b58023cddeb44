"""Compiled by Inductor, under every policy, results stay the operators'."""

import itertools
import re

import pytest
import torch
from cases import (
    DTYPE_PAIRS,
    MIXED,
    channels_last,
    finite_slopes,
    forward_backward,
    integer_values,
    random_values,
)
from inductor_graphs import Inductor, _as_it_was  # noqa: F401  (a fixture)
from reference import assert_both_branches, assert_same_bits
from torch import nn
from torch._inductor.utils import run_and_get_code

import torch_ext
from torch_ext.inductor import POLICIES

pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
    ),
]

prelu = torch.ops.torch_ext.prelu

IMAGES = (4, 16, 14, 14)


SHAPES = {
    "image": ((3, 6, 5, 7), (6,)),
    "rows": ((11, 7), (7,)),
    "sequence": ((3, 5, 7), (5,)),
    "volume": ((2, 3, 4, 3, 2), (3,)),
    "one_slope": ((3, 6, 5), (1,)),
    "slope_0d": ((3, 6, 5), ()),
    "vector": ((40,), (1,)),
    "vector_slope_0d": ((40,), ()),
    "scalar": ((), (1,)),
    "scalar_slope_0d": ((), ()),
    "one_channel": ((5, 1, 8), (1,)),
    "empty": ((0, 3, 4), (3,)),
}


# Taken apart, the formula depends on the number of dimensions, and casts on the types. The other policies choose
# between that and the whole operator.
TRIED = [
    *itertools.product(["decompose"], SHAPES, (MIXED[1], DTYPE_PAIRS[1])),
    *itertools.product(["decompose"], ["image"], DTYPE_PAIRS),
    *itertools.product(POLICIES, ["image"], (MIXED[1], DTYPE_PAIRS[1])),
]


@pytest.mark.parametrize(("policy", "shape", "dtypes"), dict.fromkeys(TRIED))
def test_every_policy_has_the_results_of_eager(policy, shape, dtypes, device):
    """To the bit: the values are integers, whose sums are exact in any order."""
    shape, slopes = SHAPES[shape]
    dtype, weight_dtype = dtypes
    torch_ext.inductor.set_compile(policy)
    input, grad_output = (integer_values(shape, dtype, device, seed=seed) for seed in (1, 2))
    weight = integer_values(slopes, weight_dtype, device, seed=3) / 4
    inductor = Inductor()
    compiled = torch.compile(lambda *args: prelu(*args), backend=inductor, fullgraph=True)
    actual = forward_backward(compiled, input, weight, grad_output)
    expected = forward_backward(prelu, input, weight, grad_output)
    if input.numel() > 1:
        assert_both_branches(input, *expected)
    assert inductor.whole == ((1, 1) if policy == "opaque" else (0, 0))
    for one, other in zip(actual, expected):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert_same_bits(one, other)


def test_special_values_pass_through_formulas_that_were_taken_apart(device):
    """Infinite and NaN gradients of positive inputs, which the slope's gradient must not see."""
    inf, nan = float("inf"), float("nan")
    input = torch.tensor([[1.0, -2.0, 0.0, -0.0, inf, -inf, nan, 3.0]], device=device).T
    grad_output = torch.tensor([[inf, 2.0, 3.0, -3.0, nan, 1.0, 1.0, nan]], device=device).T
    for slope in (0.25, 0.0, -1.5, inf, nan):
        weight = torch.tensor([slope], device=device)
        torch_ext.inductor.set_compile("decompose")
        for rows in (slice(None), slice(0, 4), slice(4, 5)):
            torch._dynamo.reset()
            compiled = torch.compile(lambda *args: prelu(*args), backend=Inductor(), fullgraph=True)
            tensors, grad = (input[rows], weight), grad_output[rows]
            actual = forward_backward(compiled, *tensors, grad)
            for one, other in zip(actual, forward_backward(prelu, *tensors, grad)):
                assert_same_bits(one, other)


def test_16_bit_sums_do_not_pass_through_16_bits(mixed_dtypes, device):
    dtype, _ = mixed_dtypes
    torch_ext.inductor.set_compile("decompose")
    input = torch.full((4096, 2), -255.0, dtype=dtype, device=device)
    weight = torch.full((2,), 0.25, device=device)
    compiled = torch.compile(lambda *args: prelu(*args), backend=Inductor(), fullgraph=True)
    *_, grad_weight = forward_backward(compiled, input, weight, torch.full_like(input, 255.0))
    assert grad_weight.tolist() == [-255.0 * 255.0 * 4096] * 2


@pytest.mark.parametrize("policy", POLICIES)
def test_generated_code_has_the_results_of_eager(policy, device):
    """All the way: code is generated, compiled and run."""
    torch_ext.inductor.set_compile(policy)
    input = channels_last(integer_values((3, 32, 9, 7), torch.float32, device, seed=1))
    weight = finite_slopes((32,), torch.float32, device)
    grad_output = integer_values(input.shape, torch.float32, device, seed=2)
    compiled = torch.compile(lambda *args: prelu(*args), fullgraph=True)
    actual = forward_backward(compiled, input, weight, grad_output)
    expected = forward_backward(prelu, input, weight, grad_output)
    assert_both_branches(input, *expected)
    for one, other in zip(actual, expected):
        assert_same_bits(one, other)
        assert one.stride() == other.stride()


PRODUCERS = {
    # what comes before the operator, and how many tensors Inductor's code makes for it
    "transposed_view": (lambda x: x.transpose(1, 3), 0),
    "sliced_view": (lambda x: x[:, :, 1:], 0),
    "elementwise_of_a_transposed_view": (lambda x: x.transpose(1, 3) * 2, 1),
    "elementwise_of_channels_last": (lambda x: channels_last(x) * 2, 1),
}


@pytest.mark.parametrize("producer, made", PRODUCERS.values(), ids=PRODUCERS)
def test_no_copy_is_made_for_an_operator_left_whole(producer, made, device):
    torch_ext.inductor.set_compile("opaque")
    input = channels_last(random_values((4, 16, 14, 16), torch.float32, device))
    weight = finite_slopes((16,), torch.float32, device)

    def function(input, weight):
        return prelu(producer(input), weight)

    with torch.no_grad():
        actual, code = run_and_get_code(torch.compile(function, fullgraph=True), input, weight)
    expected = function(input, weight)
    assert_both_branches(input, expected)
    assert_same_bits(actual, expected)
    (text,) = code
    assert "torch_ext.prelu" in text
    assert len(re.findall(r"= empty_strided_\w+\(", text)) == made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_reduce_overhead_replays_a_training_step():
    module = nn.Sequential(torch_ext.PReLU(16), torch_ext.PReLU(16)).cuda()
    compiled = torch.compile(module, mode="reduce-overhead", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for seed in range(5):
        input = random_values(IMAGES, torch.float32, "cuda", seed=seed).requires_grad_()
        (actual,) = torch.autograd.grad(compiled(input).sum(), input)
        (expected,) = torch.autograd.grad(module(input).sum(), input)
        assert_same_bits(actual, expected)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0

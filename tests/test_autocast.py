"""Mixed precision of PReLU: a float32 slope stays float32, in and out."""

import pytest
import reference
import torch
import torch.nn.functional as F
from cases import finite_slopes, forward_backward, integer_values, random_values
from reference import assert_both_branches, assert_same_bits, dtype_or_error

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


@pytest.mark.parametrize("input_dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_a_float32_slope_is_used_as_it_is(input_dtype, autocast_dtype, device):
    input = random_values((4, 3, 50), input_dtype, device)
    weight = torch.tensor([0.1, -0.3, 1.7], device=device)
    with torch.autocast(device, dtype=autocast_dtype):
        output = prelu(input, weight)
    cast = input.to(autocast_dtype)
    assert_both_branches(input, output)
    assert_same_bits(output, reference.forward(cast, weight))
    assert not torch.equal(output, F.prelu(cast, weight.to(autocast_dtype)))


def test_output_has_pytorchs_bits_where_the_slope_is_representable(autocast_dtype, device):
    input = random_values((4, 3, 50), torch.float32, device)
    weight = torch.tensor([0.25, -0.5, 1.5], device=device)
    with torch.autocast(device, dtype=autocast_dtype):
        output, pytorchs = prelu(input, weight), F.prelu(input, weight)
    assert_both_branches(input, output)
    assert_same_bits(output, pytorchs)


def test_a_weight_of_the_other_16_bit_type_is_cast(autocast_dtype, device):
    other = {torch.float16: torch.bfloat16, torch.bfloat16: torch.float16}[autocast_dtype]
    input, weight = (
        random_values((4, 3, 50), torch.float32, device),
        finite_slopes((3,), other, device),
    )
    with torch.autocast(device, dtype=autocast_dtype):
        assert_same_bits(prelu(input, weight), F.prelu(input, weight))


def test_the_weight_gradient_never_passes_through_16_bits(autocast_dtype, device):
    """Each sum is -3093, which neither 16-bit type can hold."""
    assert torch.tensor(-3093.0).to(autocast_dtype).item() != -3093
    input = torch.full((3, 3, 1031), -1.0, device=device).requires_grad_()
    weight = torch.tensor([0.1, -0.3, 1.7], device=device).requires_grad_()
    with torch.autocast(device, dtype=autocast_dtype):
        prelu(input, weight).sum().backward()
    assert weight.grad.dtype == torch.float32 and input.grad.dtype == torch.float32
    assert weight.grad.tolist() == [-3093.0] * 3


def test_gradients_are_those_of_the_mixed_pair(autocast_dtype, device):
    input = integer_values((4, 3, 50), torch.float32, device)
    weight = torch.tensor([0.1, -0.3, 1.7], device=device)
    grad_output = integer_values((4, 3, 50), autocast_dtype, device, seed=1)

    def under_autocast(input, weight):
        with torch.autocast(device, dtype=autocast_dtype):
            return prelu(input, weight)

    _, grad_input, grad_weight = forward_backward(under_autocast, input, weight, grad_output)
    expected = prelu_backward(grad_output, input.to(autocast_dtype), weight, [True, True])
    assert_both_branches(input, *expected)
    assert_same_bits(grad_input, expected[0].float())
    assert_same_bits(grad_weight, expected[1])


def test_backward_inside_the_region_changes_nothing(autocast_dtype, device):
    input, grad_output = (
        integer_values((4, 3, 50), torch.float32, device),
        integer_values((4, 3, 50), autocast_dtype, device),
    )
    weight = torch.tensor([0.1, -0.3, 1.7], device=device)

    def region(inside):
        tensors = input.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast(device, dtype=autocast_dtype):
            output = prelu(*tensors)
            if inside:
                return torch.autograd.grad(output, tensors, grad_output)
        return torch.autograd.grad(output, tensors, grad_output)

    for inside, outside in zip(region(True), region(False)):
        assert_same_bits(inside, outside)


def test_the_weight_gradient_does_not_overflow_where_pytorchs_does(device):
    """-200,000 is beyond float16, in which PyTorch holds the gradient before it is cast back."""
    input = torch.full((4, 3, 50000), -1.0, device=device)

    def gradient(operator):
        weight = torch.tensor([0.25, -0.5, 1.5], device=device).requires_grad_()
        with torch.autocast(device, dtype=torch.float16):
            output = operator(input, weight)
        assert output.dtype == torch.float16
        output.sum(dtype=torch.float32).backward()
        return weight.grad

    assert gradient(F.prelu).tolist() == [-float("inf")] * 3
    assert gradient(prelu).tolist() == [-200000.0] * 3


# ---- In a network ------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_dtype", (torch.float32, torch.bfloat16), ids=str)
def test_a_layer_in_a_network_trains_under_autocast(weight_dtype, device):
    """Behind a layer whose output is 16-bit, as in every real model; for two steps."""
    linear = torch.nn.Linear(6, 4, device=device)
    weight = torch.full((4,), 0.25, dtype=weight_dtype, device=device).requires_grad_()
    for _ in range(2):
        with torch.autocast(device, dtype=torch.bfloat16):
            hidden = linear(random_values((8, 6), torch.float32, device))
            output = prelu(hidden, weight)
            pytorchs = F.prelu(hidden, weight)
        assert hidden.dtype == output.dtype == torch.bfloat16
        assert_same_bits(output, pytorchs)
        output.float().square().sum().backward()
    assert weight.grad.dtype == weight_dtype and weight.grad.norm() > 0
    assert linear.weight.grad.norm() > 0


def test_errors_under_autocast_are_pytorchs(device):
    input = torch.ones(2, 3, device=device)
    for weight in (
        torch.ones(4, device=device),
        torch.ones(1, 1, device=device),
        torch.ones(3, 1, device=device),
    ):
        with torch.autocast(device, dtype=torch.bfloat16):
            assert dtype_or_error(prelu, input, weight) == dtype_or_error(F.prelu, input, weight)

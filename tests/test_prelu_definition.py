"""What PReLU is, beyond its formula: other functions that it includes, roundings of mixed dtypes, tangents."""

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from cases import finite_slopes, forward_backward, integer_values, random_values
from reference import assert_both_branches, assert_same_bits
from torch.autograd import forward_ad

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


def test_a_slope_of_zero_is_relu_but_for_the_sign_of_zero(dtype, device):
    input = random_values((5, 4, 33), dtype, device)
    weight = torch.zeros(4, dtype=dtype, device=device)
    output = prelu(input, weight)
    assert_both_branches(input, output)
    assert torch.equal(output, F.relu(input))
    negative = input < 0
    assert output[negative].signbit().all() and not F.relu(input)[negative].signbit().any()


def test_a_slope_of_001_is_leaky_relu(dtypes, device):
    """In 16 bits with a float32 slope: F.leaky_relu, too, keeps its slope in float32."""
    dtype, weight_dtype = dtypes
    if dtype == weight_dtype and dtype.itemsize == 2:
        weight_dtype = torch.float32
    input = random_values((5, 4, 33), dtype, device)
    output = prelu(input, torch.full((4,), 0.01, dtype=weight_dtype, device=device))
    assert_both_branches(input, output)
    assert_same_bits(output, F.leaky_relu(input, 0.01))


def test_a_float32_slope_is_not_rounded_to_16_bits(mixed_dtypes, device):
    """The sample holds products that any other order of roundings gets wrong."""
    dtype, weight_dtype = mixed_dtypes
    input = random_values((4, 8, 181, 181), dtype, seed=6)
    weight = torch.linspace(-0.9, 1.7, 8, dtype=weight_dtype)
    slopes = weight.view(1, 8, 1, 1)
    expected = reference.forward(input, weight)
    assert (torch.where(input > 0, input, slopes.to(dtype) * input) != expected).sum() > 1000
    exact = torch.where(input > 0, input.double(), slopes.double() * input.double())
    half_ulp = torch.from_numpy(reference.ulp(exact.numpy(), dtype)) / 2
    assert ((expected - exact).abs() > half_ulp).any(), (
        "no product here shows that float32 comes first"
    )
    assert_same_bits(prelu(input.to(device), weight.to(device)), expected.to(device))


# ---- Where data are infinite -------------------------------------------------------------------

INFINITE = [math.inf, math.inf, 2.0, -2.0, -3.0]


def _jvp_of_dual_numbers(function, primals, tangents):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(primal, t) for primal, t in zip(primals, tangents)]
        return forward_ad.unpack_dual(function(*duals)).tangent


def _jvp_of_transform(function, primals, tangents):
    return torch.func.jvp(function, tuple(primals), tuple(tangents))[1]


@pytest.mark.parametrize("jvp", (_jvp_of_dual_numbers, _jvp_of_transform))
def test_tangents_are_finite_where_data_are_infinite_as_pytorchs(jvp, device):
    """Where they are positive: a product of the slope's tangent, 0 there, and infinity is NaN."""
    x = torch.tensor([INFINITE], dtype=torch.float64, device=device)
    w = torch.tensor(0.25, dtype=torch.float64, device=device)
    g = torch.tensor([[1.0, math.inf, math.inf, 4.0, 5.0]], dtype=x.dtype, device=device)
    dx, dw, dg = torch.full_like(x, 3.0), torch.full_like(w, 5.0), torch.full_like(g, 7.0)
    outputs = [jvp(operator, (x, w), (dx, dw)) for operator in (prelu, F.prelu)]
    assert outputs[0].tolist() == [[3.0, 3.0, 3.0, 0.25 * 3 - 2 * 5, 0.25 * 3 - 3 * 5]]
    assert_same_bits(*outputs)

    def grad_input(g, x, w):
        return prelu_backward(g, x, w, [True, False])[0]

    tangent = jvp(grad_input, (g, x, w), (dg, dx, dw))
    assert tangent.tolist() == [[7.0, 7.0, 7.0, 0.25 * 7 + 4 * 5, 0.25 * 7 + 5 * 5]]


# ---- Modules ---------------------------------------------------------------------------------------


def test_a_module_pushes_tangents_of_its_slopes(device):
    """As with PyTorch's, a dual number stands in for the Parameter."""
    module = torch_ext.PReLU(3, device=device)
    input = integer_values((4, 3, 5), torch.float32, device)
    slopes = module.weight.detach()
    del module.weight
    with forward_ad.dual_level():
        module.weight = forward_ad.make_dual(slopes, torch.full_like(slopes, 2.0))
        tangent = forward_ad.unpack_dual(module(input)).tangent
    assert_both_branches(input, tangent)
    assert torch.equal(tangent, torch.where(input > 0, 0, 2 * input))


def test_functional_call_with_stacked_weights_is_an_ensemble(device):
    nets = [torch_ext.PReLU(3, dtype=torch.float64, device=device) for _ in range(4)]
    for scale, net in enumerate(nets, 1):
        net.weight.data = scale * finite_slopes((3,), torch.float64, device)
    parameters, _ = torch.func.stack_module_state(nets)
    input = random_values((6, 3, 4), torch.float64, device)
    outputs = torch.func.vmap(
        lambda p, x: torch.func.functional_call(nets[0], p, (x,)), in_dims=(0, None)
    )(parameters, input)
    assert_both_branches(input, outputs)
    assert_same_bits(outputs, torch.stack([net(input) for net in nets]))


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

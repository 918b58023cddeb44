"""Forward-mode AD with dual numbers: both operators, every operand, zeros on the slope's side."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import channels_last, contiguous, expanded, integer_values, step_2
from reference import assert_both_branches, assert_same_bits
from torch.autograd import forward_ad

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

SHAPES = {"image": ((4, 3, 5, 4), (3,)), "shared": ((6, 4), (1,)), "vector": ((24,), ())}


@pytest.fixture(autouse=True)
def _dual_level():
    with forward_ad.dual_level():
        yield


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def operands(request, dtypes, device):
    """(input, weight, grad_output) and their tangents: integers and powers of two, so that nothing
    is rounded in any dtype; a fifth of the inputs are zeros, of both signs."""
    (shape, slopes), (dtype, weight_dtype) = request.param, dtypes
    input = integer_values(shape, dtype, device, seed=1, largest=2)
    input.view(-1)[::10], input.view(-1)[5::10] = 0.0, -0.0
    weight = torch.tensor([-0.5, 2.0, 0.25], dtype=weight_dtype, device=device)
    weight = weight[: slopes[0]] if slopes else weight[0]
    grad_output = integer_values(shape, dtype, device, seed=2, largest=2)
    assert_both_branches(input)
    tangents = [
        integer_values(tensor.shape, tensor.dtype, device, seed=seed, largest=2)
        for seed, tensor in enumerate((input, weight, grad_output), 3)
    ]
    return [input, weight, grad_output], tangents


def _duals(primals, tangents, chosen):
    """Dual numbers of the chosen operands, and all tangents with zeros for the others."""
    duals = [
        forward_ad.make_dual(primal, tangent) if dual else primal
        for primal, tangent, dual in zip(primals, tangents, chosen)
    ]
    return duals, [t if dual else torch.zeros_like(t) for t, dual in zip(tangents, chosen)]


def _broadcast(slopes, input):
    return slopes.double().reshape([-1] + [1] * (input.dim() - 2)) if slopes.dim() else slopes


def _sum_to(terms, weight):
    if weight.numel() == 1:
        return terms.sum().reshape(weight.shape)
    return terms.movedim(1, 0).reshape(weight.numel(), -1).sum(1)


def _subsets(count):
    return [chosen for chosen in itertools.product((False, True), repeat=count) if any(chosen)]


@pytest.mark.parametrize("chosen", _subsets(2), ids=str)
def test_the_tangent_of_the_output(chosen, operands):
    """x > 0 ? dx : w·dx + x·dw"""
    (input, weight), tangents = operands[0][:2], operands[1][:2]
    duals, (dx, dw) = _duals((input, weight), tangents, chosen)
    output, tangent = forward_ad.unpack_dual(prelu(*duals))
    x = input.double()
    expected = torch.where(
        x > 0, dx.double(), _broadcast(weight, x) * dx.double() + x * _broadcast(dw, x)
    )
    assert_same_bits(output, prelu(input, weight))
    assert tangent.dtype == output.dtype == input.dtype
    assert torch.equal(tangent.double(), expected) and tangent.norm() > 0


@pytest.mark.parametrize("chosen", _subsets(3), ids=str)
def test_the_tangents_of_both_gradients(chosen, operands):
    """grad_input: x > 0 ? dg : w·dg + g·dw; grad_weight: the sum of x > 0 ? 0 : x·dg + g·dx"""
    (input, weight, grad_output), tangents = operands
    duals, (dx, dw, dg) = _duals((input, weight, grad_output), tangents, chosen)
    results = prelu_backward(duals[2], duals[0], duals[1], [True, True])
    primals = prelu_backward(grad_output, input, weight, [True, True])
    x, g = input.double(), grad_output.double()
    by_input = torch.where(
        x > 0, dg.double(), _broadcast(weight, x) * dg.double() + g * _broadcast(dw, x)
    )
    by_weight = _sum_to(torch.where(x > 0, 0, x * dg.double() + g * dx.double()), weight)
    for result, primal, expected in zip(results, primals, (by_input, by_weight)):
        unpacked = forward_ad.unpack_dual(result)
        assert torch.equal(unpacked.primal, primal)
        if unpacked.tangent is None:  # none of the operands that it depends on has one
            assert not expected.any()
        else:
            assert unpacked.tangent.dtype == primal.dtype
            assert torch.equal(unpacked.tangent.double(), expected)


@pytest.mark.parametrize("mask", ([True, False], [False, True], [False, False]), ids=str)
def test_a_gradient_that_is_masked_off_is_none_for_dual_numbers_too(mask, operands):
    duals, _ = _duals(*operands, (True, True, True))
    results = prelu_backward(duals[2], duals[0], duals[1], mask)
    for result, wanted in zip(results, mask):
        assert (result is not None) == wanted
        assert not wanted or forward_ad.unpack_dual(result).tangent is not None


@pytest.mark.parametrize(
    "layout", (contiguous, channels_last, step_2, expanded), ids=lambda f: f.__name__
)
def test_layouts_of_tangents_do_not_matter(layout, device):
    input = channels_last(integer_values((4, 3, 5, 4), torch.float64, device, seed=1))
    weight = torch.tensor([-0.5, 2.0, 0.25], dtype=torch.float64, device=device)
    tangent = layout(integer_values((4, 3, 5, 4), torch.float64, device, seed=2))
    dual = forward_ad.make_dual(input, tangent)
    ours, stock = (forward_ad.unpack_dual(f(dual, weight)).tangent for f in (prelu, F.prelu))
    assert_both_branches(input, ours)
    assert_same_bits(ours, stock)


def test_forward_over_reverse_and_reverse_over_forward_agree_at_zero(device):
    """The product of the Hessian of <u, prelu(x, w)> with a direction, both ways."""
    input = torch.tensor([[0.0, -0.0, 2.0, -2.0]], dtype=torch.float64, device=device)
    weight = torch.tensor([0.25], dtype=torch.float64, device=device)
    u = torch.tensor([[2.0, 4.0, 8.0, 16.0]], dtype=torch.float64, device=device)
    dx, dw = torch.full_like(input, 3.0), torch.full_like(weight, 5.0)
    leaves = input.clone().requires_grad_(), weight.clone().requires_grad_()

    duals = [forward_ad.make_dual(leaf, t) for leaf, t in zip(leaves, (dx, dw))]
    gradients = torch.autograd.grad(prelu(*duals), duals, u)
    forward_over_reverse = [forward_ad.unpack_dual(g).tangent for g in gradients]

    duals = [forward_ad.make_dual(leaf, t) for leaf, t in zip(leaves, (dx, dw))]
    tangent = forward_ad.unpack_dual(prelu(*duals)).tangent
    reverse_over_forward = torch.autograd.grad((u * tangent).sum(), leaves)

    # d/dx is u·dw and d/dw the sum of u·dx, both on the slope's side only.
    for by_input, by_weight in (forward_over_reverse, reverse_over_forward):
        assert by_input.tolist() == [[10.0, 20.0, 0.0, 80.0]]
        assert by_weight.tolist() == [3.0 * (2 + 4 + 16)]


def test_a_module_pushes_tangents_of_its_slopes(device):
    """As with stock's, a dual number stands in for the Parameter."""
    module = torch_ext.PReLU(3, device=device)
    input = integer_values((4, 3, 5), torch.float32, device)
    slopes = module.weight.detach()
    del module.weight
    module.weight = forward_ad.make_dual(slopes, torch.full_like(slopes, 2.0))
    tangent = forward_ad.unpack_dual(module(input)).tangent
    assert_both_branches(input, tangent)
    assert torch.equal(tangent, torch.where(input > 0, 0, 2 * input))


def test_tangents_need_forward_mode_and_no_reverse_mode(device):
    input = torch.tensor([-1.0, 2.0], device=device)
    weight = torch.tensor(0.25, device=device)
    dual = forward_ad.make_dual(input, torch.ones_like(input))
    with torch.no_grad():  # is about reverse mode only
        assert forward_ad.unpack_dual(prelu(dual, weight)).tangent.tolist() == [0.25, 1.0]
    with forward_ad._set_fwd_grad_enabled(False):
        assert forward_ad.unpack_dual(prelu(dual, weight)).tangent is None
    assert forward_ad.unpack_dual(prelu(input, weight)).tangent is None

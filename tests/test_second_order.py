"""Second derivatives by hand: every layout, every dtype, and the strict > at zero."""

import pytest
import torch
import torch.nn.functional as F
from cases import (
    LAYOUTS,
    channels_last,
    contiguous,
    expanded,
    expanded_batch,
    integer_values,
    single_value,
    step_2,
)
from reference import assert_both_branches
from torch.autograd import forward_ad

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


def _second_order(input, weight, grad_output, grad_grad_input, grad_grad_weight):
    """Gradients of <ggi, grad_input> + <ggw, grad_weight>: the contract's strict >, in float64."""
    x, w, g, v = (
        tensor.detach().double() for tensor in (input, weight, grad_output, grad_grad_input)
    )
    u = grad_grad_weight.detach().double()
    if weight.numel() != 1:
        w, u = (t.view([-1] + [1] * (x.dim() - 2)) for t in (w, u))
    by_grad_output = torch.where(x > 0, v, w * v + u * x)
    by_input = torch.where(x > 0, 0, u * g)
    terms = torch.where(x > 0, 0, g * v)
    by_weight = (
        terms.sum()
        if weight.numel() == 1
        else terms.movedim(1, 0).reshape(weight.numel(), -1).sum(1)
    )
    return (
        by_grad_output.to(grad_output),
        by_input.to(input),
        by_weight.reshape(weight.shape).to(weight),
    )


GRAD_LAYOUTS = LAYOUTS | {f.__name__: f for f in (expanded, expanded_batch, single_value)}


@pytest.mark.parametrize("grad_layout", GRAD_LAYOUTS.values(), ids=GRAD_LAYOUTS)
@pytest.mark.parametrize("layout", (contiguous, channels_last, step_2), ids=lambda f: f.__name__)
def test_second_order_takes_every_layout_of_every_gradient(layout, grad_layout, dtypes, device):
    """gradgradcheck feeds contiguous ones only. Integers, zeros, powers of two: always exact."""
    dtype, weight_dtype = dtypes
    for shape, slopes in (((2, 4, 5, 4), (4,)), ((3, 5, 7), ()), ((6, 5), (5,))):
        values = integer_values(shape, dtype, device, seed=1, largest=2)
        values.view(-1)[::7] = 0
        input = layout(values).requires_grad_()
        weight = torch.tensor([-0.5, 2.0, 0.25, 1.0, -2.0], dtype=weight_dtype, device=device)
        weight = (weight[: slopes[0]] if slopes else weight[0]).clone().requires_grad_()
        grads = [
            grad_layout(integer_values(shape, dtype, device, seed=seed, largest=2))
            for seed in (2, 3)
        ]
        grad_output, grad_grad_input = grads[0].detach().requires_grad_(), grads[1]
        grad_grad_weight = integer_values(slopes, weight_dtype, device, seed=4, largest=2)
        first = torch.autograd.grad(
            prelu(input, weight), (input, weight), grad_output, create_graph=True
        )
        second = torch.autograd.grad(
            first, (grad_output, input, weight), (grad_grad_input, grad_grad_weight)
        )
        expected = _second_order(input, weight, grad_output, grad_grad_input, grad_grad_weight)
        assert_both_branches(input, *second)
        for actual, correct in zip(second, expected):
            assert actual.dtype == correct.dtype and torch.equal(actual, correct)


# ---- At zero -----------------------------------------------------------------------------------


@pytest.fixture
def at_zero(device):
    """Zeros of both signs, which belong to the slope's side, and a neighbour on each side."""
    input = torch.tensor(
        [[0.0, -0.0, 1.0, -1.0]], dtype=torch.float64, device=device
    ).requires_grad_()
    weight = torch.tensor([0.25], dtype=torch.float64, device=device).requires_grad_()
    return input, weight


def test_first_order_at_zero_uses_the_slope(at_zero):
    input, weight = at_zero
    assert prelu(input, weight).signbit().tolist() == [[False, True, False, True]]
    grad_input, grad_weight = torch.autograd.grad(prelu(input, weight).sum(), at_zero)
    assert grad_input.tolist() == [[0.25, 0.25, 1.0, 0.25]]
    assert grad_weight.tolist() == [-1.0]


def test_forward_mode_at_zero_uses_the_slope(at_zero):
    """Stock's forward mode uses 1 here and disagrees with its own reverse mode."""
    input, weight = at_zero
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(input.detach(), torch.full_like(input, 8.0))
        assert forward_ad.unpack_dual(prelu(dual, weight)).tangent.tolist() == [
            [2.0, 2.0, 8.0, 2.0]
        ]
        dual = forward_ad.make_dual(weight.detach(), torch.full_like(weight, 8.0))
        assert forward_ad.unpack_dual(prelu(input, dual)).tangent.tolist() == [
            [0.0, 0.0, 0.0, -8.0]
        ]


def test_second_order_at_zero_uses_the_slope(at_zero):
    """Stock's second order has 1 and 0 at zero."""
    input, weight = at_zero
    grad_output = torch.full_like(input, 3.0).requires_grad_()
    grad_input, grad_weight = torch.autograd.grad(
        prelu(input, weight), at_zero, grad_output, create_graph=True
    )
    ones = torch.ones_like(input)
    by_grad_output, by_weight = torch.autograd.grad(
        grad_input, (grad_output, weight), ones, retain_graph=True
    )
    assert by_grad_output.tolist() == [[0.25, 0.25, 1.0, 0.25]]
    assert by_weight.tolist() == [9.0]
    by_grad_output, by_input = torch.autograd.grad(
        grad_weight, (grad_output, input), torch.ones_like(weight)
    )
    assert by_grad_output.tolist() == [[0.0, 0.0, 0.0, -1.0]]
    assert by_input.tolist() == [[3.0, 3.0, 0.0, 3.0]]


def test_second_order_equals_stock_away_from_zero(dtype, device):
    input = integer_values((3, 4, 5), dtype, device, seed=1, largest=2).requires_grad_()
    weight = torch.tensor([-0.5, 0.25, 2.0, 1.0], dtype=dtype, device=device).requires_grad_()
    grad_output = integer_values((3, 4, 5), dtype, device, seed=2, largest=2).requires_grad_()

    def second(operator):
        first = torch.autograd.grad(
            operator(input, weight), (input, weight), grad_output, create_graph=True
        )
        return torch.autograd.grad(
            sum((grad**2).sum() for grad in first), (input, weight, grad_output)
        )

    for ours, stock in zip(second(prelu), second(F.prelu)):
        assert_both_branches(input, ours)
        assert torch.equal(ours, stock)


@pytest.mark.parametrize("operator", (prelu, F.prelu), ids=("ours", "PyTorch's"))
def test_an_operand_that_a_gradient_does_not_depend_on_gets_zeros(operator, device):
    """autograd.grad calls an undefined gradient an error, and compiled autograd takes none."""
    input = integer_values((3, 4, 5), torch.float64, device).requires_grad_()
    weight = torch.tensor([-0.5, 0.25, 2.0, 1.0], dtype=torch.float64, device=device)
    weight.requires_grad_()
    grad_input, grad_weight = torch.autograd.grad(
        operator(input, weight).sum(), (input, weight), create_graph=True
    )
    assert_both_branches(input, grad_input, grad_weight)
    for gradient, operand in ((grad_input, input), (grad_weight, weight)):
        [zeros] = torch.autograd.grad(gradient.sum(), operand, retain_graph=True)
        assert zeros.shape == operand.shape and not zeros.any()

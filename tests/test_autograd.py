"""Derivatives against finite differences, and which gradients autograd computes, how often."""

import pytest
import torch
import torch.nn.functional as F
from cases import (
    Case,
    channels_last,
    finite_slopes,
    integer_values,
    random_values,
    step_2,
    transposed,
)
from reference import assert_both_branches, assert_same_bits
from torch.autograd import gradcheck, gradgradcheck

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

SMALL = (
    Case("image", (2, 3, 2, 2), (3,)),
    Case("image_channels_last", (2, 3, 2, 2), (3,), channels_last),
    Case("volume_channels_last", (1, 2, 2, 2, 3), (2,), channels_last),
    Case("tokens", (2, 3, 4), (3,), channels_last),
    Case("rows", (5, 4), (4,)),
    Case("transposed", (4, 3, 2), (3,), transposed),
    Case("sliced", (2, 3, 4), (3,), step_2),
    Case("channels_equal_width", (2, 4, 4), (4,)),
    Case("shared_weight", (3, 2, 4), (1,)),
    Case("shared_0d_weight", (3, 2, 4), ()),
    Case("one_channel", (16, 1), (1,)),
    Case("vector", (18,), (1,)),
    Case("scalar", (), ()),
    Case("empty", (0, 3), (3,)),
)


@pytest.fixture(params=SMALL, ids=lambda case: case.name)
def arguments(request, device):
    """float64 input and weight; no input is near zero, where PReLU has no derivative."""
    case = request.param
    input = case.layout(
        random_values(case.shape, torch.float64, device, seed=case.seed, zeros=False)
    )
    weight = finite_slopes(case.slopes, torch.float64, device)
    assert_both_branches(input)
    return input.requires_grad_(), weight.requires_grad_()


def test_gradients_equal_finite_differences(arguments):
    """Reverse and forward mode, undefined gradients, and the batched forms that vmap uses."""
    assert gradcheck(
        prelu,
        arguments,
        check_forward_ad=True,
        check_undefined_grad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


def test_second_derivatives_equal_finite_differences(arguments):
    assert gradgradcheck(
        prelu,
        arguments,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_undefined_grad=True,
    )


def test_the_backward_operator_is_differentiable_in_all_its_tensors(arguments):
    grad_output = random_values(
        arguments[0].shape, torch.float64, arguments[0].device, seed=5
    ).requires_grad_()
    for mask in ([True, True], [True, False], [False, True]):

        def backward(grad_output, input, weight, mask=mask):
            return tuple(
                grad
                for grad in prelu_backward(grad_output, input, weight, mask)
                if grad is not None
            )

        assert gradcheck(
            backward, (grad_output, *arguments), check_forward_ad=True, check_batched_grad=True
        )


# ---- Which gradients, how often ----------------------------------------------------------------


@pytest.mark.parametrize(
    "needed", ((True, True), (True, False), (False, True), (False, False)), ids=str
)
def test_only_the_gradients_that_are_needed_exist(needed, dtypes, device):
    dtype, weight_dtype = dtypes
    input = random_values((3, 4, 5), dtype, device)
    weight = finite_slopes((4,), weight_dtype, device)
    both = prelu_backward(torch.ones_like(input), input, weight, [True, True])
    input.requires_grad_(needed[0]), weight.requires_grad_(needed[1])
    output = prelu(input, weight)
    assert output.requires_grad == any(needed)
    if any(needed):
        output.sum().backward()
    for tensor, need, expected in zip((input, weight), needed, both):
        assert (tensor.grad is not None) == need
        if need:
            assert_same_bits(tensor.grad, expected)


def test_a_gradient_that_nobody_asks_for_is_not_computed(device):
    """autograd.grad for one of the two gives prelu_backward the mask of that one."""
    seen = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is prelu_backward.default:
                seen.append(list(args[3]))
            return function(*args, **(kwargs or {}))

    input = random_values((3, 4, 5), torch.float32, device).requires_grad_()
    weight = finite_slopes((4,), torch.float32, device).requires_grad_()
    with Recorder():
        for wanted in (input, weight, (input, weight)):
            torch.autograd.grad(prelu(input, weight).sum(), wanted)
        torch.autograd.grad(prelu(input, weight.detach()).sum(), input)
    assert seen == [[True, False], [False, True], [True, True], [True, False]]


def test_create_graph_keeps_the_bits_of_first_order(dtypes, device):
    dtype, weight_dtype = dtypes
    input = random_values((5, 4, 33), dtype, device).requires_grad_()
    weight = finite_slopes((4,), weight_dtype, device).requires_grad_()
    grad_output = random_values((5, 4, 33), dtype, device, seed=1)
    plain = torch.autograd.grad(prelu(input, weight), (input, weight), grad_output)
    with_graph = torch.autograd.grad(
        prelu(input, weight), (input, weight), grad_output, create_graph=True
    )
    assert_both_branches(input, *plain)
    for one, other in zip(plain, with_graph):
        assert other.requires_grad
        assert_same_bits(other, one)


def test_one_weight_used_twice_gets_the_sum_of_both_gradients(device):
    input = integer_values((3, 4, 5), torch.float64, device).requires_grad_()
    weight = torch.tensor(
        [-0.5, 0.25, 2.0, 1.0], dtype=torch.float64, device=device
    ).requires_grad_()
    ours = torch.autograd.grad(prelu(prelu(input, weight), weight).sum(), (input, weight))
    stock = torch.autograd.grad(F.prelu(F.prelu(input, weight), weight).sum(), (input, weight))
    assert_both_branches(input, *ours)
    assert all(torch.equal(*pair) for pair in zip(ours, stock))


def test_inputs_that_are_not_leaves_and_unused_outputs_are_fine(device):
    base = random_values((3, 4, 10), torch.float64, device).requires_grad_()
    weight = finite_slopes((4,), torch.float64, device).requires_grad_()
    output = prelu(base[..., ::2], weight.expand(4))
    grads = torch.autograd.grad(output[:0].sum() + output[1].sum(), (base, weight))
    assert (
        (grads[0][[0, 2]] == 0).all()
        and (grads[0][1, :, ::2] != 0).any()
        and (grads[0][..., 1::2] == 0).all()
    )
    unused = torch.autograd.grad(base.sum(), weight, allow_unused=True)
    assert unused == (None,)

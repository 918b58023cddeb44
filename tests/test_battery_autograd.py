"""What autograd computes, keeps and refuses: bits of gradients, finite differences, the second order
in every layout, saved tensors, and arguments that are not changed."""

import pytest
import torch
from batteries import CASES, DTYPES, SETTINGS, SMALL_CASES, battery, each, first_setting, naming
from cases import (
    LAYOUTS,
    Case,
    channels_last,
    contiguous,
    expanded,
    expanded_batch,
    integer_values,
    random_values,
    single_value,
    step_2,
)
from reference import assert_both_branches, assert_same_bits
from torch.autograd import gradcheck, gradgradcheck

pytestmark = pytest.mark.contract


def leaves_of(operator, arguments, needed=None):
    """New leaves; gradients are wanted of those that have some, or of the places in `needed`."""
    return [
        tensor.detach().requires_grad_(
            argument.differentiable and (needed is None or argument.name in needed)
        )
        for argument, tensor in zip(operator.arguments, arguments, strict=True)
    ]


def wanted(leaves):
    return [leaf for leaf in leaves if leaf.requires_grad]


def cotangents(results, values=random_values, seed=99, layout=contiguous, **options):
    """What flows into each result."""
    return [
        layout(values(result.shape, result.dtype, result.device, seed=seed + index, **options))
        for index, result in enumerate(results)
    ]


def small_integers(shape, dtype, device, seed):
    return integer_values(shape, dtype, device, seed=seed, largest=2)


def present(results):
    return [result for result in results if result is not None]


# ---- Bits of gradients -------------------------------------------------------------------------


def has_backward(operator):
    return operator.backward is not None


@battery(has_backward, product=False, dtypes=DTYPES, case=CASES)
def test_gradients_are_those_of_the_backward_operator(operator, dtypes, case, device):
    """To the bit, also where a graph is made for the second order; results are those without a graph."""
    for arguments in operator.signs(operator.make(case, dtypes, device)):
        results = operator(*arguments, **first_setting(operator))
        grads = cotangents(operator.derivable(results))
        expected = present(operator.backward(*grads, *arguments))
        leaves = leaves_of(operator, arguments)
        for create_graph in (False, True):
            with_graph = operator(*leaves, **first_setting(operator))
            for one, other in zip(present(with_graph), present(results), strict=True):
                assert_same_bits(one, other)
            outputs = operator.derivable(with_graph)
            gradients = torch.autograd.grad(
                outputs, wanted(leaves), grads, create_graph=create_graph
            )
            assert_both_branches(arguments[operator.place("input")], *gradients)
            assert all(gradient.requires_grad == create_graph for gradient in gradients)
            if create_graph and not operator.graph_keeps_bits:
                operator.assert_near(gradients, expected)
                continue
            for one, other in zip(gradients, expected, strict=True):
                assert_same_bits(one, other)


def subsets(operator):
    names = [argument.name for argument in operator.arguments if argument.differentiable]
    subsets = [[]]
    for name in names:
        subsets += [[*subset, name] for subset in subsets]
    return {"+".join(subset) or "none": subset for subset in subsets}


@battery(dtypes=DTYPES, needed=subsets)
def test_only_the_gradients_that_are_needed_exist(operator, dtypes, needed, device):
    arguments = operator.make(Case("needed", (3, 4, 5), (4,)), dtypes, device, dyadic=True)
    everything = leaves_of(operator, arguments)
    results = operator.derivable(operator(*everything, **first_setting(operator)))
    gradients = torch.autograd.grad(sum(r.sum() for r in results), wanted(everything))
    expected = dict(zip((a.name for a in operator.arguments if a.differentiable), gradients))
    leaves = leaves_of(operator, arguments, needed)
    outputs = operator.derivable(operator(*leaves, **first_setting(operator)))
    assert any(output.requires_grad for output in outputs) == bool(needed)
    if needed:
        sum(output.sum() for output in outputs).backward()
    for name, leaf in zip(operator.names, leaves):
        assert (leaf.grad is not None) == (name in needed)
        if name in needed:
            assert_same_bits(leaf.grad, expected[name])


# ---- Finite differences ------------------------------------------------------------------------


def _differentiable(operator, case, device, setting):
    """float64, no input near zero, where there is no derivative; and the function of the leaves."""

    def values(*args, **kwargs):
        return random_values(*args, zeros=False, **kwargs)

    arguments = operator.make(case, (torch.float64, torch.float64), device, values)
    assert_both_branches(arguments[operator.place("input")])

    def function(*tensors):
        return tuple(operator.derivable(operator(*tensors, **setting)))

    return function, leaves_of(operator, arguments)


@battery(case=SMALL_CASES, setting=SETTINGS)
def test_derivatives_equal_finite_differences(operator, case, setting, device):
    """Reverse and forward mode, undefined gradients, and the batched forms that vmap uses."""
    function, leaves = _differentiable(operator, case, device, setting)
    if any(operator.wanted(setting)):
        assert gradcheck(
            function,
            leaves,
            check_forward_ad=True,
            check_undefined_grad=len(operator.results) == 1,
            check_batched_grad=True,
            check_batched_forward_grad=True,
        )


def forward_operators(operator):
    """Of which second derivatives are promised: of a backward operator they would be third ones."""
    return operator.data == ["input"]


@battery(forward_operators, case=SMALL_CASES, setting=SETTINGS)
def test_second_derivatives_equal_finite_differences(operator, case, setting, device):
    function, leaves = _differentiable(operator, case, device, setting)
    assert gradgradcheck(
        function,
        leaves,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_undefined_grad=True,
    )


# ---- Derivatives of every dtype and layout ------------------------------------------------------

GRAD_LAYOUTS = LAYOUTS | {f.__name__: f for f in (expanded, expanded_batch, single_value)}


def with_zeros(operator, arguments):
    """A seventh of the inputs are zeros, of both signs: they belong to the slope's side."""
    input = arguments[operator.place("input")]
    flat = input.contiguous().view(-1).clone()
    flat[::14], flat[7::14] = 0.0, -0.0
    input.copy_(flat.view(input.shape))
    return arguments


def first_and_second(function, leaves, first_grads, second_grads):
    """Gradients, and the gradients of those by everything that they depend on."""
    grads = [grad.detach().requires_grad_() for grad in first_grads]
    outputs = function(*leaves)
    first = torch.autograd.grad(outputs, wanted(leaves), grads, create_graph=True)
    second = torch.autograd.grad(
        first, [*grads, *wanted(leaves)], second_grads, materialize_grads=True
    )
    return [*first, *second]


@battery(dtypes=DTYPES, layout=each((contiguous, channels_last, step_2)))
def test_both_orders_take_every_layout_of_every_gradient(operator, dtypes, layout, device):
    """gradgradcheck feeds contiguous ones only, and float64. Integers, zeros, powers of two: exact."""
    layouts = dict.fromkeys(operator.data, layout)
    for shape, slopes in (((2, 4, 5, 4), (4,)), ((3, 5, 7), ()), ((6, 5), (5,)), ((18,), (1,))):
        case = Case("second order", shape, slopes)
        if not operator.takes(case):
            continue
        arguments = operator.make(case, dtypes, device, layouts=layouts, dyadic=True)
        with_zeros(operator, arguments)
        for name, grad_layout in GRAD_LAYOUTS.items():
            with naming(shape=shape, grad_layout=name):
                _assert_both_orders(operator, arguments, grad_layout)


def _assert_both_orders(operator, arguments, grad_layout):
    def of(call, tensors):
        def function(*tensors):
            return operator.derivable(call(*tensors, **first_setting(operator)))

        leaves = leaves_of(operator, tensors)
        results = function(*leaves)
        grads = [grad_layout(grad.to(result)) for grad, result in zip(first_grads, results)]
        seconds = [grad_layout(grad.to(leaf)) for grad, leaf in zip(second_grads, wanted(leaves))]
        return [r.detach() for r in results] + first_and_second(function, leaves, grads, seconds)

    results = operator.derivable(operator(*arguments, **first_setting(operator)))
    first_grads = cotangents(results, small_integers)
    second_grads = cotangents(wanted(leaves_of(operator, arguments)), small_integers, seed=199)
    actual = of(operator, arguments)
    expected = of(operator.define, [tensor.double() for tensor in arguments])
    assert_both_branches(arguments[operator.place("input")], *actual[: len(results)])
    assert sum(gradient.abs().sum() > 0 for gradient in actual) > len(results)
    operator.assert_derivatives(actual, expected)


def has_equivalent(operator):
    return operator.pytorch is not None and operator.exact and forward_operators(operator)


@battery(has_equivalent)
def test_both_orders_equal_pytorchs_away_from_zero(operator, device):
    """In float64. (At zero PyTorch's second order follows >=, the contract's >.)"""
    double = (torch.float64, torch.float64)
    arguments = operator.make(Case("pytorchs", (3, 4, 5), (4,)), double, device, dyadic=True)
    assert (arguments[operator.place("input")] != 0).all()

    def of(call):
        def function(*tensors):
            return operator.derivable(call(*tensors, **first_setting(operator)))

        leaves = leaves_of(operator, arguments)
        grads = cotangents(function(*leaves), small_integers)
        seconds = cotangents(wanted(leaves), small_integers, seed=199)
        return first_and_second(function, leaves, grads, seconds)

    operator.assert_derivatives(of(operator), of(operator.as_pytorch))


@battery(has_backward)
def test_an_operand_that_a_gradient_does_not_depend_on_gets_zeros(operator, device):
    """autograd.grad calls an undefined gradient an error, and compiled autograd takes none."""
    double = (torch.float64, torch.float64)
    case = Case("zeros", (3, 4, 5), (4,))
    leaves = leaves_of(operator, operator.make(case, double, device, dyadic=True))
    outputs = operator.derivable(operator(*leaves, **first_setting(operator)))
    loss = sum(output.sum() for output in outputs)
    gradients = torch.autograd.grad(loss, wanted(leaves), create_graph=True)
    assert_both_branches(leaves[operator.place("input")], *gradients)
    for gradient in gradients:
        for leaf in wanted(leaves):
            [second] = torch.autograd.grad(gradient.sum(), leaf, retain_graph=True)
            assert second.shape == leaf.shape

"""Forward-mode AD with dual numbers: every operand and subset of them, zeros on the slope's side."""

import itertools

import pytest
import torch
from batteries import DTYPES, SETTINGS, battery, each, first_setting, naming
from cases import Case, channels_last, contiguous, expanded, integer_values, step_2
from reference import assert_both_branches, assert_same_bits
from test_battery_autograd import leaves_of, small_integers, wanted, with_zeros
from torch.autograd import forward_ad

pytestmark = pytest.mark.contract

SHAPES = (((4, 3, 5, 4), (3,)), ((6, 4), (1,)), ((24,), ()))


def _cases(operator):
    cases = filter(operator.takes, (Case("forward mode", *shapes) for shapes in SHAPES))
    return {"x".join(map(str, case.shape)): case for case in cases}


def _tangents(operator, arguments):
    """Of every argument that is differentiable; None of the others."""
    return [
        small_integers(tensor.shape, tensor.dtype, tensor.device, seed=30 + index)
        if argument.differentiable
        else None
        for index, (argument, tensor) in enumerate(zip(operator.arguments, arguments))
    ]


def _pushed(operator, call, arguments, tangents, setting):
    """Results and their tangents: None where there is none."""
    duals = [
        tensor if tangent is None else forward_ad.make_dual(tensor, tangent)
        for tensor, tangent in zip(arguments, tangents)
    ]
    unpacked = [
        forward_ad.unpack_dual(result) for result in operator.derivable(call(*duals, **setting))
    ]
    return [u.primal for u in unpacked], [u.tangent for u in unpacked]


@battery(dtypes=DTYPES, case=_cases, setting=SETTINGS)
def test_tangents_are_those_of_the_definition(operator, dtypes, case, setting, device):
    """For dual numbers in any subset of the operands. Nothing is rounded in any dtype."""
    arguments = operator.make(case, dtypes, device, small_integers, dyadic=True)
    with_zeros(operator, arguments)
    tangents = _tangents(operator, arguments)
    results = operator.derivable(operator(*arguments, **setting))
    assert_both_branches(arguments[operator.place("input")], *results)
    seen = 0
    for chosen in itertools.product((False, True), repeat=len(arguments)):
        some = [tangent if use else None for use, tangent in zip(chosen, tangents)]
        with naming(duals=chosen), forward_ad.dual_level():
            primals, actual = _pushed(operator, operator, arguments, some, setting)
            operator.assert_derivatives(primals, results)
            doubles = [tensor.double() for tensor in arguments]
            of_doubles = [tangent if tangent is None else tangent.double() for tangent in some]
            _, expected = _pushed(operator, operator.define, doubles, of_doubles, setting)
            pairs = []
            for one, other, result in zip(actual, expected, results, strict=True):
                if one is None or other is None:  # nothing that it depends on is a dual number
                    assert one is other or not (one if other is None else other).any()
                else:
                    assert one.dtype == result.dtype
                    pairs.append((one, other))
                    seen += one.any().item()
            operator.assert_derivatives(*(zip(*pairs) if pairs else ((), ())))
    assert seen or not results


@battery(layout=each((contiguous, channels_last, step_2, expanded)))
def test_layouts_of_tangents_do_not_matter(operator, layout, device):
    double = (torch.float64, torch.float64)
    case = Case("layouts", (4, 3, 5, 4), (3,), channels_last)
    arguments = operator.make(case, double, device, dyadic=True)
    tangents = _tangents(operator, arguments)
    at = operator.place("input")
    tangents[at] = layout(integer_values((4, 3, 5, 4), torch.float64, device, seed=2))
    with forward_ad.dual_level():
        _, actual = _pushed(operator, operator, arguments, tangents, first_setting(operator))
        tangents[at] = tangents[at].clone(memory_format=torch.contiguous_format)
        _, expected = _pushed(
            operator, operator.define, arguments, tangents, first_setting(operator)
        )
    assert_both_branches(arguments[at], *actual)
    operator.assert_derivatives(actual, expected)


def forward_operators(operator):
    return operator.data == ["input"]


@battery(forward_operators)
def test_forward_over_reverse_and_reverse_over_forward_agree(operator, device):
    """The product of the Hessian of <u, result> with a direction, both ways; at zeros, too."""
    double = (torch.float64, torch.float64)
    case = Case("both modes", (4, 3, 10), (3,))
    arguments = with_zeros(operator, operator.make(case, double, device, dyadic=True))
    tangents = _tangents(operator, arguments)
    leaves = leaves_of(operator, arguments)
    u = [
        small_integers(result.shape, result.dtype, device, seed=50)
        for result in operator.derivable(operator(*arguments, **first_setting(operator)))
    ]

    def duals():
        pairs = zip(operator.arguments, leaves, tangents)
        return [forward_ad.make_dual(t, d) if a.differentiable else t for a, t, d in pairs]

    with forward_ad.dual_level():
        made = duals()
        results = operator.derivable(operator(*made, **first_setting(operator)))
        gradients = torch.autograd.grad(results, wanted(made), u)
        forward_over_reverse = [forward_ad.unpack_dual(gradient).tangent for gradient in gradients]
        results = operator.derivable(operator(*duals(), **first_setting(operator)))
        pushed = [forward_ad.unpack_dual(result).tangent for result in results]
        products = sum((one * other).sum() for one, other in zip(u, pushed))
        reverse_over_forward = torch.autograd.grad(products, wanted(leaves))
    assert_both_branches(arguments[operator.place("input")], *forward_over_reverse)
    for one, other in zip(forward_over_reverse, reverse_over_forward, strict=True):
        assert torch.equal(one, other) if operator.exact else torch.allclose(one, other)


@battery()
def test_tangents_need_forward_mode_and_no_reverse_mode(operator, device):
    double = (torch.float64, torch.float64)
    arguments = operator.make(Case("modes", (4, 3, 10), (3,)), double, device, dyadic=True)
    tangents = _tangents(operator, arguments)
    setting = first_setting(operator)
    with forward_ad.dual_level():
        _, expected = _pushed(operator, operator, arguments, tangents, setting)
        with torch.no_grad():  # is about reverse mode only
            _, actual = _pushed(operator, operator, arguments, tangents, setting)
        assert None not in actual
        for one, other in zip(actual, expected, strict=True):
            assert_same_bits(one, other)
        with forward_ad._set_fwd_grad_enabled(False):
            assert set(_pushed(operator, operator, arguments, tangents, setting)[1]) == {None}
        assert set(_pushed(operator, operator, arguments, [None] * len(arguments), setting)[1]) == {
            None
        }

"""Mixed precision: dtypes, errors and values are those that PyTorch's equivalent gives under autocast."""

import itertools

import pytest
import torch
from batteries import battery, each, first_setting, naming
from cases import DTYPES, Case
from reference import assert_both_branches
from test_battery_autograd import leaves_of, wanted

pytestmark = pytest.mark.contract

REGIONS = each((torch.bfloat16, torch.float16))


def has_equivalent(operator):
    return operator.pytorch is not None and operator.data == ["input"]


def _arguments(operator, dtypes, device):
    return operator.make(Case("autocast", (2, 3, 4, 5), (3,)), dtypes, device)


@battery(has_equivalent, region=REGIONS)
def test_dtypes_and_errors_under_autocast_are_pytorchs(operator, region, device):
    """The words of an error, too, where the operator has PyTorch's bits."""

    def outcome(call, arguments):
        try:
            return call(*arguments, **first_setting(operator))[0].dtype
        except RuntimeError as error:
            return (type(error), str(error)) if operator.same_as_pytorch else type(error)

    for dtypes in itertools.product(DTYPES, repeat=2):
        arguments = _arguments(operator, dtypes, device)
        for enabled in (True, False):
            if not enabled and dtypes[0] != dtypes[1] and dtypes in operator.accepts:
                continue  # an extension
            with naming(dtypes=dtypes), torch.autocast(device, dtype=region, enabled=enabled):
                expected = outcome(operator.as_pytorch, arguments)
                assert outcome(operator, arguments) == expected


@battery(has_equivalent, region=REGIONS)
def test_values_under_autocast_are_pytorchs_and_gradients_have_the_leaves_dtypes(
    operator, region, device
):
    """Up to what PyTorch rounds: a slope to 16 bits, and what a norm hands to PReLU."""
    for dtypes in operator.accepts:
        leaves = leaves_of(operator, _arguments(operator, dtypes, device))
        with torch.autocast(device, dtype=region):
            output = operator(*leaves, **first_setting(operator))[0]
            pytorchs = operator.as_pytorch(*leaves, **first_setting(operator))[0]
        with naming(dtypes=dtypes):
            assert_both_branches(leaves[operator.place("input")], output)
            rounding = 8 * torch.finfo(output.dtype).eps
            torch.testing.assert_close(output, pytorchs, rtol=rounding, atol=rounding)
            gradients = torch.autograd.grad(
                output.double().sum(), wanted(leaves), allow_unused=True
            )
            for leaf, gradient in zip(wanted(leaves), gradients, strict=True):
                assert gradient.dtype == leaf.dtype and gradient.any()

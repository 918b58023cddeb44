"""The error bound of grad_weight, on data made to need all of it: a product that loses almost half a
unit, and terms behind it in its chain and beside it in other chains that are each rounded away."""

import math
from fractions import Fraction

import pytest
import torch
from reference import UNITS

import torch_ext  # noqa: F401

pytestmark = pytest.mark.contract

UNIT = {torch.float32: Fraction(1, 2**24), torch.float64: Fraction(1, 2**53)}
CHAIN = 16  # longer than any chain may be


def factors(unit):
    """Two numbers above 1 and below whose product is rounded to 1 from nearly 1 + unit."""
    spacing = 2 * unit
    best = None
    for k in range(1, 4096):
        a = 1 + k * spacing
        b = (1 + unit) / a // unit * unit  # below 1, numbers are a unit apart
        product = a * b
        if 1 < product <= 1 + unit and (best is None or product > best[0]):
            best = (product, float(a), float(b))
    return best[1:]


def worst_terms(dtype, lanes):
    """input and grad_output for registers of this many lanes, four of which are filled at a time."""
    unit = UNIT[dtype]
    bits = round(-math.log2(unit))
    halves = 2.0 ** -(bits // 2), 2.0 ** (bits // 2 - bits)  # the product is half of 1's last place
    input = torch.zeros(4 * lanes * CHAIN, dtype=dtype)
    grad_output = torch.zeros_like(input)
    input[0], grad_output[0] = (-factor for factor in factors(unit))
    behind = [row * 4 * lanes for row in range(1, CHAIN)]
    for position in (*behind, lanes, 2 * lanes):
        input[position], grad_output[position] = (-half for half in halves)
    return input, grad_output


def error_and_bound(input, grad_output):
    """Of the slope's gradient, in units of the sum of the terms' magnitudes."""
    terms = [
        Fraction(x) * Fraction(g) for x, g in zip(input.tolist(), grad_output.tolist(), strict=True)
    ]
    weight = torch.tensor([0.25], dtype=input.dtype)
    _, grad_weight = torch.ops.torch_ext.prelu_backward(grad_output, input, weight, [False, True])
    got = Fraction(grad_weight.item())
    unit = UNIT[input.dtype]
    magnitude = sum(map(abs, terms)) * unit
    half_ulp = unit * Fraction(2) ** math.floor(math.log2(float(got)))
    return abs(got - sum(terms)) / magnitude, UNITS[input.dtype] + half_ulp / magnitude


@pytest.mark.parametrize("dtype", UNIT, ids=str)
def test_the_bound_holds_where_every_rounding_counts(dtype):
    errors = []
    for lanes in (2, 4, 8, 16):  # of every register there is
        error, bound = error_and_bound(*worst_terms(dtype, lanes))
        assert error <= bound
        errors.append(error)
    assert max(errors) > UNITS[dtype] / 2, "no register had these lanes: the data is not the worst"


@pytest.mark.parametrize("shape", ((1, 1, 2**21), (2**20, 2, 1)), ids=("planes", "columns"))
def test_the_bound_holds_for_as_many_equal_terms_as_you_like(shape):
    """float64's sums have no wider type to go to: what each addition loses is added up beside them.

    Equal terms are rounded the same way over and over, so that what is lost adds up as well.
    """
    generator = torch.Generator().manual_seed(3)
    unit, count = UNIT[torch.float64], shape[0] * shape[2]
    for _ in range(8):
        x, g = (1 + torch.rand(2, generator=generator, dtype=torch.float64)).tolist()
        input = torch.full(shape, -x, dtype=torch.float64)
        grad_output = torch.full(shape, g, dtype=torch.float64)
        weight = torch.full(shape[1:2], 0.25, dtype=torch.float64)
        _, grad_weight = torch.ops.torch_ext.prelu_backward(
            grad_output, input, weight, [False, True]
        )
        exact = count * Fraction(-x) * Fraction(g)
        for got in grad_weight.tolist():
            assert abs(Fraction(got) - exact) <= (UNITS[torch.float64] + 1) * unit * abs(exact)

"""Results that are sums over everything but channels: exact where data allow it, else within the bound,
for any length and order of terms; and IEEE's sum where a term is not finite."""

import math

import pytest
import torch
from batteries import DATA_TYPES, DTYPES, battery, each, some
from cases import Case, channels_last, contiguous, finite_slopes, integer_values
from operator_rows import Role
from reference import assert_both_branches

pytestmark = pytest.mark.contract


def has_sums(operator):
    """That are exact where their terms are."""
    sums = [r for r in operator.results if r.role is not Role.DATA and not r.statistic]
    return bool(sums) and operator.exact


def has_simple_sums(operator):
    return has_sums(operator) and operator.elementwise


def _sums_alone(operator):
    """The setting with the fewest results among those that leave no sum out."""
    sums = {result.name for result in operator.results if result.role is not Role.DATA}
    named = [set(name.split("+")) for name in operator.settings]
    alone = [setting for name, setting in zip(named, operator.settings.values()) if name == sums]
    return alone[0] if alone else next(iter(operator.settings.values()))


# ---- Exact sums --------------------------------------------------------------------------------

# oneDNN's benchdnn, inputs/prelu/shapes_all. It also has slopes of the input's own shape, which
# PyTorch refuses.
ONEDNN_SHAPES = (
    *((size,) * rank for rank in (3, 4, 5) for size in (1, 4, 8, 16)),
    (256, 128, 7, 7),
    (256, 128, 7, 7, 7),
    (256, 128, 7),
    (16, 64, 1, 1),
    (3, 7, 3, 2),
    (2, 32, 3, 2),
    (32, 5, 2, 3),
    (128, 64, 109, 109),
    (128, 128, 53, 53),
    (128, 256, 26, 26),
    (128, 64, 64),
)
MOST = 2**19  # elements


def _sixteenths(shape, dtype, device, seed):
    """-7/16 to 7/16: with small integers, 2^24 exact terms; half of them negative, a zero now and then."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-7, 8, shape, generator=generator).to(device, dtype) / 16


def _onednn(shapes):
    return each({"x".join(map(str, shape)): shape for shape in shapes})


def _check_exactly(operator, dtypes, layout, shape, device):
    layouts = {name: layout for name in operator.data}
    for slopes in (shape[1:2], (1,)):
        case = Case("onednn", shape, slopes)
        arguments = operator.make(case, dtypes, device, _sixteenths, layouts, dyadic=True)
        inputs = integer_values(shape, dtypes[0], device, seed=math.prod(shape), largest=2)
        arguments[operator.place("input")] = layout(inputs)
        results = operator.check(arguments, _sums_alone(operator), exact=operator.exact)
        if math.prod(shape) > 64:
            assert_both_branches(inputs, *[result for result in results if result is not None])


@battery(
    has_sums,
    dtypes=DATA_TYPES,
    layout=each((contiguous, channels_last)),
    shape=_onednn(ONEDNN_SHAPES),
)
def test_the_sum_is_exact_in_every_shape_of_onednns_tests(operator, dtypes, layout, shape, device):
    """So that one wrong, lost or repeated term shows. Large ones with fewer samples."""
    samples = max(1, MOST // math.prod(shape[1:]))
    shape = (min(shape[0], samples), *shape[1:])
    _check_exactly(operator, dtypes, layout, shape, device)


@pytest.mark.full
@battery(
    has_sums,
    dtypes=DTYPES,
    layout=each((contiguous, channels_last)),
    shape=_onednn(shape for shape in ONEDNN_SHAPES if math.prod(shape) > MOST),
)
def test_the_sum_is_exact_at_full_size(operator, dtypes, layout, shape, device):
    _check_exactly(operator, dtypes, layout, shape, device)


# ---- Long sums ---------------------------------------------------------------------------------

LONG_CASES = (
    Case("one_slope", (1, 2**20), ()),
    Case("planes", (8, 4, 91, 91), (4,)),
    Case("one_plane", (1, 1, 2**20 + 1), (1,)),
    Case("channels_last", (4, 7, 101, 101), (7,), channels_last),
    Case("rows", (2**16 + 3, 5), (5,)),
    Case("tiny_planes", (2048, 3, 7, 7), (3,)),
)


def _random(shape, dtype, device, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def _constant(shape, dtype, device, seed):
    return torch.full(shape, -0.1, dtype=dtype, device=device)


def _one_sign(shape, dtype, device, seed):
    return -_random(shape, dtype, device, seed).abs()


def _sorted(shape, dtype, device, seed):
    """From large to tiny: what the small ones add is lost in a plain running sum."""
    exponents = torch.linspace(0, -12, math.prod(shape), dtype=torch.float64)
    return -(2**exponents).reshape(shape).to(device, dtype)


LONG_DATA = {f.__name__.strip("_"): f for f in (_random, _constant, _one_sign, _sorted)}


def _check_long(operator, dtypes, case, values, device):
    """One sign on purpose: it makes the largest sums and, if constant, the worst rounding."""
    layouts = {name: case.layout for name in operator.data}
    arguments = operator.make(case, dtypes, device, values, layouts, seed=7)
    for name in set(operator.data) - {"input"}:
        arguments[operator.place(name)] /= (
            64 if math.prod(case.shape) < 2**22 else 2**12
        )  # for half
    results = operator.check(arguments, _sums_alone(operator))
    for result in (r for r in results if r is not None):
        assert result.isfinite().all() and result.any()


@battery(
    has_sums,
    dtypes=some(DTYPES, "float64", "float32", "float16_with_float32", "bfloat16_with_float32"),
    case=lambda _: {case.name: case for case in LONG_CASES},
    values=each(LONG_DATA),
)
def test_a_long_sum_is_within_the_bound(operator, dtypes, case, values, device):
    _check_long(operator, dtypes, case, values, device)


def _longest(count):
    return [Case(f"{count}_by_{n}", (count // n, n), (n,)) for n in (1, 2)]


@battery(has_simple_sums, values=each((_random, _constant)))
def test_a_sum_of_sixteen_million_terms_is_within_the_bound(operator, values, device):
    """A running float32 sum of constant data is off by a thousand times the bound."""
    for case in _longest(2**24):
        _check_long(operator, (torch.float32, torch.float32), case, values, device)


@pytest.mark.full
@battery(
    has_simple_sums, dtypes=DTYPES, values=each(LONG_DATA), count=each((2**24, 2**24 + 2**20 + 2))
)
def test_longer_sums_of_all_dtypes_are_within_the_bound(operator, dtypes, values, count, device):
    for case in _longest(count):
        _check_long(operator, dtypes, case, values, device)


# ---- Terms that are not finite, or too large for half -------------------------------------------

# Of input and what it is multiplied by, at two places of one channel.
NON_FINITE_TERMS = {
    "inf": ((-math.inf, 1.0),),
    "minus_inf": ((-math.inf, -1.0), (-2.0, -math.inf)),
    "inf_of_both_signs": ((-math.inf, 1.0), (-math.inf, -1.0)),
    "nan_input": ((math.nan, 1.0),),
    "nan_gradient": ((-1.0, math.nan),),
    "zero_times_inf": ((0.0, math.inf),),
    "positive_input_with_inf": ((1.0, math.inf),),
    "positive_input_with_nan": ((math.inf, math.nan),),
}


def gradient_sums(operator):
    """Of those that multiply the input by a gradient."""
    return has_simple_sums(operator) and operator.data[:2] == ["grad_output", "input"]


SPECIAL_CASES = (
    Case("planes", (4, 5, 3000), (5,)),
    Case("channels_last", (4, 5, 3000), (5,), channels_last),
    Case("one_slope", (4, 5, 3000), (1,)),
)


@battery(
    gradient_sums,
    dtypes=DTYPES,
    case=lambda _: {case.name: case for case in SPECIAL_CASES},
    terms=each(NON_FINITE_TERMS),
)
def test_a_term_that_is_not_finite_gives_the_ieee_sum(operator, dtypes, case, terms, device):
    """Compensated and cascaded sums turn Inf into Inf - Inf if they are not careful."""
    layouts = {name: case.layout for name in operator.data}
    arguments = operator.make(case, dtypes, device, layouts=layouts, dyadic=True)
    input, grad_output = (arguments[operator.place(name)] for name in ("input", "grad_output"))
    for place, (x, g) in zip((17, 2999), terms):
        input[2, 3, place], grad_output[2, 3, place] = x, g
    assert_both_branches(input)
    operator.check(arguments, _sums_alone(operator), exact=True)


@battery(
    gradient_sums,
    parameters=each({"half": torch.half, "float32": torch.float}),
    layout=each((contiguous, channels_last)),
    slopes=each((1, 7)),
)
def test_partial_sums_of_half_may_be_larger_than_half_can_hold(
    operator, parameters, layout, slopes, device
):
    """Thousands of terms of -30,000, then as many of 30,000, and one of -8."""
    input = torch.full((256, 7, 40), -300.0, dtype=torch.half, device=device)
    grad_output = torch.full((256, 7, 40), 100.0, dtype=torch.half, device=device)
    grad_output[128:] = -100
    input[7, :, 3], grad_output[7, :, 3] = -2, 4
    input[255, :, 7] = 1  # positive: the term that would have balanced the replaced one
    running = (grad_output.float() * input.float()).flatten().cumsum(0).to(torch.half)
    assert not running.isfinite().all()
    weight = finite_slopes((slopes,), parameters, device)
    arguments = layout(grad_output), layout(input), weight
    *_, grad_weight = operator.check(arguments, _sums_alone(operator), exact=True)
    assert grad_weight.tolist() == [-8.0 * 7 / slopes] * slopes

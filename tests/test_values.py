"""Every number, against stock PReLU where the bits must agree and against the float64 oracle."""

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from cases import (
    DTYPES,
    SLOPES,
    Case,
    case_inputs,
    case_weights,
    channels_last,
    contiguous,
    finite_slopes,
    forward_backward,
    integer_values,
    random_values,
    special_values,
)
from reference import assert_both_branches, assert_grad_weight_within_bound, assert_same_bits

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


def test_output_and_input_gradient_have_the_bits_of_stock(case, dtype, device):
    for input in case_inputs(case, dtype, device):
        grad_output = random_values(case.shape, dtype, device, seed=1)
        for weight in case_weights(case, dtype, device):
            output, grad_input, _ = forward_backward(prelu, input, weight, grad_output)
            stock_output, stock_grad_input, _ = forward_backward(
                F.prelu, input, weight, grad_output
            )
            assert_both_branches(input, output, grad_input)
            assert_same_bits(output, stock_output)
            assert_same_bits(grad_input, stock_grad_input)


def test_output_and_input_gradient_are_those_of_the_definition(case, dtypes, device):
    """Also for the mixed pair: the product is rounded to float32, then to 16 bits."""
    dtype, weight_dtype = dtypes
    for input in case_inputs(case, dtype, device):
        grad_output = random_values(case.shape, dtype, device, seed=1)
        for weight in case_weights(case, weight_dtype, device):
            output, grad_input, _ = forward_backward(prelu, input, weight, grad_output)
            assert_both_branches(input, output, grad_input)
            assert_same_bits(output, reference.forward(input, weight))
            assert_same_bits(grad_input, reference.grad_input(grad_output, input, weight))


def test_weight_gradient_of_small_integers_is_exact(case, dtypes, device):
    """Every partial sum is an integer, exact in any order: only the last rounding is left."""
    dtype, weight_dtype = dtypes
    for input in case_inputs(case, dtype, device, integer_values):
        grad_output = integer_values(case.shape, dtype, device, seed=2, largest=3)
        weight = finite_slopes(case.slopes, weight_dtype, device)
        _, _, grad_weight = forward_backward(prelu, input, weight, grad_output)
        exact = torch.from_numpy(reference.exact_grad_weight(grad_output, input, weight))
        assert_both_branches(input, grad_weight)
        assert_same_bits(grad_weight, exact.to(weight_dtype).to(device))


def test_weight_gradient_of_random_values_is_within_the_bound(case, dtypes, device):
    dtype, weight_dtype = dtypes
    for input in case_inputs(case, dtype, device)[:1]:  # the negative one of a tiny case
        grad_output = random_values(case.shape, dtype, device, seed=3)
        weight = finite_slopes(case.slopes, weight_dtype, device)
        _, _, grad_weight = forward_backward(prelu, input, weight, grad_output)
        assert_both_branches(input, grad_weight)
        assert_grad_weight_within_bound(grad_weight, grad_output, input, weight)


# ---- Long sums ---------------------------------------------------------------------------------

LONG_CASES = (
    Case("one_slope", (1, 2**20), ()),
    Case("planes", (8, 4, 91, 91), (4,)),
    Case("one_plane", (1, 1, 2**20 + 1), (1,)),
    Case("channels_last", (4, 7, 101, 101), (7,), channels_last),
    Case("rows", (2**16 + 3, 5), (5,)),
    Case("tiny_planes", (2048, 3, 7, 7), (3,)),
)


def _constant(shape, dtype, device, seed):
    return torch.full(shape, -0.1, dtype=dtype, device=device)


def _one_sign(shape, dtype, device, seed):
    return -random_values(shape, dtype, device, seed, zeros=False).abs()


def _sorted(shape, dtype, device, seed):
    """From large to tiny: what the small ones add is lost in a plain running sum."""
    exponents = torch.linspace(0, -12, math.prod(shape), dtype=torch.float64)
    return -(2**exponents).reshape(shape).to(device, dtype)


@pytest.mark.parametrize(
    "values", (random_values, _constant, _one_sign, _sorted), ids=lambda f: f.__name__.strip("_")
)
@pytest.mark.parametrize("long_case", LONG_CASES, ids=lambda case: case.name)
def test_a_long_weight_gradient_is_within_the_bound(long_case, values, dtypes, device):
    """One sign on purpose: it makes the largest sums and, if constant, the worst rounding."""
    dtype, weight_dtype = dtypes
    input = long_case.layout(values(long_case.shape, dtype, device, seed=7))
    grad_output = long_case.layout(values(long_case.shape, dtype, device, seed=8))
    grad_output /= 64  # so that half can hold the sum
    weight = finite_slopes(long_case.slopes, weight_dtype, device)
    _, grad_weight = prelu_backward(grad_output, input, weight, [False, True])
    assert grad_weight.isfinite().all()
    assert_grad_weight_within_bound(grad_weight, grad_output, input, weight)


def test_the_sum_of_sixteen_million_equal_terms_is_within_the_bound(device):
    """A running float32 sum of this data is off by a thousand times the bound."""
    count = 2**24
    input = torch.full((1, count), -0.1, device=device)
    grad_output = torch.full((1, count), 0.1, device=device)
    weight = torch.tensor([0.25], device=device)
    _, grad_weight = prelu_backward(grad_output, input, weight, [False, True])
    exact = count * (input[0, 0].double() * grad_output[0, 0].double()).item()
    assert abs(grad_weight.item() - exact) <= 16 * 2.0**-24 * abs(exact) + 2.0**-24 * abs(exact)


def test_weight_gradient_of_half_does_not_overflow_on_the_way(device):
    """Each product is -90,000 or 90,000, more than half can hold; their sum is not."""
    input = torch.full((64, 3, 10), -300.0, dtype=torch.half, device=device)
    grad_output = torch.full((64, 3, 10), 300.0, dtype=torch.half, device=device)
    grad_output[::2] = -300
    grad_output[0, 1, 0] = -299
    weight = torch.full((3,), 0.25, dtype=torch.half, device=device)
    _, grad_weight = prelu_backward(grad_output, input, weight, [True, True])
    assert grad_weight.tolist() == [0, -300, 0]
    _, grad_weight = prelu_backward(grad_output, input, weight.float(), [True, True])
    assert grad_weight.tolist() == [0, -300, 0]


# ---- Special values ----------------------------------------------------------------------------


def _special_pairs(dtype, device):
    values = special_values(dtype, device)
    return values.repeat_interleave(len(values)), values.repeat(len(values))


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("layout", (contiguous, channels_last), ids=lambda f: f.__name__)
def test_special_values_follow_the_definition(slope, layout, dtypes, device):
    """All pairs of sixteen inputs and sixteen gradients, each pair in every lane of a vector."""
    dtype, weight_dtype = dtypes
    inputs, grads = _special_pairs(dtype, device)
    input = layout(inputs.repeat(3).reshape(2, 3, 128)).requires_grad_()
    grad_output = layout(grads.repeat(3).reshape(2, 3, 128))
    weight = torch.full((3,), slope, dtype=weight_dtype, device=device)
    output, grad_input, grad_weight = forward_backward(prelu, input, weight, grad_output)
    assert_same_bits(output, reference.forward(input, weight))
    assert_same_bits(grad_input, reference.grad_input(grad_output, input, weight))
    assert grad_weight.isnan().all()  # the data hold a NaN and both infinities
    if dtype == weight_dtype:
        stock_output, stock_grad_input, _ = forward_backward(F.prelu, input, weight, grad_output)
        assert_same_bits(output, stock_output)
        assert_same_bits(grad_input, stock_grad_input)


@pytest.mark.parametrize("slope", (*SLOPES, 1e-30, 3e38, 1.0 + 2.0**-9))
@pytest.mark.parametrize("shape", ((1, 1, 1 << 16), (1 << 12, 16)), ids=("planes", "columns"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=("bf16", "fp16"))
@pytest.mark.parametrize("mixed", (False, True), ids=("one_dtype", "float32_slope"))
def test_all_16_bit_patterns_special_or_not(slope, shape, dtype, mixed, device):
    """Every input, with every gradient once; rounding works on bits, where NaNs need no luck."""
    patterns = torch.arange(-(1 << 15), 1 << 15, device=device).to(torch.int16).view(dtype)
    input = patterns.reshape(shape)
    grad_output = patterns[torch.randperm(len(patterns))].reshape(shape)
    slopes = shape[1]
    weight = torch.full((slopes,), slope, device=device)  # may overflow to infinity in 16 bit
    weight = weight if mixed else weight.to(dtype)
    assert_same_bits(prelu(input, weight), reference.forward(input, weight))
    grad_input, _ = prelu_backward(grad_output, input, weight, [True, False])
    assert_same_bits(grad_input, reference.grad_input(grad_output, input, weight))


def test_weight_gradient_of_one_special_term_is_that_term(dtypes, device):
    """One channel for each pair, so that no sum hides a term."""
    dtype, weight_dtype = dtypes
    input, grad_output = (values.reshape(1, 256) for values in _special_pairs(dtype, device))
    weight = finite_slopes((256,), weight_dtype, device)
    _, grad_weight = prelu_backward(grad_output, input, weight, [False, True])
    terms = torch.from_numpy(reference.grad_weight_terms(grad_output, input)).reshape(256)
    expected = terms.to(reference.accumulation_dtype(dtype)).to(weight_dtype).to(device)
    assert (expected == 0).sum() > 64 and expected.isnan().any() and expected.isinf().any()
    assert torch.equal(grad_weight.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))


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


@pytest.mark.parametrize("terms", NON_FINITE_TERMS.values(), ids=NON_FINITE_TERMS.keys())
@pytest.mark.parametrize("name", ("planes", "channels_last", "one_slope"))
def test_a_term_that_is_not_finite_gives_the_ieee_sum(name, terms, dtypes, device):
    """Compensated and cascaded sums turn Inf into Inf - Inf if they are not careful."""
    dtype, weight_dtype = dtypes
    shape, slopes, layout = {
        "planes": ((4, 5, 3000), (5,), contiguous),
        "channels_last": ((4, 5, 3000), (5,), channels_last),
        "one_slope": ((4, 5, 3000), (1,), contiguous),
    }[name]
    input = layout(integer_values(shape, dtype, device, seed=4))
    grad_output = layout(integer_values(shape, dtype, device, seed=5, largest=3))
    for place, (x, g) in zip((17, 2999), terms):
        input[2, 3, place], grad_output[2, 3, place] = x, g
    weight = finite_slopes(slopes, weight_dtype, device)
    _, grad_weight = prelu_backward(grad_output, input, weight, [False, True])
    assert_both_branches(input)
    assert_same_bits(grad_weight, reference.ieee_grad_weight(grad_output, input, weight))


def test_positive_inputs_never_see_an_infinite_slope_or_gradient(dtypes, device):
    dtype, weight_dtype = dtypes
    input = random_values((4, 3, 50), dtype, device, zeros=False).abs()
    grad_output = torch.full_like(input, math.inf)
    for slope in (math.inf, -math.inf, math.nan):
        weight = torch.full((3,), slope, dtype=weight_dtype, device=device)
        output, grad_input, grad_weight = forward_backward(prelu, input, weight, grad_output)
        assert_same_bits(output, input)
        assert_same_bits(grad_input, grad_output)
        assert_same_bits(grad_weight, torch.zeros_like(weight))


# ---- Roundings of the mixed pair, and relations ------------------------------------------------


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


@pytest.mark.parametrize("shape", ((5, 7, 7), (3, 4, 4, 4), (6, 6)))
def test_the_channel_is_dimension_1_even_if_the_last_has_the_same_size(shape, device):
    input = -torch.ones(shape, device=device)
    weight = torch.arange(1.0, shape[1] + 1, device=device)
    for channel in range(shape[1]):
        assert (prelu(input, weight).select(1, channel) == -(channel + 1)).all()
    grad_output = weight.view([-1] + [1] * (len(shape) - 2)).expand(shape).contiguous()
    _, grad_weight = prelu_backward(grad_output, input, weight, [True, True])
    assert torch.equal(grad_weight, -weight * (math.prod(shape) / shape[1]))


def test_a_slope_of_one_is_the_identity(case, dtype, device):
    for input in case_inputs(case, dtype, device):
        assert_same_bits(prelu(input, torch.ones(case.slopes, dtype=dtype, device=device)), input)


def test_the_gradient_of_a_shared_slope_is_the_sum_over_channels(dtypes, device):
    dtype, weight_dtype = dtypes
    input, grad_output = (
        integer_values((9, 12, 11), dtype, device, seed=seed, largest=2) for seed in (8, 9)
    )
    slopes = torch.full((12,), 0.5, dtype=weight_dtype, device=device)
    _, per_channel = prelu_backward(grad_output, input, slopes, [False, True])
    _, shared = prelu_backward(grad_output, input, slopes[:1], [False, True])
    halves = [
        prelu_backward(grad_output[part], input[part], slopes[:1], [False, True])[1]
        for part in (slice(4), slice(4, 9))
    ]
    assert_both_branches(input, per_channel)
    assert torch.equal(per_channel.sum(0, keepdim=True), shared)
    assert torch.equal(halves[0] + halves[1], shared)


def test_every_dtype_is_tested():
    assert set(DTYPES) == {torch.float64, torch.float32, torch.float16, torch.bfloat16}

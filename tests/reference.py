"""What PReLU is, written a second time: float64 NumPy, exact sums, no line shared with torch_ext.

Every product is formed exactly (two significands of at most 24 bits fit in float64's 53), so the
only rounding is the one that the contract (docs/design.md) asks for.
"""

import math

import numpy as np
import torch

# The arithmetic: float32 for 16-bit and float32 data, float64 for float64. u is its unit roundoff.
UNIT_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
# How many of them a slope's gradient may be off, in units of the sum of its terms' magnitudes.
UNITS = {torch.float64: 8, torch.float32: 16}


def accumulation_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _float64(tensor):
    return tensor.detach().cpu().to(torch.float64).numpy()


def _slope_per_element(weight, shape):
    """The slope of every element: one for all, or one for each index of dimension 1."""
    slopes = _float64(weight).reshape(-1)
    if slopes.size == 1:
        return np.broadcast_to(slopes[0], shape)
    return np.broadcast_to(slopes.reshape([-1] + [1] * (len(shape) - 2)), shape)


def _rounded(values, input):
    """Rounded to the arithmetic's type first, then to the result's: the contract's order."""
    result = torch.from_numpy(np.array(values, dtype=np.float64))
    return result.to(accumulation_dtype(input.dtype)).to(input.dtype).to(input.device)


def forward(input, weight):
    """x if x > 0 else w * x."""
    x = _float64(input)
    with np.errstate(invalid="ignore", over="ignore"):
        return _rounded(np.where(x > 0, x, _slope_per_element(weight, x.shape) * x), input)


def plain(input, weight):
    """The definition in differentiable PyTorch operations, for transforms and derivatives."""
    slopes = (
        weight.reshape([-1] + [1] * (input.dim() - 2)) if input.dim() > 1 else weight.reshape(())
    )
    return torch.where(input > 0, input, slopes * input)


def plain_backward(grad_output, input, weight, output_mask=(True, True)):
    """Both gradients, likewise."""
    positive = input > 0
    slopes = (
        weight.reshape([-1] + [1] * max(input.dim() - 2, 0))
        if weight.numel() != 1
        else weight.reshape(())
    )
    terms = torch.where(positive, 0, input * grad_output)
    if weight.numel() == 1:
        sums = terms.sum()
    else:
        sums = terms.movedim(1, 0).flatten(1).sum(1)
    gradients = torch.where(positive, grad_output, slopes * grad_output), sums.reshape(weight.shape)
    return tuple(each if wanted else None for each, wanted in zip(gradients, output_mask))


def grad_input(grad_output, input, weight):
    """g if x > 0 else w * g."""
    x, g = _float64(input), _float64(grad_output)
    with np.errstate(invalid="ignore", over="ignore"):
        return _rounded(np.where(x > 0, g, _slope_per_element(weight, x.shape) * g), input)


def grad_weight_terms(grad_output, input):
    """0 if x > 0 else x * g: every element's share of its slope's gradient."""
    x, g = _float64(input), _float64(grad_output)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(x > 0, 0.0, x * g)


def per_slope(values, weight):
    """The values that belong to each slope: a list of 1-D arrays."""
    if weight.numel() == 1:
        return [np.asarray(values).reshape(-1)]
    return list(np.moveaxis(values, 1, 0).reshape(values.shape[1], -1))


def _product_errors(grad_output, input):
    """What rounding to float64 took from each term of float64 data (Dekker's product)."""
    x, g = _float64(input), _float64(grad_output)
    (xh, xl), (gh, gl) = _split(x), _split(g)
    return np.where(x > 0, 0.0, ((xh * gh - x * g) + xh * gl + xl * gh) + xl * gl)


def _split(values):
    scaled = values * (2.0**27 + 1)
    high = scaled - (scaled - values)
    return high, values - high


def exact_grad_weight(grad_output, input, weight):
    """The weight gradient without any rounding but the last one to float64. For finite data."""
    terms = per_slope(grad_weight_terms(grad_output, input), weight)
    if input.dtype == torch.float64:  # else the products are exact already
        errors = per_slope(_product_errors(grad_output, input), weight)
        terms = [np.concatenate(pair) for pair in zip(terms, errors)]
    sums = [math.fsum(part.tolist()) for part in terms]
    return np.array(sums).reshape(tuple(weight.shape))


def ieee_grad_weight(grad_output, input, weight):
    """Where a term is not finite, too: Inf of one sign stays; both signs, or NaN, give NaN."""
    sums = []
    for terms in per_slope(grad_weight_terms(grad_output, input), weight):
        if np.isfinite(terms).all():
            sums.append(math.fsum(terms.tolist()))
        elif np.isnan(terms).any() or (np.isposinf(terms).any() and np.isneginf(terms).any()):
            sums.append(math.nan)
        else:
            sums.append(math.inf if np.isposinf(terms).any() else -math.inf)
    sums = torch.tensor(sums, dtype=torch.float64).reshape(weight.shape)
    return sums.to(accumulation_dtype(input.dtype)).to(weight)


def ulp(values, dtype):
    """The distance to the next number of this dtype."""
    info = torch.finfo(dtype)
    _, exponent = np.frexp(np.abs(values))
    return np.maximum(np.ldexp(info.eps, exponent - 1), info.tiny * info.eps)


def bound(exact, magnitude, dtype, weight_dtype):
    """How far a sum may be from the exact one: 16·u·Σ|x·g| + ½ ulp(output), 8·u for float64.

    The terms are of input's dtype; their magnitudes add up to `magnitude`.
    """
    accumulation = accumulation_dtype(dtype)
    summation = UNITS[accumulation] * UNIT_ROUNDOFF[accumulation] * magnitude
    return summation + 0.5 * ulp(np.abs(exact) + summation, weight_dtype)


def assert_grad_weight_within_bound(actual, grad_output, input, weight):
    exact = exact_grad_weight(grad_output, input, weight)
    assert np.abs(exact).max() > 0, "the data make this comparison vacuous: every gradient is zero"
    error = np.abs(_float64(actual) - exact)
    terms = per_slope(np.abs(grad_weight_terms(grad_output, input)), weight)
    magnitude = np.array([part.sum() for part in terms]).reshape(tuple(weight.shape))
    most = bound(exact, magnitude, input.dtype, weight.dtype)
    assert (error <= most).all(), f"error is {np.nanmax(error / most)} times the bound"


def same_bits(actual, expected):
    """Equal as integers: +0 and -0 differ; every NaN is equal to every NaN."""
    if (actual.shape, actual.dtype, actual.device) != (
        expected.shape,
        expected.dtype,
        expected.device,
    ):
        return False
    return not _different(actual, expected).any()


def assert_same_bits(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.device == expected.device
    different = _different(actual, expected)
    if different.any():
        at = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(different.sum())} of {different.numel()} elements differ, first at {at}: "
            f"{actual[at].item()!r} instead of {expected[at].item()!r}"
        )


def _different(actual, expected):
    actual, expected = actual.detach(), expected.detach()
    as_integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    bits = actual.contiguous().view(as_integer) != expected.contiguous().view(as_integer)
    return bits & ~(actual.isnan() & expected.isnan()) if bits.any() else bits


def assert_both_branches(input, *results):
    """A comparison on data of one sign, or of zeros, would prove nothing."""
    if input.numel() >= 16:
        positive = (input > 0).sum().item() / input.numel()
        assert 0.25 <= positive <= 0.75, f"{positive:.0%} of the inputs are positive"
        for result in results:
            assert result.detach().double().nan_to_num().norm() > 0, "a result is zero everywhere"


def dtype_or_error(operator, input, weight):
    """Of the output; or what was raised instead."""
    try:
        return operator(input, weight).dtype
    except RuntimeError as error:
        return type(error), str(error)

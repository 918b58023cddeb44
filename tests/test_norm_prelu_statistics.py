"""Mean and variance of norm + PReLU: their bound for any data, near each other or not."""

import itertools
import math

import numpy as np
import pytest
import torch
from batteries import naming
from cases import channels_last, contiguous
from norm_reference import wide
from reference import UNIT_ROUNDOFF, assert_same_bits

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

norm_prelu = torch.ops.torch_ext._norm_prelu

SHAPES = {
    "cached": (6, 24, 40, 41),
    "few_channels": (5, 3, 101, 103),
    "large_channels": (40, 16, 64, 64),
    "short": (4, 7, 3, 3),
    "one_row": (1, 9, 2000),
}


def statistics_of(input, instance):
    slope = torch.full((), 0.25, dtype=input.dtype)
    _, mean, var = norm_prelu(input, slope, None, None, 1e-5, instance)
    return mean, var


def check(input, instance):
    """abs(mean's error) <= u * abs(mean) + 16 u sigma, the deviation's relative error <= 32 u."""
    mean, var = statistics_of(input, instance)
    x = wide(input)
    axes = tuple(d for d in range(x.ndim) if d > 1 or (d == 0 and not instance))
    exact_mean = x.mean(axis=axes)
    exact_var = ((x - x.mean(axis=axes, keepdims=True)) ** 2).mean(axis=axes)
    u = UNIT_ROUNDOFF[mean.dtype]
    sigma = np.sqrt(exact_var)
    assert mean.shape == exact_mean.shape and (sigma > 0).all()
    off = np.abs(wide(mean) - exact_mean) / (u * np.abs(exact_mean) + 16 * u * sigma)
    assert off.max() <= 1, f"mean: {off.max():.3g} of the bound"
    off = np.abs(np.sqrt(wide(var)) / sigma - 1) / (32 * u)
    assert off.max() <= 1, f"deviation: {off.max():.3g} of the bound"


def normal(shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("instance", (False, True), ids=("batch", "instance"))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_bound(shape, instance, dtype):
    for layout, sigmas in itertools.product((contiguous, channels_last), (0.0, 1.0, 30.0, 1000.0)):
        if dtype.itemsize > 2 or sigmas <= 30:  # else what is left of the data are a few values
            with naming(layout=layout.__name__, sigmas=sigmas):
                check(layout((normal(shape) * 0.7 + 0.7 * sigmas).to(dtype)), instance)


# A shift far from the data costs digits, so that no single element may decide it.
def _first_of_channel(values):
    values[0, :, 0, 0] = 1000
    return values


def _first_of_plane(values):
    values[..., 0, 0] = 300
    return values


def _borders(values):
    values[..., 0, :] = values[..., :, 0] = values[..., -1, :] = values[..., :, -1] = 100
    return values


def _first_row_of_samples(values):
    values[0] += 50
    return values


def _sparse(values):
    return torch.where(values > 1.3, values * 100, values * 1e-3)


def _one_far_value(values):
    values[1, :, 2, 1] = 1e4
    return values


def _skewed(values):
    return (values * 2).exp()


def _rising(values):
    return values + torch.arange(values.numel()).reshape(values.shape) * (20 / values.numel())


ADVERSARIES = (
    _first_of_channel,
    _first_of_plane,
    _borders,
    _first_row_of_samples,
    _sparse,
    _one_far_value,
    _skewed,
    _rising,
)


@pytest.mark.parametrize("adversary", ADVERSARIES, ids=lambda f: f.__name__.strip("_"))
def test_elements_far_from_the_others(adversary):
    for layout, name in itertools.product((contiguous, channels_last), ("cached", "few_channels")):
        with naming(layout=layout.__name__, shape=name):
            values = layout(adversary(normal(SHAPES[name])))
            check(values, False)
            check(values.float(), False)


def _sampled_positions(count):
    """Where the kernels look for a shift, as long as nobody changes it: the worst that can be."""
    samples = max(3, min(15, count // 64))
    golden = (math.sqrt(5) - 1) / 2
    return [int((0.5 + golden * (i + 1)) % 1 * count) for i in range(samples)]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("instance", (False, True), ids=("batch", "instance"))
def test_when_every_sample_is_far_from_the_others(dtype, instance):
    shape = SHAPES["cached"]
    count = shape[2] * shape[3] * (1 if instance else shape[0])
    values = normal(shape).movedim(1, 0).contiguous()
    per_statistic = values.view(shape[1] * (shape[0] if instance else 1), count)
    per_statistic[::2, _sampled_positions(count)] = 5000
    input = values.movedim(0, 1).contiguous().to(dtype)
    assert (input == 5000).sum() > 100
    check(input, instance)


def test_a_constant_has_no_variance():
    for value in (0.1, -3e7, 0.0):
        input = torch.full((4, 5, 30, 31), value)
        mean, var = statistics_of(input, False)
        assert (mean == input[0, 0, 0, 0]).all() and (var == 0).all()


@pytest.mark.parametrize("value", (math.inf, -math.inf, math.nan))
def test_what_is_not_finite_stays_in_its_channel(value):
    input = normal((4, 5, 30, 31)).float()
    slope = torch.full((5,), 0.25)
    expected = norm_prelu(input, slope, None, None, 1e-5, False)
    input[2, 3, 7, 8] = value
    output, mean, var = norm_prelu(input, slope, None, None, 1e-5, False)
    others = [0, 1, 2, 4]
    assert_same_bits(output[:, others], expected[0][:, others].contiguous())
    assert output[:, 3].isnan().all() and var[3].isnan()
    assert_same_bits(mean[3], torch.tensor(value))


# ---- Determinism -------------------------------------------------------------------------------


@pytest.mark.parametrize("instance", (False, True), ids=("batch", "instance"))
def test_a_second_look_has_the_same_bits_for_any_number_of_threads(instance, threads):
    """Where the first shift was far."""
    values = normal((64, 3, 930))
    values.view(64 * (3 if instance else 1), -1)[
        :, _sampled_positions(values[0, : 1 if instance else 3].numel())
    ] = 5000
    input = values.movedim(0, 1).contiguous().view(3, 64, 30, 31).float()
    slope = torch.full((), 0.25)
    results = []
    for count in (1, 3):
        threads(count)
        results.append(norm_prelu(input, slope, None, None, 1e-5, instance))
    for actual, expected in zip(*results, strict=True):
        assert_same_bits(actual, expected)

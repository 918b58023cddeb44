"""Sums without rounding, so that one wrong, lost or repeated term shows: grad_weight of small
integers by sixteenths, compared with 64-bit integers, on the shapes that oneDNN tests its PReLU on."""

import math

import pytest
import torch
from cases import channels_last, contiguous

import torch_ext  # noqa: F401  (registers the operators)

prelu_backward = torch.ops.torch_ext.prelu_backward

# oneDNN's benchdnn, inputs/prelu/shapes_all. It also has slopes of the input's own shape, which
# PyTorch refuses.
SHAPES = (
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
SMALL = 2**22  # elements


def _fill(shape, dtype, seed):
    """Inputs of -2 to 2, gradients of -7/16 to 7/16, and their sixteenths as integers."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(-2, 3, shape, generator=generator, dtype=torch.int8)
    sixteenths = torch.randint(-7, 8, shape, generator=generator, dtype=torch.int8)
    return inputs, sixteenths, inputs.to(dtype), sixteenths.to(dtype) / 16


def _assert_exact(shape, dtypes, layout):
    dtype, weight_dtype = dtypes
    inputs, sixteenths, input, grad_output = _fill(shape, dtype, seed=math.prod(shape))
    terms = torch.where(inputs > 0, 0, inputs * sixteenths)  # at most 14: int8 holds it
    sums = terms.movedim(1, 0).reshape(shape[1], -1).sum(1)  # int64
    if math.prod(shape) > 64:
        assert sums.count_nonzero() > 0 and (inputs > 0).any()
    assert (terms.abs().sum() < 2**24) or math.prod(shape) > SMALL
    input, grad_output = layout(input), layout(grad_output)
    for slopes, expected in ((shape[1], sums), (1, sums.sum().reshape(1))):
        weight = torch.full((slopes,), 0.5, dtype=weight_dtype)
        _, grad_weight = prelu_backward(grad_output, input, weight, [True, True])
        assert torch.equal(grad_weight, (expected.double() / 16).to(weight_dtype))


def _name(shape):
    return "x".join(map(str, shape))


@pytest.mark.contract
@pytest.mark.parametrize("layout", (contiguous, channels_last), ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=_name)
def test_the_sum_is_exact_in_every_shape_of_onednns_tests(shape, layout, dtypes):
    """Large ones with fewer samples."""
    samples = max(1, SMALL // 8 // math.prod(shape[1:]))
    _assert_exact((min(shape[0], samples), *shape[1:]), dtypes, layout)


@pytest.mark.full
@pytest.mark.parametrize("layout", (contiguous, channels_last), ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [s for s in SHAPES if math.prod(s) > SMALL // 8], ids=_name)
def test_the_sum_is_exact_at_full_size(shape, layout, dtypes):
    _assert_exact(shape, dtypes, layout)

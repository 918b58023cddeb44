"""Every special input with every special slope and every special gradient."""

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from cases import forward_backward, special_values
from reference import assert_same_bits
from torch.autograd import forward_ad

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


def _triples(dtype, weight_dtype, device):
    """16×16×16: inputs, gradients (rows of pairs) and slopes (one a column)."""
    values, slopes = special_values(dtype, device), special_values(weight_dtype, device)
    inputs, grads = values.repeat_interleave(16), values.repeat(16)
    return inputs.view(256, 1).repeat(1, 16), grads.view(256, 1).repeat(1, 16), slopes


def test_the_values_are_the_special_ones(dtype):
    values, info = special_values(dtype).tolist(), torch.finfo(dtype)
    for value in (0.0, info.tiny * info.eps, info.tiny, 1.0, info.max, math.inf):
        assert value in values and -value in values
    assert sum(value == 0 for value in values) == 2 and sum(map(math.isnan, values)) == 1


@pytest.mark.parametrize("walk", ("columns", "planes"))
def test_output_and_input_gradient_of_every_triple(walk, dtypes, device):
    """Denormal slopes and overflowing products, too."""
    input, grad_output, slopes = _triples(*dtypes, device)
    if walk == "planes":  # (1, 16, 256): a long run for each slope
        input, grad_output = (t.T.contiguous().unsqueeze(0) for t in (input, grad_output))
    output, grad_input, _ = forward_backward(prelu, input, slopes, grad_output)
    assert_same_bits(output, reference.forward(input, slopes))
    assert_same_bits(grad_input, reference.grad_input(grad_output, input, slopes))
    if dtypes[0] == dtypes[1]:
        stock_output, stock_grad_input, _ = forward_backward(F.prelu, input, slopes, grad_output)
        assert_same_bits(output, stock_output)
        assert_same_bits(grad_input, stock_grad_input)


@pytest.mark.parametrize("walk", ("columns", "planes"))
def test_weight_gradient_of_every_triple(walk, dtypes, device):
    """A channel for each, so that no sum hides a term; the slope itself must not matter."""
    input, grad_output, slopes = _triples(*dtypes, device)
    shape = (1, 4096) if walk == "columns" else (1, 4096, 1)
    input, grad_output = input.reshape(shape), grad_output.reshape(shape)
    _, _, grad_weight = forward_backward(prelu, input, slopes.repeat(256), grad_output)
    terms = torch.from_numpy(reference.grad_weight_terms(grad_output, input)).flatten()
    expected = terms.to(reference.accumulation_dtype(dtypes[0])).to(slopes)
    assert (expected == 0).sum() > 1024 and expected.isnan().any() and expected.isinf().any()
    assert torch.equal(grad_weight.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))


# ---- Forward mode -------------------------------------------------------------------------------

INFINITE = [math.inf, math.inf, 2.0, -2.0, -3.0]


def _jvp_of_dual_numbers(function, primals, tangents):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(primal, t) for primal, t in zip(primals, tangents)]
        return forward_ad.unpack_dual(function(*duals)).tangent


def _jvp_of_transform(function, primals, tangents):
    return torch.func.jvp(function, tuple(primals), tuple(tangents))[1]


@pytest.mark.parametrize("jvp", (_jvp_of_dual_numbers, _jvp_of_transform))
def test_tangents_are_finite_where_data_are_infinite_as_stocks(jvp, device):
    """Where they are positive: a product of the slope's tangent, 0 there, and infinity is NaN."""
    x = torch.tensor([INFINITE], dtype=torch.float64, device=device)
    w = torch.tensor(0.25, dtype=torch.float64, device=device)
    g = torch.tensor([[1.0, math.inf, math.inf, 4.0, 5.0]], dtype=x.dtype, device=device)
    dx, dw, dg = torch.full_like(x, 3.0), torch.full_like(w, 5.0), torch.full_like(g, 7.0)
    outputs = [jvp(operator, (x, w), (dx, dw)) for operator in (prelu, F.prelu)]
    assert outputs[0].tolist() == [[3.0, 3.0, 3.0, 0.25 * 3 - 2 * 5, 0.25 * 3 - 3 * 5]]
    assert_same_bits(*outputs)

    def grad_input(g, x, w):
        return prelu_backward(g, x, w, [True, False])[0]

    tangent = jvp(grad_input, (g, x, w), (dg, dx, dw))
    assert tangent.tolist() == [[7.0, 7.0, 7.0, 0.25 * 7 + 4 * 5, 0.25 * 7 + 5 * 5]]

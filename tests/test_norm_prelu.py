"""What is peculiar to norm + PReLU in numbers: data far from zero, sides near the kink, running statistics."""

import pytest
import torch
from cases import CASE_BY_NAME, Case
from norm_cases import BATCH, IMAGE, both_modes, both_norms, problem_of
from operators import OPERATORS
from reference import assert_same_bits

import torch_ext

pytestmark = pytest.mark.contract

INTERNAL = [row for row in OPERATORS if row.name.startswith("norm_prelu")]


@pytest.mark.parametrize("mean", (30.0, 1000.0))
@pytest.mark.parametrize("row", INTERNAL, ids=lambda row: row.name)
def test_data_far_from_zero(row, mean):
    arguments = row.make(CASE_BY_NAME["image"], (torch.float32, torch.float32))
    for name in {"input", "mean"} & set(row.names):
        arguments[row.place(name)] += mean
    for setting in row.settings.values():
        row.check(arguments, setting)


# ---- One side in forward and backward ----------------------------------------------------------


@pytest.mark.parametrize("shape", ((2, 8, 40, 50), (3, 8, 1, 3), (700, 8)))
@both_modes
def test_an_element_is_on_the_same_side_in_forward_and_backward(dtype, training, shape):
    """Elements within a few roundings of the kink: with slope 0 and gradient 1, the gradient of the
    bias counts those that the backward takes for positive, the output shows them one by one."""
    generator = torch.Generator().manual_seed(5)
    channels = shape[1]
    per_channel = [1, channels] + [1] * (len(shape) - 2)
    weight = (torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5).to(dtype)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 7
    x = x.to(dtype)
    mean, var = (
        x.double().mean([0, *range(2, x.dim())]),
        x.double().var([0, *range(2, x.dim())], False),
    )
    # A bias that puts the kink onto an element of each channel, and half of the others close to it.
    kink = x.reshape(shape[0], channels, -1)[0, :, 0].double()
    bias = ((mean - kink) * weight.double() / (var + 1e-5).sqrt()).to(dtype)
    if not training:
        ulp = torch.finfo(dtype).eps * 4
        near = kink.reshape(per_channel) * (
            1 + ulp * torch.randint(-4, 5, shape, generator=generator).double()
        )
        x = torch.where(torch.rand(shape, generator=generator) < 0.5, near.to(dtype), x)
    slope = torch.zeros(channels, dtype=dtype)
    mean, var, bias = mean.to(dtype), var.to(dtype), bias.requires_grad_()
    output = torch_ext.batch_norm_prelu(x, slope, mean, var, weight, bias, training)
    count = (output > 0).sum([0, *range(2, x.dim())])
    assert 0.1 < count.sum() / output.numel() < 0.9
    with torch.no_grad():
        z = (x.double() - mean.double().reshape(per_channel)) * (
            weight.double() / (var.double() + 1e-5).sqrt()
        ).reshape(per_channel) + bias.double().reshape(per_channel)
    assert (z.abs() < 1e-2).sum() >= channels / 2  # some are near
    (grad_bias,) = torch.autograd.grad(output, bias, torch.ones_like(output))
    assert_same_bits(grad_bias, count.to(dtype))


# ---- Running statistics ------------------------------------------------------------------------


def buffers_of(problem):
    return problem.running_mean, problem.running_var


@both_norms
@pytest.mark.parametrize("momentum", (1.0, 0.0))
def test_running_statistics_after_some_steps_are_pytorchs(norm, momentum):
    """In place. For autograd, too: instance norm tells that it has changed them, batch norm does not."""
    ours = problem_of(IMAGE, norm, True, torch.float64)
    ours.momentum = momentum
    theirs, before = ours.with_leaves(), ours.with_buffers()
    for _ in range(3):
        ours.run()
        theirs.pytorch()
    for one, other, old in zip(*map(buffers_of, (ours, theirs, before)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert torch.equal(one, old) == (momentum == 0)
        assert one._version == other._version == (0 if norm is BATCH else 3)


@both_norms
@pytest.mark.parametrize("case", (IMAGE, Case("empty", (0, 3, 4, 5), (3,))), ids=lambda c: c.name)
def test_in_eval_mode_and_for_nothing_buffers_stay(norm, case):
    problem = problem_of(case, norm, case is not IMAGE, torch.float32).with_leaves()
    before = [buffer.clone() for buffer in buffers_of(problem)]
    problem.run().sum().backward()
    for one, other in zip(buffers_of(problem), before, strict=True):
        assert_same_bits(one, other)
        assert one._version == 0


@both_norms
def test_without_running_statistics(norm):
    with_buffers = problem_of(IMAGE, norm, True, torch.float32)
    output = with_buffers.run()
    with_buffers.running_mean = with_buffers.running_var = None
    assert_same_bits(with_buffers.run(), output)

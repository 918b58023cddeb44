"""Norm + PReLU in numbers: outputs, gradients and running statistics."""

import pytest
import torch
from cases import DTYPE_PAIRS, expanded, expanded_batch, significant_strides, single_value, step_2
from conftest import _pair_name
from norm_cases import BATCH, CASES, FUNCTIONS, INSTANCE, PARAMETRIZED, NormCase, problem_of
from norm_reference import Oracle
from reference import assert_same_bits

import torch_ext

pytestmark = pytest.mark.contract

ids = [f"{norm}-{case.name}" for norm, case in PARAMETRIZED]
both_modes = pytest.mark.parametrize("training", (True, False), ids=("training", "eval"))
all_cases = pytest.mark.parametrize(("norm", "case"), PARAMETRIZED, ids=ids)
both_norms = pytest.mark.parametrize("norm", FUNCTIONS)
IMAGE = CASES[0]


@pytest.fixture(params=DTYPE_PAIRS, ids=_pair_name)
def dtypes(request):
    return request.param


def oracle_of(problem):
    given = None if problem.training else (problem.running_mean, problem.running_var)
    return Oracle(
        problem.input,
        problem.slope,
        problem.weight,
        problem.bias,
        problem.grad_output,
        problem.eps,
        problem.norm == INSTANCE and problem.training,
        given,
    )


def gradients(problem, output, grad_output=None):
    """In the order of the oracle's checks; None where there is no such parameter."""
    found = iter(
        torch.autograd.grad(
            output,
            problem.differentiable,
            problem.grad_output if grad_output is None else grad_output,
        )
    )
    tensors = (problem.input, problem.slope, problem.weight, problem.bias)
    return [None if tensor is None else next(found) for tensor in tensors]


# ---- Values ------------------------------------------------------------------------------------


@both_modes
@all_cases
def test_outputs_and_gradients(norm, case, training, dtypes):
    problem = problem_of(case, norm, training, *dtypes)
    oracle = oracle_of(problem)
    assert 0.2 < oracle.positive.mean() < 0.8
    leaves = problem.with_leaves()
    output = leaves.run()
    oracle.check_output(output)
    assert output.dtype == problem.input.dtype
    assert significant_strides(output) == significant_strides(torch.empty_like(problem.input))
    grad_input, grad_slope, grad_weight, grad_bias = gradients(leaves, output)
    oracle.check_grad_input(grad_input)
    assert significant_strides(grad_input) == significant_strides(output)
    oracle.check_sum(grad_slope, oracle.grad_slope)
    assert grad_slope.dtype == problem.slope.dtype and grad_slope.shape == problem.slope.shape
    if case.affine:
        oracle.check_sum(grad_weight, oracle.grad_weight)
        oracle.check_sum(grad_bias, oracle.grad_bias)
        assert grad_weight.dtype == grad_bias.dtype == problem.weight.dtype


@both_modes
@both_norms
@pytest.mark.parametrize("mean", (0.0, 30.0, 1000.0))
def test_data_far_from_zero(norm, training, mean):
    problem = problem_of(IMAGE, norm, training, torch.float32, mean=mean)
    oracle = oracle_of(problem)
    leaves = problem.with_leaves()
    output = leaves.run()
    oracle.check_output(output)
    oracle.check_sum(gradients(leaves, output)[2], oracle.grad_weight)


@both_modes
@both_norms
@pytest.mark.parametrize("layout", (step_2, expanded, expanded_batch, single_value))
def test_a_gradient_with_any_strides(norm, training, layout):
    problem = problem_of(IMAGE, norm, training, torch.float32).with_leaves()
    grad_output = layout(problem.grad_output)
    output = problem.run()
    for actual, expected in zip(
        torch.autograd.grad(output, problem.differentiable, grad_output, retain_graph=True),
        torch.autograd.grad(output, problem.differentiable, grad_output.contiguous()),
        strict=True,
    ):
        assert_same_bits(actual, expected)


@both_modes
@both_norms
def test_against_pytorch_in_double(norm, training):
    problem = problem_of(IMAGE, norm, training, torch.float64)
    ours, theirs = problem.with_leaves(), problem.with_leaves()
    outputs = ours.run(), theirs.pytorch()
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    for pair in zip(gradients(ours, outputs[0]), gradients(theirs, outputs[1]), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-11, atol=1e-11)


# ---- What is not wanted ------------------------------------------------------------------------


@both_modes
@both_norms
def test_gradients_that_nobody_asks_for(norm, training, dtype):
    """Each alone has the bits that it has beside the others."""
    problem = problem_of(IMAGE, norm, training, dtype).with_leaves()
    together = gradients(problem, problem.run())
    tensors = problem.differentiable
    for i, tensor in enumerate(tensors):
        for other in tensors:
            other.requires_grad_(other is tensor)
        (alone,) = torch.autograd.grad(problem.run(), [tensor], problem.grad_output)
        assert_same_bits(alone, together[i])
        assert alone.abs().max() > 0


@both_modes
def test_the_mask_leaves_gradients_undefined(training):
    p = problem_of(IMAGE, BATCH, training, torch.float32)
    mean, var = p.running_mean, p.running_var
    for i in range(16):
        mask = [bool(i >> bit & 1) for bit in range(4)]
        results = torch.ops.torch_ext._norm_prelu_backward(
            p.grad_output, p.input, p.slope, p.weight, p.bias, mean, var, p.eps, training, mask
        )
        assert [result is not None for result in results] == mask


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


@all_cases
@pytest.mark.parametrize("momentum", (0.1, 1.0, 0.0))
def test_running_statistics_are_pytorchs(norm, case, momentum):
    ours = problem_of(case, norm, True, torch.float64)
    ours.momentum = momentum
    theirs = ours.with_leaves()
    ours = ours.with_leaves()
    before = ours.running_mean.clone(), ours.running_var.clone()
    for _ in range(3):
        ours.run()
        theirs.pytorch()
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours.running_mean, before[0]) == (momentum == 0)
    assert torch.equal(ours.running_var, before[1]) == (momentum == 0)


@both_norms
def test_running_statistics_beside_16_bit_data(norm):
    for dtypes in ((torch.bfloat16, torch.float32), (torch.float16, torch.float16)):
        ours = problem_of(IMAGE, norm, True, *dtypes).with_leaves()
        wide = problem_of(IMAGE, norm, True, torch.float64).with_leaves()
        wide.input = ours.input.double()
        wide.running_mean, wide.running_var = ours.running_mean.double(), ours.running_var.double()
        ours.run()
        wide.pytorch()
        eps = torch.finfo(dtypes[1]).eps
        for actual, expected in (
            (ours.running_mean, wide.running_mean),
            (ours.running_var, wide.running_var),
        ):
            assert actual.dtype == dtypes[1]
            torch.testing.assert_close(actual.double(), expected, rtol=2 * eps, atol=2 * eps)


@both_norms
def test_in_eval_mode_buffers_stay(norm):
    problem = problem_of(IMAGE, norm, False, torch.float32).with_leaves()
    before = problem.running_mean.clone(), problem.running_var.clone()
    versions = problem.running_mean._version, problem.running_var._version
    problem.run().sum().backward()
    assert_same_bits(problem.running_mean, before[0])
    assert_same_bits(problem.running_var, before[1])
    assert (problem.running_mean._version, problem.running_var._version) == versions


@both_norms
def test_without_running_statistics(norm):
    with_buffers = problem_of(IMAGE, norm, True, torch.float32)
    output = with_buffers.run()
    with_buffers.running_mean = with_buffers.running_var = None
    assert_same_bits(with_buffers.run(), output)


# ---- Empty -------------------------------------------------------------------------------------


@both_modes
@both_norms
@pytest.mark.parametrize("shape", ((0, 3, 4, 5), (2, 3, 0, 5), (2, 0, 4)))
def test_empty_inputs(norm, training, shape):
    problem = problem_of(NormCase("empty", shape, (shape[1],)), norm, training, torch.float32)
    problem = problem.with_leaves()
    before = problem.running_mean.clone()
    output = problem.run()
    assert output.shape == shape
    for tensor, gradient in zip(
        problem.differentiable, torch.autograd.grad(output.sum(), problem.differentiable)
    ):
        assert gradient.shape == tensor.shape and (gradient == 0).all()
    assert torch.equal(problem.running_mean, before)

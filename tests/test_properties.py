"""Relations between calls of PReLU, tried on random problems: scaling, order, parts, one slope for all."""

import torch
from cases import forward_backward
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operators import PRELU_BACKWARD
from problems import Placement, Problem, problems  # noqa: F401  (the printed lines use them)
from reference import assert_same_bits

import torch_ext  # noqa: F401  (registers the operators)

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
FEW = settings(max_examples=100, derandomize=True, **COMMON)
# ---- Relations ---------------------------------------------------------------------------------


def _results(*arguments):
    input, weight, grad_output = arguments
    return forward_backward(prelu, input, weight, grad_output)


@FEW
@given(problems(), st.integers(-3, 3))
def test_scaling_the_input_by_a_power_of_two_scales_output_and_weight_gradient(problem, exponent):
    grad_output, input, weight = problem.arguments(PRELU_BACKWARD)
    scale = 2.0**exponent
    output, grad_input, grad_weight = _results(input, weight, grad_output)
    scaled_output, same_grad_input, scaled_grad_weight = _results(
        input * scale, weight, grad_output
    )
    assert_same_bits(scaled_output, output * scale)
    assert_same_bits(same_grad_input, grad_input)
    if grad_weight.isfinite().all() and scaled_grad_weight.isfinite().all():
        assert_same_bits(scaled_grad_weight, grad_weight * scale)


@FEW
@given(problems(ranks=st.integers(2, 6)), st.randoms(use_true_random=False))
def test_the_order_of_the_other_dimensions_does_not_matter(problem, random):
    grad_output, input, weight = problem.arguments(PRELU_BACKWARD)
    others = [dim for dim in range(input.dim()) if dim != 1]
    random.shuffle(others)
    order = [others[0], 1, *others[1:]]
    output, grad_input, grad_weight = _results(input, weight, grad_output)
    permuted = _results(input.permute(order), weight, grad_output.permute(order))
    assert_same_bits(permuted[0], output.permute(order))
    assert_same_bits(permuted[1], grad_input.permute(order))
    assert_same_bits(permuted[2], grad_weight)


@FEW
@given(problems(ranks=st.integers(1, 6), per_channel=True), st.integers(0, 1025))
def test_weight_gradients_of_parts_of_a_batch_add_up(problem, cut):
    grad_output, input, weight = problem.arguments(PRELU_BACKWARD)
    whole = prelu_backward(grad_output, input, weight, [False, True])[1]
    parts = [
        prelu_backward(grad_output[part], input[part], weight, [False, True])[1]
        for part in (slice(cut), slice(cut, None))
    ]
    _assert_sum(whole, parts)


@FEW
@given(problems(ranks=st.integers(2, 6), per_channel=True))
def test_the_weight_gradient_of_one_slope_is_the_sum_over_channels(problem):
    grad_output, input, weight = problem.arguments(PRELU_BACKWARD)
    one = weight[:1] if len(weight) else weight.new_ones(1)
    shared = prelu_backward(grad_output, input, one, [False, True])[1]
    channels = prelu_backward(grad_output, input, weight, [False, True])[1]
    _assert_sum(shared, list(channels.unsqueeze(1)))


def _assert_sum(whole, parts):
    """Exact unless this dtype cannot hold halves as large as these: then nothing is claimed."""
    total = torch.zeros_like(whole, dtype=torch.float64)
    for part in parts:
        total += part.double()
    largest = max((part.double().abs().max() for part in (whole, *parts) if len(part)), default=0)
    if largest <= 1 / torch.finfo(whole.dtype).eps:
        assert_same_bits(whole + 0.0, total.to(whole.dtype) + 0.0)  # -0 and +0 are equal sums


@FEW
@given(problems())
def test_a_slope_of_one_is_the_identity(problem):
    grad_output, input, weight = problem.arguments(PRELU_BACKWARD)
    output, grad_input, _ = _results(input, torch.ones_like(weight), grad_output)
    assert_same_bits(output, input)
    assert_same_bits(grad_input, grad_output)

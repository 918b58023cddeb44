"""Promises beyond values: the definition, empties, masks, what is saved, and no side effects."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import (
    EMPTY_CASES,
    SLOPES,
    case_inputs,
    channels_last,
    finite_slopes,
    forward_backward,
    random_values,
    slope_tensors,
    special_values,
    step_2,
)
from reference import assert_both_branches, assert_same_bits, same_bits

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


# ---- The definition ----------------------------------------------------------------------------


def test_the_select_is_the_definition_and_the_maximum_is_not(device):
    """max(a*x, x) is the same function only while a <= 1."""
    input = random_values((4, 100), torch.float32, device)
    for slope in (-1.0, 0.0, 0.25, 1.0):
        weight = torch.tensor([slope], device=device)
        assert torch.equal(prelu(input, weight), torch.maximum(slope * input, input))
    for slope in (1.5, 2.0, 100.0):
        output = prelu(input, torch.tensor([slope], device=device))
        assert_both_branches(input, output)
        assert_same_bits(output, torch.where(input > 0, input, slope * input))
        assert (output != torch.maximum(slope * input, input))[input != 0].all()
    assert prelu(
        torch.tensor([-3.0, 3.0], device=device), torch.tensor(2.0, device=device)
    ).tolist() == [-6.0, 3.0]


def test_a_slope_of_zero_is_relu_but_for_the_sign_of_zero(dtype, device):
    input = random_values((5, 4, 33), dtype, device)
    weight = torch.zeros(4, dtype=dtype, device=device)
    output = prelu(input, weight)
    assert_both_branches(input, output)
    assert torch.equal(output, F.relu(input))
    negative = input < 0
    assert output[negative].signbit().all() and not F.relu(input)[negative].signbit().any()


def test_a_slope_of_001_is_leaky_relu(dtypes, device):
    """In 16 bits with a float32 slope: F.leaky_relu, too, keeps its slope in float32."""
    dtype, weight_dtype = dtypes
    if dtype == weight_dtype and dtype.itemsize == 2:
        weight_dtype = torch.float32
    input = random_values((5, 4, 33), dtype, device)
    output = prelu(input, torch.full((4,), 0.01, dtype=weight_dtype, device=device))
    assert_both_branches(input, output)
    assert_same_bits(output, F.leaky_relu(input, 0.01))


# ---- Empties and masks -------------------------------------------------------------------------


@pytest.mark.parametrize("empty", EMPTY_CASES, ids=lambda case: case.name)
def test_an_empty_input_gives_empty_results_and_zeros(empty, dtypes, device):
    dtype, weight_dtype = dtypes
    input = empty.layout(torch.empty(empty.shape, dtype=dtype, device=device))
    weight = torch.full(empty.slopes, math.nan, dtype=weight_dtype, device=device)
    results = forward_backward(prelu, input, weight, torch.empty_like(input))
    directly = prelu_backward(torch.empty_like(input), input, weight, [True, True])
    for output, grad_input, grad_weight in (results, (results[0], *directly)):
        assert (output.shape, output.dtype) == (input.shape, dtype)
        assert (grad_input.shape, grad_input.dtype) == (input.shape, dtype)
        assert_same_bits(grad_weight, torch.zeros_like(weight))


@pytest.mark.parametrize(
    "layout", (torch.Tensor.contiguous, channels_last, step_2), ids=lambda f: f.__name__
)
def test_the_output_mask_selects_gradients_and_changes_no_bit(layout, dtypes, device):
    dtype, weight_dtype = dtypes
    input, grad_output = (
        layout(random_values((4, 6, 5, 7), dtype, device, seed=seed)) for seed in (1, 2)
    )
    for slopes in ((6,), (1,), ()):
        weight = finite_slopes(slopes, weight_dtype, device)
        grad_input, grad_weight = prelu_backward(grad_output, input, weight, [True, True])
        assert_both_branches(input, grad_input, grad_weight)
        only_input, nothing = prelu_backward(grad_output, input, weight, [True, False])
        assert nothing is None and same_bits(only_input, grad_input)
        nothing, only_weight = prelu_backward(grad_output, input, weight, [False, True])
        assert nothing is None and same_bits(only_weight, grad_weight)
        assert prelu_backward(grad_output, input, weight, [False, False]) == (None, None)


def test_grad_weight_has_shape_and_dtype_of_weight_straight_from_the_operator(dtypes, device):
    """Autograd would hide a wrong shape: it sums gradients to size."""
    dtype, weight_dtype = dtypes
    input = random_values((4, 6, 5), dtype, device)
    for slopes in ((), (1,), (6,)):
        weight = finite_slopes(slopes, weight_dtype, device)
        grad_input, grad_weight = prelu_backward(input, input, weight, [True, True])
        assert (grad_weight.shape, grad_weight.dtype, grad_weight.stride()) == (
            slopes,
            weight_dtype,
            (1,) * len(slopes),
        )
        assert (grad_input.shape, grad_input.dtype) == (input.shape, dtype)


def _assert_same_results(actual, expected):
    for result, expectation in zip(actual, expected):
        assert_same_bits(result, expectation)


# ---- Nothing else changes ----------------------------------------------------------------------


def test_arguments_are_not_changed(case, dtypes, device):
    dtype, weight_dtype = dtypes
    for input in case_inputs(case, dtype, device):
        weight = finite_slopes(case.slopes, weight_dtype, device)
        grad_output = random_values(case.shape, dtype, device, seed=1)
        arguments = input, weight, grad_output
        before = [
            (tensor.clone(), tensor._version, tensor.data_ptr(), tensor.stride())
            for tensor in arguments
        ]
        results = forward_backward(prelu, *arguments)
        for tensor, (copy, version, pointer, strides) in zip(arguments, before):
            assert_same_bits(tensor, copy)
            assert (tensor._version, tensor.data_ptr(), tensor.stride()) == (
                version,
                pointer,
                strides,
            )
        pointers = {tensor.data_ptr() for tensor in arguments}
        assert all(result.data_ptr() not in pointers for result in results if result.numel())


def test_copy_on_write_arguments_stay_unmaterialised(dtypes, device):
    dtype, weight_dtype = dtypes
    input, grad_output = (random_values((2, 3, 40), dtype, device, seed=seed) for seed in (1, 2))
    weight = finite_slopes((3,), weight_dtype, device)
    expected = forward_backward(prelu, input, weight, grad_output)
    lazy = [torch._lazy_clone(tensor) for tensor in (input, weight, grad_output)]
    assert all(torch._C._is_cow_tensor(tensor) for tensor in lazy)
    _assert_same_results(forward_backward(prelu, *lazy), expected)
    _assert_same_results(prelu_backward(lazy[2], lazy[0], lazy[1], [True, True]), expected[1:])
    assert all(torch._C._is_cow_tensor(tensor) for tensor in lazy)


# ---- What autograd keeps -----------------------------------------------------------------------


def test_exactly_input_and_weight_are_saved(case, dtypes, device):
    """No mask, no output, no copy: the very memory of the two arguments."""
    dtype, weight_dtype = dtypes
    input = case_inputs(case, dtype, device)[0].detach().requires_grad_()
    weight = finite_slopes(case.slopes, weight_dtype, device).requires_grad_()
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = prelu(input, weight)
        assert [_place(tensor) for tensor in saved] == [_place(input), _place(weight)]
        output.sum().backward()
    assert len(saved) == 2
    assert input.grad is not None and weight.grad is not None


def _place(tensor):
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def test_what_the_saving_hooks_return_is_what_backward_uses(device):
    input, grad_output = (
        random_values((3, 4, 5), torch.float32, device, seed=seed) for seed in (1, 2)
    )
    weight = finite_slopes((4,), torch.float32, device)
    expected = forward_backward(prelu, input, weight, grad_output)
    with torch.autograd.graph.save_on_cpu():
        _assert_same_results(forward_backward(prelu, input, weight, grad_output), expected)


def test_nothing_is_saved_where_no_gradient_is_needed(device):
    input, weight = torch.ones((2, 3), device=device), torch.ones(3, device=device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        prelu(input, weight)
        with torch.no_grad():
            prelu(input.requires_grad_(), weight.requires_grad_())
    assert saved == []


@pytest.mark.parametrize("changed", ("input", "weight"))
def test_a_change_in_place_after_forward_is_detected(changed, device):
    input = random_values((3, 4, 5), torch.float32, device).requires_grad_()
    weight = finite_slopes((4,), torch.float32, device).requires_grad_()
    output = prelu(input, weight)
    with torch.no_grad():
        {"input": input, "weight": weight}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_no_grad_and_inference_mode(device):
    input = random_values((3, 4, 5), torch.float32, device).requires_grad_()
    weight = finite_slopes((4,), torch.float32, device).requires_grad_()
    expected = prelu(input, weight).detach()
    with torch.no_grad():
        output = prelu(input, weight)
        assert not output.requires_grad and same_bits(output, expected)
    with torch.inference_mode():
        output = prelu(input, weight)
        assert output.is_inference() and not output.requires_grad and same_bits(output, expected)
        grad_input, grad_weight = prelu_backward(input, input, weight, [True, True])
        assert grad_input.is_inference() and grad_weight.is_inference()


def test_special_values_are_found_in_every_lane_of_a_vector(dtype, device):
    """One special value at a time in ordinary data: it reaches its own element and no neighbour."""
    ordinary = random_values((1, 2, 67), dtype, device, seed=3)
    weight = finite_slopes((2,), dtype, device)
    expected = F.prelu(ordinary, weight)
    for place in range(67):
        input = ordinary.clone()
        input[0, 1, place] = special_values(dtype, device)[place % 16]
        correct = expected.clone()
        correct[0, 1, place] = F.prelu(input[:, 1:, place], weight[1:])[0, 0]
        assert_same_bits(prelu(input, weight), correct)


def test_slopes_cover_what_formulas_other_than_the_select_get_wrong(dtype):
    slopes = torch.cat(list(slope_tensors((4,), dtype)))
    assert (
        slopes.isnan().any() and slopes.isinf().any() and (slopes < 0).any() and (slopes > 1).any()
    )
    assert len(slopes) >= len(SLOPES)

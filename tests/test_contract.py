"""Promises beyond values: the definition, empties, masks, what is saved, and no side effects."""

import pytest
import torch
from cases import (
    case_inputs,
    finite_slopes,
    forward_backward,
    random_values,
)
from reference import assert_same_bits, same_bits

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


# ---- Empties and masks -------------------------------------------------------------------------


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

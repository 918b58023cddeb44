"""Where elements lie in memory changes nothing but where results lie."""

import random

import pytest
import reference
import torch
import torch.nn.functional as F
from cases import (
    CASES,
    DENSE_LAYOUTS,
    DTYPE_PAIRS,
    LAYOUTS,
    SHARING_LAYOUTS,
    case_inputs,
    channels_last,
    contiguous,
    expanded,
    finite_slopes,
    forward_backward,
    integer_values,
    offset,
    random_values,
    significant_strides,
    single_value,
    step_2,
)
from reference import assert_both_branches, assert_same_bits

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

INPUT_LAYOUTS = LAYOUTS | SHARING_LAYOUTS
GRAD_LAYOUTS = INPUT_LAYOUTS | {"single_value": single_value}
SHAPES = (
    ((5, 6), (6,)),
    ((3, 5, 7), (5,)),
    ((3, 16, 5, 6), (16,)),
    ((2, 3, 4, 3, 5), (3,)),
    ((3, 5, 1, 6), (1,)),
    ((18,), ()),
)


def _assert_backward_is_exact(grad_output, input, weight):
    grad_input, grad_weight = prelu_backward(grad_output, input, weight, [True, True])
    exact = torch.from_numpy(reference.exact_grad_weight(grad_output, input, weight))
    assert_same_bits(grad_input, reference.grad_input(grad_output, input, weight))
    assert_same_bits(grad_weight, exact.to(weight))
    assert grad_weight.is_contiguous()
    return grad_input, grad_weight


def _assert_laid_out_like(result, input):
    assert significant_strides(result) == significant_strides(torch.empty_like(input))


@pytest.mark.parametrize("input_layout", INPUT_LAYOUTS)
@pytest.mark.parametrize("grad_layout", GRAD_LAYOUTS)
def test_every_layout_of_input_with_every_layout_of_grad_output(
    input_layout, grad_layout, dtypes, device
):
    dtype, weight_dtype = dtypes
    for shape, slopes in SHAPES:
        input = INPUT_LAYOUTS[input_layout](integer_values(shape, dtype, device, seed=11))
        grad_output = GRAD_LAYOUTS[grad_layout](
            integer_values(shape, dtype, device, seed=12, largest=3)
        )
        weight = finite_slopes(slopes, weight_dtype, device)
        grad_input, _ = _assert_backward_is_exact(grad_output, input, weight)
        _assert_laid_out_like(grad_input, input)


def test_results_lie_in_memory_as_empty_like_input(case, dtype, device):
    for input in case_inputs(case, dtype, device):
        weight = finite_slopes(case.slopes, dtype, device)
        grad_output = single_value(random_values(case.shape, dtype, device))
        output, grad_input, grad_weight = forward_backward(prelu, input, weight, grad_output)
        stock_output = F.prelu(input, weight)
        _assert_laid_out_like(output, input)
        _assert_laid_out_like(grad_input, input)
        assert significant_strides(output) == significant_strides(stock_output)
        assert (grad_weight.shape, grad_weight.is_contiguous()) == (weight.shape, True)


@pytest.mark.parametrize("start", range(16))
def test_storage_may_start_anywhere(start, dtypes, device):
    """Aligned vector loads would read another element, or crash."""
    dtype, weight_dtype = dtypes
    for shape, slopes in (((2, 3, 5, 29), (3,)), ((7, 37), (37,)), ((131,), (1,))):
        values, grads = (
            integer_values(shape, dtype, device, seed=13),
            integer_values(shape, dtype, device, seed=14),
        )
        plain_weight = finite_slopes(slopes, weight_dtype, device)
        expected = forward_backward(prelu, values, plain_weight, grads)
        assert_both_branches(values, *expected)
        input, grad_output = offset(values, start), offset(grads, 15 - start)
        actual = forward_backward(prelu, input, offset(plain_weight, start), grad_output)
        for result, expectation in zip(actual, expected):
            assert_same_bits(result, expectation)
        _assert_backward_is_exact(grad_output, input, plain_weight)


@pytest.mark.parametrize("layout", (step_2, expanded, offset), ids=lambda f: f.__name__)
def test_weight_may_have_any_strides(layout, dtypes, device):
    dtype, weight_dtype = dtypes
    input, grad_output = (
        integer_values((3, 6, 5, 7), dtype, device, seed=seed) for seed in (15, 16)
    )
    weight = layout(finite_slopes((6,), weight_dtype, device))
    expected = forward_backward(
        prelu, input, weight.clone(memory_format=torch.contiguous_format), grad_output
    )
    for result, expectation in zip(forward_backward(prelu, input, weight, grad_output), expected):
        assert_same_bits(result, expectation)
    assert prelu_backward(grad_output, input, weight, [False, True])[1].stride() == (1,)


def test_negated_views_are_read_as_negated(dtype, device):
    """torch._neg_view sets a bit instead of changing memory."""
    values, grads = (integer_values((3, 4, 9), dtype, device, seed=seed) for seed in (17, 18))
    weight = finite_slopes((4,), dtype, device)
    expected = forward_backward(prelu, -values, -weight, -grads)
    views = (torch._neg_view(tensor) for tensor in (values, weight, grads))
    assert_both_branches(-values, *expected)
    for result, expectation in zip(forward_backward(prelu, *views), expected):
        assert_same_bits(result.resolve_neg(), expectation)


def test_sizes_around_every_vector_width(dtypes, device):
    """Rows, planes and channel counts from 1 to 70: whole vectors, tails, and both."""
    dtype, weight_dtype = dtypes
    for size in range(1, 71):
        for shape, slopes in (
            ((3, size), (size,)),
            ((2, 3, size), (3,)),
            ((size, 3), (3,)),
            ((size,), ()),
        ):
            input = integer_values(shape, dtype, device, seed=size)
            grad_output = integer_values(shape, dtype, device, seed=size + 1, largest=3)
            weight = finite_slopes(slopes, weight_dtype, device)
            assert_same_bits(prelu(input, weight), reference.forward(input, weight))
            _assert_backward_is_exact(grad_output, input, weight)


@pytest.mark.parametrize("seed", range(40))
def test_random_shapes_and_layouts(seed, device):
    """Ten draws a seed; a failure names its draw."""
    draw = random.Random(seed)
    for _ in range(10):
        shape = tuple(
            draw.choice((1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17)) for _ in range(draw.randint(1, 5))
        )
        slopes = draw.choice(((), (1,), shape[1:2] if len(shape) > 1 else (1,)))
        dtype, weight_dtype = draw.choice(DTYPE_PAIRS)
        names = draw.choice(list(INPUT_LAYOUTS)), draw.choice(list(GRAD_LAYOUTS))
        order = draw.sample(range(len(shape)), len(shape))
        back = [order.index(dim) for dim in range(len(shape))]
        values, grads = (
            integer_values(shape, dtype, device, seed=seed + offset, largest=2)
            for offset in (0, 1000)
        )
        input = INPUT_LAYOUTS[names[0]](values.permute(order).contiguous()).permute(back)
        grad_output = GRAD_LAYOUTS[names[1]](grads)
        weight = finite_slopes(slopes, weight_dtype, device)
        try:
            assert_same_bits(prelu(input, weight), reference.forward(input, weight))
            grad_input, _ = _assert_backward_is_exact(grad_output, input, weight)
            _assert_laid_out_like(grad_input, input)
            _assert_laid_out_like(prelu(input, weight), input)
        except Exception as error:
            raise AssertionError(
                f"{shape=} {slopes=} {dtype=} {weight_dtype=} {names=} {order=}"
            ) from error


# ---- Copies ------------------------------------------------------------------------------------


def _allocations(function):
    """What a call takes from the CPU allocator: bytes, and whether it copied a tensor."""
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profile:
        results = function()
    del results
    events = profile.function_events
    copied = any(event.name in ("aten::copy_", "aten::clone") for event in events)
    return sum(max(event.self_cpu_memory_usage, 0) for event in events), copied


def _image(layout, dtype, seed=0):
    image = layout(random_values((8, 16, 32, 32), dtype, seed=seed))
    return image, image.numel() * image.element_size()


@pytest.mark.parametrize("layout", DENSE_LAYOUTS.values(), ids=DENSE_LAYOUTS)
@pytest.mark.parametrize("slopes", ((16,), (1,)), ids=("per_channel", "shared"))
def test_dense_layouts_are_not_copied(layout, slopes, dtypes):
    dtype, weight_dtype = dtypes
    (input, size), (grad_output, _) = _image(layout, dtype), _image(layout, dtype, seed=1)
    weight = finite_slopes(slopes, weight_dtype)
    forward, copied = _allocations(lambda: prelu(input, weight))
    assert not copied and size <= forward < 1.125 * size + 4096
    backward, copied = _allocations(
        lambda: prelu_backward(grad_output, input, weight, [True, True])
    )
    assert not copied and size <= backward < 1.125 * size + 4096
    with_a_copy, copied = _allocations(lambda: prelu(input.clone(), weight))
    assert copied and with_a_copy >= 2 * size, "this test would not see a copy"


@pytest.mark.parametrize("layout", (contiguous, channels_last), ids=lambda f: f.__name__)
def test_an_expanded_grad_output_costs_at_most_one_copy_of_itself(layout, dtype):
    input, size = _image(layout, dtype)
    weight, grad_output = finite_slopes((16,), dtype), single_value(input)
    backward, _ = _allocations(lambda: prelu_backward(grad_output, input, weight, [True, True]))
    assert size <= backward < 2.125 * size + 4096


def test_a_gradient_that_is_masked_off_costs_no_memory(dtypes):
    dtype, weight_dtype = dtypes
    (input, size), (grad_output, _) = _image(contiguous, dtype), _image(contiguous, dtype, seed=1)
    weight = finite_slopes((16,), weight_dtype)
    weight_only, _ = _allocations(lambda: prelu_backward(grad_output, input, weight, [False, True]))
    assert weight_only < size / 8 + 4096
    neither, _ = _allocations(lambda: prelu_backward(grad_output, input, weight, [False, False]))
    assert neither == 0


def test_the_case_list_holds_what_it_promises():
    inputs = [case_inputs(case, torch.float32)[0] for case in CASES]
    assert any(0 in tensor.stride() for tensor in inputs)
    assert any(tensor.storage_offset() % 4 for tensor in inputs)
    assert any(
        tensor.is_contiguous(memory_format=torch.channels_last)
        for tensor in inputs
        if tensor.dim() == 4
    )
    assert any(
        tensor.is_contiguous(memory_format=torch.channels_last_3d)
        for tensor in inputs
        if tensor.dim() == 5
    )
    assert any(tensor.dim() > 2 and tensor.shape[1] == tensor.shape[-1] for tensor in inputs)
    assert {tensor.dim() for tensor in inputs} == {0, 1, 2, 3, 4, 5, 6}

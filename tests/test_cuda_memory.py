"""What a call takes from the GPU's memory: its results, a few partial sums, and nothing else."""

import pytest
import torch
from cases import DENSE_LAYOUTS, finite_slopes, random_values, single_value
from cuda_testing import needs_gpu, prelu, prelu_backward
from reference import assert_same_bits

pytestmark = needs_gpu

SHAPE = (32, 64, 96, 96)  # 38 to 151 MB


def _peak(function):
    """Bytes that a call asks for, at its peak: as asked, not as the allocator rounds them up."""
    function()  # the first call may load kernels and set things up
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    results = function()
    torch.cuda.synchronize()
    peak = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    del results
    return peak


def _sums(size, channels):
    """The most that partial sums may take (docs/design.md)."""
    return max(size / 8 + 4 * channels, 4 << 20)


def _problem(layout, dtypes, slopes=64):
    input, grad_output = (layout(torch.randn(SHAPE, device="cuda").to(dtypes[0])) for _ in range(2))
    weight = finite_slopes((slopes,), dtypes[1], "cuda")
    return input, weight, grad_output, input.numel() * input.element_size()


@pytest.mark.parametrize("layout", DENSE_LAYOUTS.values(), ids=DENSE_LAYOUTS)
@pytest.mark.parametrize("slopes", (64, 1), ids=("per_channel", "shared"))
def test_a_call_allocates_its_results_and_few_sums(layout, slopes, dtypes):
    input, weight, grad_output, size = _problem(layout, dtypes, slopes)
    assert size <= _peak(lambda: prelu(input, weight)) <= size
    backward = _peak(lambda: prelu_backward(grad_output, input, weight, [True, True]))
    assert size <= backward <= size + _sums(size, slopes) + 8 * slopes
    copied = _peak(lambda: prelu(input.clone(), weight))
    assert copied >= 2 * size, "this test would not see a copy"


def test_a_gradient_that_is_masked_off_costs_no_memory(dtypes):
    input, weight, grad_output, size = _problem(torch.Tensor.contiguous, dtypes)
    only_weight = _peak(lambda: prelu_backward(grad_output, input, weight, [False, True]))
    assert only_weight <= _sums(size, 64) + 8 * 64
    only_input = _peak(lambda: prelu_backward(grad_output, input, weight, [True, False]))
    assert only_input <= size
    assert _peak(lambda: prelu_backward(grad_output, input, weight, [False, False])) == 0


def test_a_step_through_autograd_holds_output_gradients_and_nothing_else(dtypes):
    input, weight, grad_output, size = _problem(torch.Tensor.contiguous, dtypes)
    input.requires_grad_(), weight.requires_grad_()

    def step():
        return torch.autograd.grad(prelu(input, weight), (input, weight), grad_output)

    assert _peak(step) <= 2 * size + _sums(size, 64) + 8 * 64


def test_an_expanded_gradient_is_copied_once(dtypes):
    input, weight, grad_output, size = _problem(torch.Tensor.contiguous, dtypes)
    expanded = single_value(grad_output)
    peak = _peak(lambda: prelu_backward(expanded, input, weight, [True, True]))
    assert peak <= 2 * size + _sums(size, 64) + 8 * 64


def test_a_thousand_calls_leave_nothing_behind():
    input = random_values((8, 16, 33, 35), torch.float32, "cuda").requires_grad_()
    weight = finite_slopes((16,), torch.float32, "cuda").requires_grad_()

    def step():
        torch.autograd.grad(prelu(input, weight).sum(), (input, weight))

    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(1000):
        step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_out_of_memory_is_an_exception_and_the_next_call_is_right():
    weight = finite_slopes((64,), torch.float32, "cuda")
    small = random_values((4, 64, 9), torch.float32, "cuda", seed=1)
    expected = prelu_backward(small, small, weight, [True, True])
    input = torch.ones((1 << 22, 64), device="cuda")  # 1 GiB
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    held = torch.cuda.memory_reserved()
    try:
        torch.cuda.set_per_process_memory_fraction((held + (256 << 20)) / total)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            prelu(input, weight)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            prelu_backward(input, input, weight, [True, True])
        results = prelu_backward(small, small, weight, [True, True])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for result, expectation in zip(results, expected):
        assert_same_bits(result, expectation)
    assert (prelu(input, weight) == 1).all()

"""Kernels run on the current stream and device, wait for nobody, and keep nobody waiting."""

import concurrent.futures
import contextlib

import pytest
import torch
from cases import Case, channels_last, finite_slopes, random_values, single_value
from cuda_testing import needs_gpu, prelu, prelu_backward, run, side_stream
from reference import assert_both_branches, assert_same_bits

import torch_ext

pytestmark = needs_gpu

SLOW = 40_000_000  # cycles: some 20 ms

CASES = (
    Case("planes", (8, 16, 64, 65), (16,)),
    Case("channels_last", (8, 19, 50, 50), (19,), channels_last),
    Case("tall_rows", (60_001, 5), (5,)),
    Case("small", (3, 8, 5), (8,)),
)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def tensors(request, dtypes):
    case = request.param
    input, grad_output = (
        case.layout(random_values(case.shape, dtypes[0], "cuda", seed=seed)) for seed in (1, 2)
    )
    return input, finite_slopes(case.slopes, dtypes[1], "cuda"), grad_output


def test_a_slow_producer_on_the_stream_is_waited_for_and_a_consumer_sees_results(tensors):
    """On another stream the kernels would read the NaN that were there before."""
    expected = run(*tensors)
    assert_both_branches(tensors[0], *expected)
    late = [torch.full_like(tensor, float("nan")) for tensor in tensors]
    with side_stream():
        torch.cuda._sleep(SLOW)
        for tensor, values in zip(late, tensors):
            tensor.copy_(values)
        results = run(*late)
        consumed = [result.clone() for result in results]
    for result, expectation in zip(consumed, expected):
        assert_same_bits(result, expectation)


def test_backward_runs_on_the_stream_of_forward(tensors):
    """Autograd's rule. The gradient comes late, on that stream; backward() is called on another."""
    input, weight, grad_output = tensors
    expected = run(*tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    leaf, slope = input.clone().requires_grad_(), weight.clone().requires_grad_()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLOW)
        output = prelu(leaf, slope)
    torch.cuda.current_stream().wait_stream(stream)
    output.backward(grad_output)
    assert_same_bits(output.detach(), expected[0])
    assert_same_bits(leaf.grad, expected[1])
    assert_same_bits(slope.grad, expected[2])


@contextlib.contextmanager
def _no_synchronisation():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_synchronises(tensors):
    """Not a forward, a backward, a copy of a grad_output with other strides, or a module's step."""
    input, weight, grad_output = tensors
    leaf, slope = input.clone().requires_grad_(), weight.clone().requires_grad_()
    expanded = single_value(grad_output)
    module = torch_ext.PReLU(8).cuda()
    data = random_values((4, 8, 9), torch.float32, "cuda")
    with _no_synchronisation():
        prelu(leaf, slope).backward(grad_output)
        prelu(leaf, slope).sum().backward()
        prelu_backward(expanded, input, weight, [True, True])
        prelu_backward(grad_output, input, weight, [False, True])
        module(data).sum().backward()
        with torch.no_grad():
            prelu(input, weight)
    assert leaf.grad is not None and module.weight.grad is not None


def test_the_debug_mode_would_have_seen_a_synchronisation():
    value = torch.ones(1, device="cuda")
    with _no_synchronisation(), pytest.raises(RuntimeError, match="synchroniz"):
        value.item()


def test_a_call_returns_before_its_work_is_done(tensors):
    """The kernels are queued behind a pause of some 20 ms; the call does not wait for it."""
    run(*tensors)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(SLOW)
    input, weight, grad_output = tensors
    prelu(input, weight)
    prelu_backward(grad_output, input, weight, [True, True])
    done.record()
    assert not done.query()
    torch.cuda.synchronize()
    assert done.query()


def test_threads_with_a_stream_each_do_not_disturb_each_other():
    input, grad_output = (
        random_values((8, 16, 64, 65), torch.float32, "cuda", seed=seed) for seed in (1, 2)
    )
    weights = [torch.full((16,), slope, device="cuda") for slope in (-1.0, 0.25, 0.5, 2.0) * 2]
    expected = [run(input, weight, grad_output) for weight in weights]
    torch.cuda.synchronize()

    def work(weight):
        with torch.cuda.stream(torch.cuda.Stream()):
            results = [run(input, weight, grad_output) for _ in range(50)]
            torch.cuda.current_stream().synchronize()
        return results

    with concurrent.futures.ThreadPoolExecutor(len(weights)) as pool:
        for results, expectation in zip(pool.map(work, weights), expected):
            for result in results:
                for one, other in zip(result, expectation):
                    assert_same_bits(one, other)


def test_memory_used_on_a_stream_is_not_handed_out_too_early():
    """The input dies while the kernel that reads it waits; new tensors must not overwrite it."""
    input = random_values((64, 32, 64), torch.float32, "cuda", seed=1)
    weight = finite_slopes((32,), torch.float32, "cuda")
    expected = run(input, weight, input)
    with side_stream():
        mine = input.clone()
        torch.cuda._sleep(SLOW)
        results = run(mine, weight, mine)
        del mine
        for _ in range(20):
            torch.full_like(input, float("nan"))
    for result, expectation in zip(results, expected):
        assert_same_bits(result, expectation)


# ---- Devices -------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one(dtypes):
    dtype, weight_dtype = dtypes
    input, grad_output = (random_values((8, 16, 64, 65), dtype, seed=seed) for seed in (1, 2))
    weight = finite_slopes((16,), weight_dtype)
    tensors = input, weight, grad_output
    with torch.cuda.device(0):
        expected = run(*(tensor.to("cuda:0") for tensor in tensors))
        results = run(*(tensor.to("cuda:1") for tensor in tensors))
        assert torch.cuda.current_device() == 0
    assert all(result.device.index == 1 for result in results)
    for result, expectation in zip(results, expected):
        assert_same_bits(result.cpu(), expectation.cpu())

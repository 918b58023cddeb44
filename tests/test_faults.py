"""When something goes wrong in the middle: no memory, a signal, a damaged file. An error that says
what happened, nothing lost, and the next call is right."""

import gc
import io
import os
import resource
import signal
import threading
import time

import pytest
import tensor_memory
import torch
from cases import finite_slopes, forward_backward, random_values, rotated
from reference import assert_same_bits
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import torch_ext

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

NO_MEMORY = r"can't allocate memory|not enough memory|DefaultCPUAllocator"
MIB = 2**20


def _problem(layout=rotated):
    """Many tasks: partial sums. grad_output in another order: a copy."""
    input = layout(random_values((16, 33, 65, 31), torch.float32, seed=1))
    grad_output = random_values((16, 33, 65, 31), torch.float32, seed=2)
    return input, finite_slopes((33,), torch.float32), grad_output


def _assert_same(actual, expected):
    for result, expectation in zip(actual, expected, strict=True):
        assert_same_bits(result, expectation)


# ---- No memory ---------------------------------------------------------------------------------


def run_out_of_memory():
    """A limit of the system; two hundred failures, each of which would lose 256 MiB."""
    input, weight, grad_output = _problem()
    expected = forward_backward(prelu, input, weight, grad_output)
    large = torch.ones(16, 32, 2**17).requires_grad_()
    slopes = torch.ones(32).requires_grad_()
    output = prelu(large, slopes)
    one = torch.ones(()).expand(output.shape)
    before = _virtual_memory()
    resource.setrlimit(resource.RLIMIT_AS, (before + 160 * MIB,) * 2)
    for _ in range(100):
        with pytest.raises(RuntimeError, match=NO_MEMORY):
            prelu(large, slopes)
        with pytest.raises(RuntimeError, match=NO_MEMORY):
            torch.autograd.grad(output, (large, slopes), one, retain_graph=True)
    assert _virtual_memory() - before < 128 * MIB
    _assert_same(forward_backward(prelu, input, weight, grad_output), expected)


def _virtual_memory():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def test_a_process_without_memory_goes_on_when_there_is_some_and_loses_none():
    tensor_memory.run(run_out_of_memory, preload=False)


@pytest.mark.parametrize("needed", ((True, True), (True, False), (False, True)), ids=str)
def test_activations_are_freed_after_backward_though_the_output_lives(needed):
    input, weight, grad_output = _problem()
    hidden = input.requires_grad_(needed[0]) * 2
    memory = StorageWeakRef(hidden.untyped_storage())
    output = prelu(hidden, weight.requires_grad_(needed[1]))
    del hidden
    assert not memory.expired()
    output.backward(grad_output)
    assert memory.expired()


# ---- Signals -----------------------------------------------------------------------------------


@pytest.fixture
def handler():
    """signal.signal, undone afterwards."""
    before = {}

    def install(number, function):
        before[number] = signal.signal(number, function)

    yield install
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, function in before.items():
        signal.signal(number, function)


def test_signals_in_the_middle_of_calls_change_nothing(handler, threads):
    """A thousand a second, whose handler calls the operator itself."""
    threads(2)
    problem = _problem()
    expected = forward_backward(prelu, *problem)
    small = torch.tensor([-2.0, 4.0]), torch.tensor(0.25)
    heard = []
    handler(signal.SIGALRM, lambda *_: heard.append(prelu(*small).tolist()))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        _assert_same(forward_backward(prelu, *problem), expected)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(heard) > 20 and all(values == [-0.5, 4.0] for values in heard)


def test_an_interrupt_ends_training_between_calls_and_the_next_one_is_right(handler):
    """Control-C, sent while kernels run."""
    handler(signal.SIGINT, signal.default_int_handler)
    problem = _problem()
    expected = forward_backward(prelu, *problem)
    for delay in (0.02, 0.05, 0.09):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            end = time.monotonic() + 30
            while time.monotonic() < end:
                forward_backward(prelu, *problem)
        timer.join()
        _assert_same(forward_backward(prelu, *problem), expected)


def test_an_exception_of_a_hook_in_the_middle_of_backward_leaves_everything_usable():
    input, weight, grad_output = _problem()
    expected = forward_backward(prelu, input, weight, grad_output)
    leaves = input.detach().requires_grad_(), weight.detach().requires_grad_()
    output = prelu(*leaves)

    def interrupt(gradient):
        raise KeyboardInterrupt

    output.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        output.backward(grad_output)
    assert all(leaf.grad is None for leaf in leaves)
    _assert_same(forward_backward(prelu, *leaves, grad_output), expected)


# ---- Damaged files -----------------------------------------------------------------------------


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), torch_ext.PReLU(8), nn.Conv2d(8, 2, 3))


def test_a_truncated_checkpoint_is_an_error_and_changes_nothing():
    network = _network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    content = buffer.getvalue()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        with pytest.raises((RuntimeError, ValueError, EOFError)):
            network.load_state_dict(torch.load(io.BytesIO(content[:size]), weights_only=True))
    for name, tensor in network.state_dict().items():
        assert_same_bits(tensor, before[name])


def test_a_checkpoint_of_another_number_of_slopes_says_which():
    network, other = _network(), _network()
    other[1] = torch_ext.PReLU(4)
    with pytest.raises(RuntimeError, match=r"size mismatch for 1\.weight: .*\[4\].*\[8\]"):
        network.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1\.weight"'):
        network.load_state_dict({k: v for k, v in _network().state_dict().items() if k[0] != "1"})

"""Processes that are made after the operator ran and its threads were started: forked, spawned."""

import multiprocessing
import os
import pickle
import signal
import time
import traceback

import pytest
import torch
import torch.nn.functional as F
from cases import finite_slopes, forward_backward, random_values
from reference import assert_same_bits
from torch.utils.data import DataLoader, Dataset

import torch_ext

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu
SECONDS = 60
STOCKS_SECONDS = 5  # it takes milliseconds, or hangs


def _arguments():
    """Large enough for several threads."""
    shape = (8, 16, 70, 70)
    input, grad_output = (random_values(shape, torch.float32, seed=seed) for seed in (1, 2))
    return input, finite_slopes((16,), torch.float32), grad_output


@pytest.fixture(autouse=True)
def _threads_are_running(threads):
    """In this process, before the other is made: with GNU's OpenMP, what a fork inherits is broken."""
    threads(2)
    forward_backward(prelu, *_arguments())


class Images(Dataset):
    """Each sample passes through the operator, as in a preprocessing model."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch_ext.prelu(
            random_values((3, 4, 11), torch.float32, seed=index), torch.ones(4) / 4
        )


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ("fork", "spawn"))
def test_workers_of_a_data_loader_may_call_it(method):
    loader = DataLoader(
        Images(), batch_size=2, num_workers=2, multiprocessing_context=method, timeout=SECONDS
    )
    assert_same_bits(torch.cat(list(loader)), torch.stack([Images()[index] for index in range(8)]))


def _ends_in_a_fork(function, seconds=SECONDS):
    """Whether function() returned in a forked process before the time was up. It is killed then."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:  # noqa: BLE001  (the child must not go on as a second pytest)
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the forked process ended with status {status}"
            return True
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("threads_in_the_child", (1, None), ids=("one_thread", "as_many"))
def test_a_plain_fork_works_where_stocks_operator_works(threads_in_the_child):
    """Which hangs with several threads, in GNU's OpenMP. Forward only: autograd refuses to start."""
    input, weight, _ = _arguments()
    expected = prelu(input, weight)

    def call(operator):
        if threads_in_the_child:
            torch.set_num_threads(threads_in_the_child)
        assert torch.equal(operator(input, weight), expected)

    if _ends_in_a_fork(lambda: call(F.prelu), STOCKS_SECONDS):
        assert _ends_in_a_fork(lambda: call(prelu))


def _results_of(pickled, connection):
    module, input, grad_output = pickle.loads(pickled)
    output = module(input)
    gradients = torch.autograd.grad(output, (input, module.weight), grad_output)
    connection.send_bytes(pickle.dumps([output.detach(), *gradients]))


def test_a_spawned_process_computes_the_same_with_a_pickled_module():
    input, weight, grad_output = _arguments()
    module = torch_ext.PReLU(16)
    with torch.no_grad():
        module.weight.copy_(weight)
    expected = forward_backward(prelu, input, weight, grad_output)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_results_of,
        args=(pickle.dumps((module, input.requires_grad_(), grad_output)), theirs),
    )
    process.start()
    theirs.close()
    assert ours.poll(SECONDS)
    results = pickle.loads(ours.recv_bytes())
    process.join(SECONDS)
    assert process.exitcode == 0
    for result, expectation in zip(results, expected, strict=True):
        assert_same_bits(result, expectation)

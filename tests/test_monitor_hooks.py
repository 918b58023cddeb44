"""What ActivationMonitor does to a model: nothing that can be noticed."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from monitored import figures, images, network, train
from recorder import Recorder
from reference import assert_same_bits
from torch import nn

from torch_ext import ActivationMonitor

pytestmark = pytest.mark.contract


def test_losses_and_gradients_are_the_same_bits():
    expected = train(network())
    model = network()
    with ActivationMonitor(model) as monitor:
        found = train(model)
    assert len(monitor.report().layers) == 3
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)


def test_close_leaves_the_model_as_it_was_and_the_figures_readable():
    model = network()
    keys = list(model.state_dict())
    with ActivationMonitor(model) as monitor:
        assert list(model.state_dict()) == keys
        train(model)
    before = figures(monitor)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    train(model)
    assert figures(monitor) == before and before[0]["steps"] == 3
    monitor.close()  # again


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_the_model_are_not_monitored(clone):
    model = network()
    monitor = ActivationMonitor(model)
    train(model)
    before = figures(monitor)
    twin = clone(model)
    losses, _ = train(twin)
    assert all(torch.equal(a, b) for a, b in zip(losses, train(network())[0], strict=True))
    assert figures(monitor) == before
    ActivationMonitor(twin).close()
    train(model)
    assert figures(monitor)[0]["steps"] == 6


def test_a_shallow_copy_shares_the_hooks_and_is_not_counted():
    """As the replicas of nn.DataParallel do, which run in threads on other devices."""
    module = nn.ReLU()
    monitor = ActivationMonitor(module)
    twin = copy.copy(module)
    assert twin._forward_hooks is module._forward_hooks and twin._forward_hooks
    twin(torch.ones(1, 1))
    assert monitor.report().layers == []


def test_a_pickle_of_a_stock_model_needs_no_torch_ext():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    monitor = ActivationMonitor(model)
    code = (
        "import pickle, sys; sys.modules['torch_ext'] = None;"
        "import torch; print(pickle.load(sys.stdin.buffer)(torch.ones(1, 2)).shape)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, input=pickle.dumps(model), capture_output=True
    )
    assert ran.stdout.strip() == b"torch.Size([1, 2])", ran.stderr.decode()
    assert monitor.report().layers == []


def test_neither_activations_nor_the_graph_are_kept():
    model = network()
    monitor = ActivationMonitor(model)
    gc.collect()
    gc.disable()
    try:
        output = model(images())
        seen = [weakref.ref(output), weakref.ref(output.grad_fn._saved_mat1)]
        assert all(ref() is not None for ref in seen)
        del output
        assert [ref() for ref in seen] == [None, None]
    finally:
        gc.enable()
    assert figures(monitor)[0]["steps"] == 1


def test_a_step_never_asks_for_a_value():
    """On a GPU it would wait for it."""
    model = network()
    monitor = ActivationMonitor(model, window=2)
    with Recorder(lambda operator, _: str(operator)) as recorder:
        train(model)
        monitor.reset()
    assert "aten.gt.Scalar_out" in recorder.seen  # the hooks were seen at work
    assert not {n for n in recorder.seen if "_local_scalar_dense" in n or "nonzero" in n}
    with recorder:
        images().sum().item()
    assert "aten._local_scalar_dense.default" in recorder.seen  # it would have been seen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_a_gpu_does_not_synchronise(device):
    if device != "cuda":
        pytest.skip("about CUDA")
    model = network().to(device)
    monitor = ActivationMonitor(model, window=2)
    inputs = images().to(device)
    model(inputs).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(inputs).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert figures(monitor)[0]["steps"] == 2


def test_create_graph_and_a_second_backward_work():
    model = network()
    monitor = ActivationMonitor(model)
    x = images().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert all(layer.grad_output.finite >= 1 for layer in monitor.report().layers)


@pytest.mark.filterwarnings(r"ignore:.torch\.jit\.")
def test_scripting_a_monitored_model_says_what_to_do():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with ActivationMonitor(model), pytest.raises(Exception, match=r"close\(\) the mon"):
        torch.jit.script(model)
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(torch.ones(3)), model(torch.ones(3)))

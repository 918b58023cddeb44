"""What ActivationMonitor counts as a step, and which calls it leaves alone."""

import copy
import json

import pytest
import torch
from monitored import ACTIVATIONS, figures, images, network, train
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import torch_ext
from torch_ext import ActivationMonitor

pytestmark = pytest.mark.contract


def test_only_training_mode_counts():
    model = network().eval()
    monitor = ActivationMonitor(model)
    train(model)
    assert monitor.report().layers == [] and monitor.report().not_called == ["1", "3", "6"]
    model[3].train()
    train(model)
    assert [layer.name for layer in monitor.report().layers] == ["3"]


def test_every_observes_one_step_in_so_many():
    model, twin = network(), network()
    sparse, dense = ActivationMonitor(model, every=3, window=2), ActivationMonitor(twin, window=2)
    train(model, steps=7)
    for step in (0, 3, 6):
        twin(images(step)).square().mean().backward()
    assert figures(sparse) == figures(dense)
    assert figures(sparse)[0]["steps"] == 3


def test_reset_begins_new_shares_and_goes_on_counting_silence():
    module = torch_ext.PReLU(2)
    monitor = ActivationMonitor(module, window=4)
    for value in (1.0, -1.0, -1.0):
        module(torch.full((3, 2), value)).sum().backward()
    monitor.reset()
    layer = monitor.report().layers[0]
    assert (layer.steps, layer.non_positive, layer.grad_output.mean) == (0, None, None)
    json.dumps(monitor.to_dict(), allow_nan=False)
    for _ in range(2):
        module(-torch.ones(3, 2))
    layer = monitor.report().layers[0]
    assert (layer.steps, layer.non_positive, layer.silent) == (2, 1.0, 2)


class Shared(nn.Module):
    """One rectifier at three places, of two widths."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.wide = nn.Linear(3, 8)

    def forward(self, x):
        return self.relu(self.wide(self.relu(self.relu(x) - 1)))


def test_each_call_of_a_shared_module_has_a_row():
    model, inputs = Shared(), [torch.randn(5, 3) for _ in range(2)]
    monitor = ActivationMonitor(model)
    for x in inputs:
        model(x.requires_grad_()).sum().backward()
    rows = monitor.report().layers
    assert [(r.name, r.call, r.channels, r.steps) for r in rows] == [
        ("relu", 1, 3, 2),
        ("relu", 2, 3, 2),
        ("relu", 3, 8, 2),
    ]
    assert [row.label for row in rows] == ["relu", "relu call 2", "relu call 3"]
    x = torch.cat(inputs)
    assert rows[0].non_positive == pytest.approx((x <= 0).double().mean().item())
    assert rows[1].non_positive == pytest.approx((x <= 1).double().mean().item())
    assert [row.grad_output.finite for row in rows] == [2, 2, 2]


def test_a_layer_called_past_the_model_counts_each_call_as_a_step():
    model = network()
    monitor = ActivationMonitor(model)
    train(model, steps=1)
    for _ in range(3):
        model[3](torch.randn(2, 3))
    assert [(row.call, row.steps) for row in monitor.report().layers] == [(1, 1), (1, 4), (1, 1)]


def test_a_forward_that_failed_leaves_no_calls_behind():
    model = network()
    monitor = ActivationMonitor(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(6, 2, 7, 7))  # the linear layer does not fit
    train(model, steps=1)
    assert {row.call for row in monitor.report().layers} == {1}


class Fails(nn.Module):
    """Runs out of memory after its layers were called."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x):
        self.layers(x)
        raise torch.OutOfMemoryError("no memory left")


@pytest.mark.parametrize("part", ["", "layers"], ids=["the whole", "a part"])
def test_direct_calls_after_a_forward_that_failed_are_first_calls(part):
    model = Fails()
    monitor = ActivationMonitor(model.get_submodule(part))
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        model(images())
    for _ in range(3):
        model.layers[3](torch.randn(2, 3))
    assert [(row.call, row.steps) for row in monitor.report().layers] == [(1, 1), (1, 4), (1, 1)]


def test_direct_calls_after_a_recomputed_forward_are_first_calls():
    """Checkpointing stops it by an exception as soon as it has what it needs."""
    model = network()
    monitor = ActivationMonitor(model)
    checkpoint(model, images().requires_grad_(), use_reentrant=False).sum().backward()
    for _ in range(3):
        model[3](torch.randn(2, 3))
    assert [(row.call, row.steps) for row in monitor.report().layers] == [(1, 1), (1, 4), (1, 1)]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_counts_once_and_sees_the_gradients(reentrant):
    def run(model, call):
        monitor = ActivationMonitor(model)
        for step in range(2):
            x = images(step).requires_grad_()
            call(model, x).square().mean().backward()
        return figures(monitor)

    plain = run(network(), lambda model, x: model(x))
    found = run(network(), lambda model, x: checkpoint(model, x, use_reentrant=reentrant))
    assert found == plain
    assert plain[0]["steps"] == 2 and plain[0]["grad_input_norm"] > 0


class Segments(nn.Module):
    """One rectifier for three segments, the last of another width than the others."""

    def __init__(self, reentrant):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 4)])
        self.relu = nn.ReLU()
        self.reentrant = reentrant

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(self._segment, layer, x, use_reentrant=self.reentrant)
        return x

    def _segment(self, layer, x):
        return self.relu(layer(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_of_repeated_calls_are_of_their_own_row_or_of_none(reentrant):
    """The backward repeats the segments in its own order; a call with a width of its own is known."""
    torch.manual_seed(0)
    model = Segments(reentrant)
    twin = copy.deepcopy(model)
    twin.reentrant = False
    norms = []
    for each in (model, twin):
        monitor = ActivationMonitor(each)
        for step in range(2):
            generator = torch.Generator().manual_seed(step)
            each(torch.randn(9, 3, generator=generator).requires_grad_()).square().sum().backward()
        rows = monitor.report().layers
        assert [(r.call, r.channels, r.steps) for r in rows] == [(1, 3, 2), (2, 3, 2), (3, 4, 2)]
        norms.append([row.grad_output.mean for row in rows])
    found, expected = norms
    assert None not in expected and len(set(expected)) == 3
    assert found == ([None, None, expected[2]] if reentrant else expected)


@pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_a_forward_in_inference_mode_counts_and_training_goes_on(make, device):
    model = nn.Sequential(nn.Linear(3, 4), make()).to(device)
    x = torch.randn(5, 3, device=device)
    monitor = ActivationMonitor(model)
    with torch.inference_mode():
        model(x)
        monitor.reset()
        model(x)
    for _ in range(2):
        model(x).sum().backward()
    [row] = monitor.report().layers
    assert row.steps == row.grad_output.finite + 1 == 3
    assert row.positive.tolist() == (3 * (model[0](x) > 0).sum(0)).tolist()


def test_inputs_made_in_inference_mode_are_counted_outside_it():
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.ReLU(inplace=True))
    monitor = ActivationMonitor(model.requires_grad_(False))
    with torch.inference_mode():
        x = torch.tensor([[1.0, -1.0]])
    for _ in range(2):
        model(x)
    assert monitor.report().layers[0].positive.tolist() == [2, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sums_that_inference_mode_moved_go_on():
    module = nn.ReLU()
    monitor = ActivationMonitor(module)
    module(torch.ones(1, 2))
    with torch.inference_mode():
        module(torch.ones(1, 2, device="cuda"))
    module(torch.ones(1, 2, device="cuda"))
    assert monitor.report().layers[0].positive.tolist() == [3, 3]


@pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_forward_mode_passes_and_counts(make):
    module = make()
    monitor = ActivationMonitor(module)
    input = torch.randn(2, 4, 8)
    with forward_ad.dual_level():
        output = module(forward_ad.make_dual(input.clone(), torch.ones_like(input)))
        assert forward_ad.unpack_dual(output).tangent is not None
    [layer] = monitor.report().layers
    assert layer.non_positive == pytest.approx((input <= 0).double().mean().item())


def test_stand_ins_for_tensors_are_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    monitor = ActivationMonitor(model)
    parameters = dict(model.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).sum()

    torch.func.grad(loss)(parameters, torch.ones(1, 2))
    torch.vmap(model)(torch.ones(3, 2))
    torch.export.export(model, (torch.ones(1, 2),))
    torch.jit.trace(model, torch.ones(1, 2), check_trace=False)
    nn.Sequential(*model).to("meta")(torch.ones(1, 2, device="meta"))
    assert monitor.report().layers == []

"""ActivationMonitor's gradient norms: those of PyTorch's own full backward hooks."""

import copy
import math

import pytest
import torch
from cases import channels_last
from monitored import ACTIVATIONS, inputs_of, only
from torch import nn

import torch_ext
from torch_ext import ActivationMonitor

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("on_device")]


class Residual(nn.Module):
    """The activation's input is used twice, so its whole gradient is not the layer's."""

    def __init__(self, activation):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.activation = activation
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.activation(x.clone() if self.inplace else x)) + 3 * x

    @property
    def inplace(self):
        return getattr(self.activation, "inplace", False)


def norms_by_full_backward_hooks(model, inputs):
    """PyTorch's own per-module hooks, on the same model without inplace=True."""
    seen = []
    model.activation.inplace = False
    handle = model.activation.register_full_backward_hook(
        lambda _, grad_input, grad_output: seen.append(
            (grad_output[0].norm().item(), grad_input[0].norm().item())
        )
    )
    for x in inputs:
        model(x).square().mean().backward()
    handle.remove()
    return [sum(values) / len(values) for values in zip(*seen, strict=True)]


@pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gradient_norms_are_those_of_full_backward_hooks(make):
    torch.manual_seed(0)
    model = Residual(make())
    inputs = [channels_last(x[:, :2]) for x in inputs_of((3, 4, 5, 6))]
    with ActivationMonitor(model) as monitor:
        for x in inputs:
            model(x).square().mean().backward()
    layer = only(monitor)
    assert layer.grad_output.finite == layer.grad_input.finite == 3
    found = [layer.grad_output.mean, layer.grad_input.mean]
    assert found == pytest.approx(norms_by_full_backward_hooks(model, inputs), rel=1e-5)
    assert layer.grad_output.mean > layer.grad_input.mean > 0


@pytest.mark.parametrize("idle", [nn.Identity(), nn.Dropout(p=0.0)], ids=str)
def test_a_layer_that_returns_its_input_has_one_gradient_at_both_ends(idle):
    torch.manual_seed(0)
    relu, leaky = nn.ReLU(inplace=True), nn.LeakyReLU(0.1, inplace=True)
    first, middle, last = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 1)
    plain = nn.Sequential(first, relu, middle, leaky, last)
    model = nn.Sequential(first, relu, idle, middle, copy.deepcopy(idle), leaky, last)
    norms = []
    for each in (plain, model):
        with ActivationMonitor(each, layers=(nn.ReLU, nn.LeakyReLU, type(idle))) as monitor:
            each(torch.ones(4, 3)).square().sum().backward()
        rows = monitor.report().layers
        norms.append([(row.grad_output.mean, row.grad_input.mean) for row in rows])
    (after_relu, before_relu), (after_leaky, before_leaky) = norms[0]
    assert before_relu < after_relu and before_leaky < after_leaky
    assert norms[1] == [
        (after_relu, before_relu),
        (after_relu, after_relu),
        (before_leaky, before_leaky),
        (after_leaky, before_leaky),
    ]


def test_a_hook_may_exchange_an_input_that_is_then_overwritten():
    """By one that was written to as often: its version is the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.LeakyReLU(0.1, inplace=True), nn.Linear(5, 1))
    monitor = ActivationMonitor(model)
    model[0].register_forward_hook(lambda _, args, output: output.mul_(1))
    model[1].register_forward_pre_hook(lambda _, args: args[0].clone())
    model(torch.randn(4, 3)).square().sum().backward()
    assert only(monitor).grad_input.mean < only(monitor).grad_output.mean


def test_a_first_layer_has_no_gradient_at_its_input_and_a_frozen_model_none_at_all():
    model = nn.Sequential(nn.PReLU(), nn.ReLU())
    monitor = ActivationMonitor(model)
    model(torch.randn(2, 3)).sum().backward()
    first, second = monitor.report().layers
    assert first.grad_output.finite == 1 and first.grad_input.mean is None
    assert second.grad_output.finite == second.grad_input.finite == 1
    monitor = ActivationMonitor(model.requires_grad_(False))
    model(torch.randn(2, 3))
    assert [layer.grad_output.mean for layer in monitor.report().layers] == [None, None]


def test_gradients_that_are_not_finite_are_counted_apart():
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    monitor = ActivationMonitor(module)
    for scale in (1.0, math.inf, math.nan, 1.0):
        (module(torch.ones(1, 3)).sum() * scale).backward()
    norm = only(monitor).grad_output
    assert (norm.finite, norm.infinite, norm.mean) == (2, 2, pytest.approx(math.sqrt(3)))


def test_the_cast_of_autocast_does_not_hide_the_input():
    model = nn.Sequential(torch_ext.PReLU(4), nn.Linear(4, 1))
    monitor = ActivationMonitor(model)
    x = torch.randn(8, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert only(monitor).grad_input.mean == pytest.approx(x.grad.norm().item(), rel=1e-2)
    assert only(monitor).grad_output.mean > only(monitor).grad_input.mean


def test_gradients_that_vmap_computes_at_once_are_left_out():
    """As jacobian(vectorize=True) does."""
    layer, x = nn.PReLU(), torch.randn(3, 4)
    with ActivationMonitor(layer):
        jacobian = torch.autograd.functional.jacobian(layer, x, vectorize=True)
    assert torch.equal(jacobian, torch.autograd.functional.jacobian(layer, x))

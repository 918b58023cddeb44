"""A small network for the tests of ActivationMonitor, its training, and the figures found."""

import torch
from reference import assert_both_branches
from torch import nn

import torch_ext

ACTIVATIONS = {
    "ours": lambda: torch_ext.PReLU(4, init=0.3),
    "ours, one slope": lambda: torch_ext.PReLU(init=0.3),
    "stock": lambda: nn.PReLU(4),
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "Leaky ReLU": lambda: nn.LeakyReLU(0.2),
    "Leaky ReLU in place": lambda: nn.LeakyReLU(0.5, inplace=True),
}


def inputs_of(shape, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator) for _ in range(steps)]
    assert_both_branches(*values)
    return values


def only(monitor):
    [layer] = monitor.report().layers
    return layer


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 3),
        torch_ext.PReLU(3),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.LeakyReLU(0.1),
        nn.Linear(5, 2),
    )


def images(seed=0):
    return torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def train(model, steps=3):
    """The loss of each step, and the gradients at the end."""
    losses = []
    for step in range(steps):
        loss = model(images(step)).square().mean()
        loss.backward()
        losses.append(loss.detach())
    return losses, [p.grad for p in model.parameters()]


def figures(monitor):
    return [layer.to_dict() for layer in monitor.report().layers]

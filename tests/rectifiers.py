"""Models with ReLU and Leaky ReLU: for the tests of parametrize_relu."""

import torch
from swaps import images  # noqa: F401  (what these models take, too)
from torch import nn

import torch_ext


def network():
    """Both rectifiers, per channel and after a linear layer, nested, with batch statistics."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 5, 3), nn.LeakyReLU(0.2), nn.Dropout()),
        nn.Flatten(),
        nn.Linear(80, 6),
        nn.LeakyReLU(-0.5),
        nn.Linear(6, 6),
    )


RELUS = ["2", "3.1", "6"]


def slopes_of(model):
    return {
        name: module.weight.tolist()
        for name, module in model.named_modules()
        if isinstance(module, torch_ext.PReLU)
    }


def reasons(report):
    """The skipped ones by name; each has one reason."""
    assert len(dict(report.skipped)) == len(report.skipped)
    return dict(report.skipped)

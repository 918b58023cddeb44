"""Models with PReLU and what they call: for the tests of replace_prelu and restore_prelu."""

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from torch_ext import replace_prelu


class Activation(nn.PReLU):
    """A subclass as libraries have them: another constructor, the inherited forward."""

    def __init__(self, channels):
        super().__init__(channels, init=0.1)
        self.origin = "library"


class Shifted(nn.PReLU):
    """A subclass that computes something else."""

    def forward(self, input):
        return super().forward(input - 1)


class Verbatim(nn.PReLU):
    """A subclass that spells PReLU out once more."""

    def forward(self, input):
        return torch.nn.functional.prelu(input, self.weight)


class WrittenOut(nn.PReLU):
    """A subclass that computes PReLU in other words."""

    def forward(self, input):
        return torch.where(input > 0, input, self.weight.reshape(-1, 1, 1) * input)


class DerivedFromWrittenOut(WrittenOut):
    """A subclass of a subclass that inherits its forward."""


class WithMixin(nn.PReLU):
    """A subclass with its own way of pickling."""

    def __reduce__(self):
        return type(self), (self.num_parameters,), self.__dict__


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


class Calls(TorchFunctionMode):
    """Notes which PReLU a model calls: "stock" or "fused"."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.prelu or func is torch.nn.functional.prelu:
            self.made.append("stock")
        elif func in (torch.ops.torch_ext.prelu, torch.ops.torch_ext.prelu.default):
            self.made.append("fused")
        return func(*args, **(kwargs or {}))


def calls(model, input=None):
    with Calls() as recorder:
        model(images() if input is None else input)
    return recorder.made


def images(seed=0):
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def network():
    """Convolutions with one slope per channel, one slope in all, and a nested block."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.PReLU(4),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.PReLU(init=-0.5)),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.PReLU(6, init=1.5),
    )


PRELUS = ["1", "2.1", "5"]


def gradients(model):
    model.zero_grad()
    model(images()).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def model_of_all_kinds():
    torch.manual_seed(0)
    return nn.Sequential(nn.PReLU(3), Activation(3), WithMixin(3), Verbatim(3))


def parametrized_model(cls=nn.PReLU):
    model = nn.Sequential(cls(3))
    parametrize.register_parametrization(model[0], "weight", Doubled())
    return model


def subclass(forward, **attributes):
    """A subclass of nn.PReLU with this forward, and instances that have these attributes."""

    def __init__(self):
        super(cls, self).__init__(3)
        for name, make in attributes.items():
            setattr(self, name, make())

    cls = type("Own", (nn.PReLU,), {"forward": forward, "__init__": __init__})
    return cls


def reason_of(cls):
    """Why the subclass is skipped."""
    model = nn.Sequential(cls())
    report = replace_prelu(model)
    assert report.swapped == []
    assert type(model[0]) is cls
    [(name, reason)] = report.skipped
    assert name == "0"
    start, end = "Own.forward is not just prelu(input, self.weight): it ", "; also= swaps it anyway"
    assert reason.startswith(start)
    assert reason.endswith(end)
    return reason[len(start) : -len(end)]

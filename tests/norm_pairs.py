"""Norms in front of PReLU, in float64, beside the same modules unchanged: for the tests of their fusion.

In float64 a wrong formula, a lost gradient or a second update of the statistics is far outside of the
tolerance, and no element is so near to zero that it changes sides by rounding.
"""

import contextlib
import copy

import torch
from torch import nn

import torch_ext
from torch_ext import _norm_calls

NORMS = {
    "BatchNorm1d": (nn.BatchNorm1d, (4, 8, 5)),
    "BatchNorm1d of (N, C)": (nn.BatchNorm1d, (6, 8)),
    "BatchNorm2d": (nn.BatchNorm2d, (2, 8, 4, 4)),
    "BatchNorm3d": (nn.BatchNorm3d, (2, 8, 2, 3, 2)),
    "InstanceNorm1d": (nn.InstanceNorm1d, (2, 8, 5)),
    "InstanceNorm2d": (nn.InstanceNorm2d, (2, 8, 4, 4)),
    "InstanceNorm3d": (nn.InstanceNorm3d, (2, 8, 2, 3, 2)),
}


@contextlib.contextmanager
def fused_calls():
    """Notes each call of a fused function; the list has the name of each."""
    made = []

    def noting(name, function):
        def noted(*args, **kwargs):
            made.append(name)
            return function(*args, **kwargs)

        return noted

    with contextlib.ExitStack() as stack:
        for name in ("batch_norm_prelu", "instance_norm_prelu"):
            function = getattr(_norm_calls, name)
            setattr(_norm_calls, name, noting(name, function))
            stack.callback(setattr, _norm_calls, name, function)
        yield made


def calls_of(run):
    """How many fused calls a function makes, and what it returns."""
    with fused_calls() as made:
        result = run()
    return len(made), result


def randomized(model, seed=0):
    """Every Parameter and running statistic somewhere else, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                fresh = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(fresh + 0.5 if "running_var" in name else fresh - 0.3)
    return model


def sample(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) + 0.2


def pair(**options):
    """Batch norm and PReLU of 8 channels."""
    return randomized(nn.Sequential(nn.BatchNorm2d(8, **options), nn.PReLU(8)))


def changed(model, *example, **options):
    """A copy of the model with its pairs fused; all that can be."""
    model = copy.deepcopy(model)
    report = torch_ext.fuse_norm_prelu(model, *example, **options)
    assert report.swapped
    return model


def outcome(model, *inputs, steps=2):
    """What some steps of training leave behind, by name: outputs, gradients, buffers."""
    found = {}
    model.zero_grad()
    for step in range(steps):
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = model(*[leaf * 1.0 for leaf in leaves])
        weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
        found[f"output {step}"] = output.detach().clone()
        if output.requires_grad:
            (output * weights).sum().backward()
        found |= {f"input {i} {step}": leaf.grad for i, leaf in enumerate(leaves)}
    found |= {name: p.grad for name, p in model.named_parameters()}
    found |= {name: b.clone() for name, b in model.named_buffers()}
    return found


def assert_same(actual, expected):
    """Of two outcomes; something has to be there."""
    assert actual.keys() == expected.keys()
    assert any(value is not None and value.abs().max() > 1e-3 for value in expected.values())
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, name
        else:
            torch.testing.assert_close(
                actual[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
            )


def assert_trains_like(plain, fused, *inputs, fused_in_a_step=1, steps=2):
    """Both models give the same outcome, and the second one fused what it should."""
    expected = outcome(plain, *inputs, steps=steps)
    made, actual = calls_of(lambda: outcome(fused, *inputs, steps=steps))
    assert made == fused_in_a_step * steps
    assert_same(actual, expected)

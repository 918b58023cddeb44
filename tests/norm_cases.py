"""Calls of the public functions of norm + PReLU, for what is peculiar to them; and the pair's, beside them."""

from dataclasses import dataclass, replace

import pytest
import torch
from cases import Case, random_values, slope_tensors

import torch_ext

BATCH, INSTANCE = "batch", "instance"
FUNCTIONS = {BATCH: torch_ext.batch_norm_prelu, INSTANCE: torch_ext.instance_norm_prelu}
# The pair that is fused, as PyTorch has it.
PYTORCH_NORMS = {BATCH: torch.nn.functional.batch_norm, INSTANCE: torch.nn.functional.instance_norm}


IMAGE = Case("image", (4, 16, 9, 9), (16,))
SMALL = Case("small", (3, 4, 5, 2), (4,))
both_modes = pytest.mark.parametrize("training", (True, False), ids=("training", "eval"))
both_norms = pytest.mark.parametrize("norm", FUNCTIONS)


@dataclass
class Problem:
    """Arguments of one call."""

    norm: str
    training: bool
    input: torch.Tensor
    slope: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    grad_output: torch.Tensor
    eps: float = 1e-3
    momentum: float = 0.3

    @property
    def differentiable(self):
        tensors = (self.input, self.slope, self.weight, self.bias)
        return [tensor for tensor in tensors if tensor is not None]

    def with_buffers(self):
        """With buffers of its own."""
        buffers = {
            name: None if (value := getattr(self, name)) is None else value.detach().clone()
            for name in ("running_mean", "running_var")
        }
        return replace(self, **buffers)

    def with_leaves(self):
        """With fresh tensors that require gradients, and buffers of its own."""
        names = ("input", "slope", "weight", "bias")
        leaves = {name: getattr(self, name).detach().requires_grad_() for name in names}
        return replace(self.with_buffers(), **leaves)

    def run(self, function=None):
        function = function or FUNCTIONS[self.norm]
        return function(
            self.input,
            self.slope,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )

    def pytorch(self):
        """PyTorch's norm, then PReLU."""
        z = PYTORCH_NORMS[self.norm](
            self.input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        return torch_ext.prelu(z, self.slope)


def problem_of(case, norm, training, dtype, parameter_dtype=None):
    """Values on both sides of zero behind the norm; slopes of both signs."""
    parameter_dtype = parameter_dtype or dtype
    channels = case.shape[1]

    def values(seed, low, high):
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(channels, generator=generator, dtype=torch.float64)
        return (low + (high - low) * uniform).to(parameter_dtype)

    def data(seed):
        return random_values(case.shape, torch.float64, seed=seed) * 1.7

    return Problem(
        norm,
        training,
        case.layout((data(1) + 0.4).to(dtype)),
        next(slope_tensors(case.slopes, parameter_dtype, values=(-0.5, 0.25, 2.0, -1.0, 0.3))),
        values(3, 0.5, 2),
        values(4, -0.5, 0.5),
        values(5, -0.1, 0.9),
        values(6, 0.5, 3),
        case.layout(data(2).to(dtype)),
    )

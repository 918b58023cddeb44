"""What norm + PReLU is tested on: modes, parameters, layouts; and how it is run."""

from dataclasses import dataclass, field, replace

import torch
from cases import (
    channels_last,
    contiguous,
    offset,
    random_values,
    rotated,
    slope_tensors,
    step_2,
    transposed,
)

import torch_ext

BATCH, INSTANCE = "batch", "instance"
FUNCTIONS = {BATCH: torch_ext.batch_norm_prelu, INSTANCE: torch_ext.instance_norm_prelu}
# The pair that is fused, as PyTorch has it.
PYTORCH_NORMS = {BATCH: torch.nn.functional.batch_norm, INSTANCE: torch.nn.functional.instance_norm}


@dataclass(frozen=True)
class NormCase:
    name: str
    shape: tuple
    slopes: tuple
    layout: object = contiguous
    norms: tuple = field(default=(BATCH, INSTANCE))
    affine: bool = True


CASES = (
    NormCase("image", (4, 16, 9, 9), (16,)),
    NormCase("image_channels_last", (4, 16, 9, 9), (16,), channels_last),
    NormCase("large_planes", (3, 17, 33, 31), (17,)),  # channel by channel, all sweeps in cache
    NormCase("few_channels", (5, 2, 61, 67), (2,)),
    NormCase("volume", (2, 6, 3, 5, 7), (6,)),
    NormCase("volume_channels_last", (2, 6, 3, 5, 7), (6,), channels_last),
    NormCase("tokens", (3, 33, 20), (33,), channels_last),
    NormCase("rows", (137, 24), (24,), norms=(BATCH,)),
    NormCase("rows_transposed", (137, 24), (24,), transposed, norms=(BATCH,)),
    NormCase("one_channel", (5, 1, 13), (1,)),
    NormCase("shared_slope", (4, 7, 11, 6), (1,)),
    NormCase("shared_0d_slope_channels_last", (4, 7, 11, 6), (), channels_last),
    NormCase("samples_innermost", (6, 5, 7, 4), (5,), rotated),
    NormCase("every_other_element", (3, 4, 21), (4,), step_2),
    NormCase("misaligned", (3, 5, 17), (5,), offset),
    NormCase("no_affine", (4, 16, 9, 9), (16,), affine=False),
)
PARAMETRIZED = tuple((norm, case) for case in CASES for norm in case.norms)


@dataclass
class Problem:
    """Arguments of one call."""

    norm: str
    training: bool
    input: torch.Tensor
    slope: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
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
        leaves = {
            name: None
            if (value := getattr(self, name)) is None
            else value.detach().requires_grad_()
            for name in ("input", "slope", "weight", "bias")
        }
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


def problem_of(case, norm, training, dtype, parameter_dtype=None, mean=0.4, device="cpu"):
    """Values on both sides of zero behind the norm; slopes of both signs."""
    parameter_dtype = parameter_dtype or dtype
    channels = case.shape[1]

    def values(seed, low, high):
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(channels, generator=generator, dtype=torch.float64)
        return (low + (high - low) * uniform).to(parameter_dtype).to(device)

    def data(seed):
        return random_values(case.shape, torch.float64, seed=seed) * 1.7

    input = case.layout((data(1) + mean).to(dtype).to(device))
    return Problem(
        norm,
        training,
        input,
        next(slope_tensors(case.slopes, parameter_dtype, device, (-0.5, 0.25, 2.0, -1.0, 0.3))),
        values(3, 0.5, 2) if case.affine else None,
        values(4, -0.5, 0.5) if case.affine else None,
        values(5, mean - 0.5, mean + 0.5),
        values(6, 0.5, 3),
        case.layout(data(2).to(dtype).to(device)),
    )

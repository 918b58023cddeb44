"""Batch and instance norm followed by PReLU, as functions: a composition of PyTorch's and ours.

Fused operators are to take its place; the signatures are theirs.
"""

from torch import Tensor
from torch.nn import functional as F

from torch_ext.prelu import prelu

__all__ = ["batch_norm_prelu", "instance_norm_prelu"]


def batch_norm_prelu(
    input: Tensor,
    slope: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``prelu(F.batch_norm(input, ...), slope)``."""
    normed = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return prelu(normed, slope)


def instance_norm_prelu(
    input: Tensor,
    slope: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``prelu(F.instance_norm(input, ...), slope)``."""
    normed = F.instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )
    return prelu(normed, slope)

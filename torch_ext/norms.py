"""Norm and PReLU as one function. The operators, their autograd and their checks are in C++."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn import functional as F

from torch_ext.prelu import prelu

__all__ = ["batch_norm_prelu", "instance_norm_prelu"]

# The packets, as for prelu: looked up once, and the only form that TorchScript knows.
_batch_norm_prelu: Callable[..., Tensor] = torch.ops.torch_ext.batch_norm_prelu
_instance_norm_prelu: Callable[..., Tensor] = torch.ops.torch_ext.instance_norm_prelu


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
    r"""Batch norm and PReLU in one: ``prelu(F.batch_norm(input, ...), slope)``.

    .. math::
        z = \frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \epsilon}} \gamma + \beta \qquad
        y = \begin{cases} z & z > 0 \\ a z & \text{else} \end{cases}

    (Ioffe and Szegedy, "Batch Normalization", arXiv:1502.03167, with :func:`torch_ext.prelu`).
    z is never written to memory, nor kept for the backward, which computes it again: forward and
    backward read and write 8 tensors of the input's size where the two functions take 13, and one
    is kept where they keep two. (``torch.export`` records the two functions.)

    Args:
        input: shape :math:`(N, C, *)`, with any strides; float64, float32, float16 or bfloat16.
        slope: of PReLU, one, shape :math:`()` or :math:`(1)`, or one per channel, shape
            :math:`(C)`. Like all tensors that follow, of ``input``'s dtype, or float32 with a
            16-bit ``input``.
        running_mean, running_var: shape :math:`(C)`, or None with ``training``. They are the
            statistics without ``training``; with it they are updated in place, ``running_var``
            with the unbiased variance.
        weight, bias: :math:`\gamma` and :math:`\beta`, shape :math:`(C)`, or None for 1 and 0.
        training: whether the statistics are those of ``input``.
        momentum: the share of the new statistics in the running ones.
        eps: added to the variance.

    Returns:
        A tensor of ``input``'s shape, dtype and memory format, differentiable in ``input``,
        ``slope``, ``weight`` and ``bias`` any number of times.

    Raises:
        ValueError, RuntimeError, NotImplementedError: as :func:`torch.nn.functional.batch_norm` and
            :func:`torch.nn.functional.prelu` do, in their words.

    Example::

        >>> slope, input = torch.full((64,), 0.25), torch.randn(8, 64, 28, 28)
        >>> torch_ext.batch_norm_prelu(input, slope, None, None, training=True).shape
        torch.Size([8, 64, 28, 28])
    """
    if not is_scripting():  # noqa: SIM102  (TorchScript would compile what follows an "and")
        # A program for others has PyTorch's norm. (By the flag, because is_exporting() is true in all that Dynamo of
        # torch 2.11 traces.)
        if torch.compiler._is_exporting_flag:
            norm = (running_mean, running_var, weight, bias, training, momentum, eps)
            return prelu(F.batch_norm(input, *norm), slope)
    return _batch_norm_prelu(
        input, slope, running_mean, running_var, weight, bias, training, momentum, eps
    )


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
    r"""Instance norm and PReLU in one: ``prelu(F.instance_norm(input, ...), slope)``.

    As :func:`torch_ext.batch_norm_prelu`, with statistics for each channel of each sample; running
    statistics are updated with their mean over the samples.

    Args:
        input: shape :math:`(N, C, *)`, with any strides. (A dense one is copied only if another
            dimension than that of the samples is the outermost in memory.)
        slope, running_mean, running_var, weight, bias, momentum, eps: as for
            :func:`torch_ext.batch_norm_prelu`.
        use_input_stats: whether the statistics are those of ``input``.

    Returns:
        A tensor of ``input``'s shape, dtype and memory format.

    Raises:
        ValueError, RuntimeError, NotImplementedError: as
            :func:`torch.nn.functional.instance_norm` and :func:`torch.nn.functional.prelu` do, in
            their words.

    Example::

        >>> torch_ext.instance_norm_prelu(torch.randn(2, 32, 48, 48), torch.tensor(0.25)).shape
        torch.Size([2, 32, 48, 48])
    """
    if not is_scripting():  # noqa: SIM102  (TorchScript would compile what follows an "and")
        # A program for others has PyTorch's norm. (By the flag, because is_exporting() is true in all that Dynamo of
        # torch 2.11 traces.)
        if torch.compiler._is_exporting_flag:
            norm = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
            return prelu(F.instance_norm(input, *norm), slope)
    return _instance_norm_prelu(
        input, slope, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )

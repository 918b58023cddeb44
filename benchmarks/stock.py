"""PyTorch's own PReLU: a contender, called "stock" in the records, and the measure of results."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

import torch_ext

Prelu = Callable[[Tensor, Tensor], Tensor]


class Dtypes(Protocol):
    """Of a case, on any device."""

    @property
    def data_dtype(self) -> torch.dtype: ...

    @property
    def weight_dtype(self) -> torch.dtype: ...


def _casting_prelu(x: Tensor, weight: Tensor) -> Tensor:
    """PyTorch refuses a float32 weight with 16-bit data; autocast would add this cast."""
    return functional.prelu(x, weight.to(x.dtype))


def stock_of(case: Dtypes) -> Prelu:
    return functional.prelu if case.data_dtype == case.weight_dtype else _casting_prelu


def agrees(case: Dtypes, x: Tensor, weight: Tensor, grad_output: Tensor) -> bool:
    """Whether results equal PyTorch's to the bit, except the slope's gradient and mixed dtypes."""
    if case.data_dtype != case.weight_dtype:
        return True
    results = []
    for prelu in (torch_ext.prelu, functional.prelu):
        y = prelu(x, weight)
        results.append((y.detach(), *torch.autograd.grad(y, x, grad_output)))
    return all(torch.equal(ours, stock) for ours, stock in zip(*results, strict=True))

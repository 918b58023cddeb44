"""The sums of an ActivationMonitor and what one step adds to them, on the device of the data."""

import torch
from torch import Tensor

__all__ = ["Row"]

_is_of_func = torch._C._functorch.is_functorch_wrapped_tensor
_is_of_older_vmap = torch._C._functorch.is_legacy_batchedtensor


def _is_transformed(grad: Tensor | None) -> bool:
    return grad is not None and (_is_of_func(grad) or _is_of_older_vmap(grad))


class Row:
    """The sums for one call of one module; tensors are on the device of its inputs.

    Even a small operation costs microseconds, so there are as few as possible.

    Attributes:
        seen, observed: forwards since the monitor was created, and how many of them were observed.
        sampled: whether the last forward was observed.
        steps, elements: observed forwards and inputs per channel, since the last reset.
        last_positive: per channel the observed step that had a positive input last, 0 if none.
        positive: positive inputs per channel since the last reset, whole numbers as float64; first
            those of steps with a fixed slope of 0, then all others.
        fixed_zero: inputs per channel in steps with a fixed slope of 0.
        zero_slope: in the other steps, per channel: inputs that met a slope of 0, and how many of
            these were positive.
        norms: the sums of finite gradient norms and their numbers, for output and input.
        gradients: the numbers of gradients at output and input.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.seen = self.observed = 0
        self.sampled = False
        self.last_positive = torch.zeros(channels, dtype=torch.int64, device=device)
        self.positive = torch.zeros(2, channels, dtype=torch.float64, device=device)
        self.zero_slope = torch.zeros(2, channels, dtype=torch.float64, device=device)
        self.norms = torch.zeros(2, 2, dtype=torch.float64, device=device)
        self.reset()

    def reset(self) -> None:
        self.steps = self.elements = self.fixed_zero = 0
        self.gradients = [0, 0]
        for sums in (self.positive, self.zero_slope, self.norms):
            sums.zero_()

    def count(self, input: Tensor, dim: int | None, slope: Tensor | float | None) -> None:
        """Adds one step. `dim` is the dimension of the channels; None: the input is one unit."""
        if input.device != self.positive.device:
            self._move(input.device)
        channels = self.last_positive.numel()
        size = input.numel() // channels
        self.steps += 1
        self.observed += 1
        self.elements += size
        positive = _count_positive(
            input.detach(), dim, size
        )  # out= refuses tensors with a forward-mode tangent
        self.last_positive.masked_fill_(positive > 0, self.observed)
        if slope is not None and not isinstance(slope, Tensor) and slope == 0:
            self.fixed_zero += size
            self.positive[0].add_(positive)
            return
        self.positive[1].add_(positive)
        if isinstance(slope, Tensor) and slope.numel() in (
            1,
            channels,
        ):  # otherwise the forward raises
            is_zero = slope.detach().reshape(-1) == 0
            self.zero_slope[0].add_(is_zero, alpha=size)
            self.zero_slope[1].add_(positive * is_zero)

    def add_gradients(
        self,
        output_nr: int,
        place: int | None,
        unchanged: bool,
        grad_inputs: tuple[Tensor | None, ...],
        grad_outputs: tuple[Tensor | None, ...],
    ) -> None:
        """A hook of a graph node. Adds the norms of the gradient that enters the node at `output_nr`
        and of the one that leaves it at `place`; of the former twice if the layer changes nothing."""
        if any(map(_is_transformed, grad_outputs)):
            return  # many gradients at once: vmap, or is_grads_batched
        entering = grad_outputs[output_nr]
        leaving = None if place is None else grad_inputs[place]
        ends = (entering, entering if unchanged else leaving)
        with torch.no_grad():
            norms = []
            for end, grad in enumerate(ends):
                if grad is not None and grad.device == self.norms.device:
                    self.gradients[end] += 1
                    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
                    norms.append(torch.linalg.vector_norm(grad, dtype=wide))
                elif end == 0:
                    return
            found = torch.stack(norms)
            sums, finite = self.norms[:, : len(norms)]
            finite.add_(found < torch.inf)
            sums.add_(found.nan_to_num_(nan=0.0, posinf=0.0))

    def _move(self, device: torch.device) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))


def _count_positive(input: Tensor, dim: int | None, size: int) -> Tensor:
    """How many elements of each channel are > 0; shape (C), whole numbers in a floating-point dtype.

    On the CPU, comparisons whose result has the input's dtype are vectorised, and so are their sums;
    those with a bool result are not.
    """
    if input.is_floating_point() and input.device.type == "cpu":
        is_positive = torch.gt(input, 0, out=torch.empty_like(input))
    else:
        is_positive = input > 0
    exact = torch.float32 if size <= 1 << 24 else torch.float64
    if dim is None:
        return is_positive.sum(dtype=exact).reshape(1)
    dim %= input.dim()
    return is_positive.sum([d for d in range(input.dim()) if d != dim], dtype=exact)

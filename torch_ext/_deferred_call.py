"""One call of a norm that is not computed yet: what its result depends on, and what has become of it.

`_deferred.py` has the tensor that stands for the result, and says what is promised of it.
"""

import sys
import warnings
import weakref
from threading import RLock, get_ident

import torch
from torch import Tensor, nn

from torch_ext import _C
from torch_ext._norm_calls import (
    Arguments,
    fused,
    normed,
    unobserved,
    update_statistics,
    updates_statistics,
)

_forward_grad_enabled = torch._C._is_fwd_grad_enabled
_grad_enabled = torch._C.is_grad_enabled
_state_of = _C.state_of
_inference_mode_enabled = torch.is_inference_mode_enabled

REMEDY = (
    "leave this norm out by filter_fn of torch_ext.fuse_norm_prelu, or, if no PReLU follows it, call "
    "fuse_norm_prelu with example_inputs"
)


class Call:
    """One call of a norm: all that its result depends on, and what has become of it."""

    __slots__ = (
        *("arguments", "counted", "fused", "grad", "has_graph", "input", "instance", "lock"),
        *("norm", "state", "thread", "version"),
    )

    def __init__(self, norm: nn.Module, instance: bool, x: Tensor, arguments: Arguments) -> None:
        self.counted = True  # until it is complete: reading a version may raise
        self.norm = weakref.ref(norm)
        self.instance = instance
        self.input = x
        self.arguments = arguments
        self.state = _state(x, arguments)
        self.version = x._version
        self.grad = _grad_enabled()
        mean, _, weight, bias, training, _, _ = arguments
        self.has_graph = self.grad and (
            x.requires_grad
            or (weight is not None and weight.requires_grad)
            or (bias is not None and bias.requires_grad)
        )
        self.fused = False  # by a PReLU
        self.counted = mean is None or not training  # there is nothing to update
        self.thread = get_ident()
        self.lock = RLock()  # of those who may compute it

    def fuse(self, slope: Tensor) -> Tensor:
        """Norm and PReLU by one operator."""
        self.check()
        result = fused(self.instance, self.input, slope, self.arguments)
        self.fused = self.counted = True
        return result

    def compute(self) -> Tensor:
        """What the norm would have returned."""
        self.check()
        if self.has_graph and not _forward_grad_enabled() and not _inference_mode_enabled():
            raise RuntimeError(
                f"the result of {self} was given to a torch.autograd.Function, which would lose its "
                f"gradient: {REMEDY}"
            )
        given = self.arguments
        if self.counted and updates_statistics(given):
            given = given._replace(running_mean=None, running_var=None)
        with unobserved(), torch.set_grad_enabled(self.grad):
            result = normed(self.instance, self.input, given)
        self.counted = True
        return result

    def has_changed(self) -> bool:
        """Whether what the result depends on was changed since the call."""
        return self.state != _state(self.input, self.arguments)

    def check(self) -> None:
        """Raises if it cannot be computed any more."""
        if self.has_changed():
            self.counted = True  # or never
            what = "a Parameter or a statistic"
            if self.version != self.input._version:
                what = "the input"
            raise RuntimeError(
                f"{what} of a norm was changed in place before its result was used. By "
                f"torch_ext.fuse_norm_prelu {self} is computed only then, and the values that it needs are "
                f"gone: {REMEDY}"
            )

    def update_statistics(self) -> None:
        """All that is left to do for a result that nobody uses. It depends on the input alone."""
        if self.version != self.input._version:
            self.check()
        with unobserved():
            update_statistics(self.instance, self.input, self.arguments)
        self.counted = True

    def keep_statistics(self) -> None:
        """Of a norm in eval mode, before others change them. (It does not show in their versions.)"""
        given = self.arguments
        if (
            not self.has_changed()
            and given.running_mean is not None
            and given.running_var is not None
        ):
            with unobserved(), torch.no_grad():
                mean, var = given.running_mean.clone(), given.running_var.clone()
            self.arguments = given._replace(running_mean=mean, running_var=var)
            self.state = _state(self.input, self.arguments)

    def __str__(self) -> str:
        norm = self.norm()
        return "the norm" if norm is None else f"{type(norm).__name__}({norm.num_features})"

    def __del__(self) -> None:
        if self.counted or sys.is_finalizing():
            return
        try:
            self.update_statistics()
        except Exception as error:  # noqa: BLE001  (nobody could catch it)
            warnings.warn(f"running statistics were not updated: {error}", stacklevel=2)


def _state(x: Tensor, arguments: Arguments) -> bytes:
    """Differs after what the result depends on has changed; not by statistics that the call itself is to update."""
    mean, var, weight, bias, training, _, _ = arguments
    return (
        _state_of(x, weight, bias, None, None)
        if training
        else _state_of(x, weight, bias, mean, var)
    )

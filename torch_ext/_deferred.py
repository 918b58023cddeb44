"""A norm's result that is not computed yet: fused by the PReLU that meets it, settled by anything else.

`fuse_norm_prelu` exchanges the classes of norms and of PReLUs for ones with these calls. The norm's
returns a `Deferred`, a tensor of the right shape without data. The PReLU's recognises it and runs both as
one operator. Any other use comes by ``__torch_function__`` and *settles* it first, into what the norm
would have returned: then that use, and all later ones, get this ordinary tensor. So nothing of a model's
code has to be known, and any control flow is right.

What is right about it, whatever happens in between:

- Statistics are updated once for each call of the norm, before anybody reads them: when the result is
  fused or settled, at the norm's next call, when they are asked for, or else when the result is deleted.
- An input, Parameters or statistics that were changed in place meanwhile are noticed by their versions.
- The graph is that of the norm's call: its grad mode counts, and a PReLU under another one stays alone.
- What cannot see ``__torch_function__`` (code in C++ that bypasses Python) meets the dispatcher and gets
  an error, never numbers.
"""

import contextlib
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_ext._norm_calls import (
    KINDS,
    Arguments,
    arguments,
    fused,
    is_undisturbed,
    may_defer,
    normed,
    slope_for,
    update_statistics,
    updates_statistics,
)

_forward_grad_enabled = torch._C._is_fwd_grad_enabled
_grad_enabled = torch._C.is_grad_enabled

REMEDY = "leave this norm out by filter_fn of torch_ext.fuse_norm_prelu, or give it example_inputs"


class Call:
    """One call of a norm: all that its result depends on, and what has become of it."""

    __slots__ = (
        *("__weakref__", "arguments", "fused", "grad", "input", "key", "reported", "settled"),
        "versions",
    )

    def __init__(
        self, key: tuple[int, bool], x: Tensor, arguments: Arguments, versions: tuple[int, ...]
    ) -> None:
        self.key = key  # the norm by its identity, and whether it is an instance norm
        self.input = x
        self.arguments = arguments
        self.versions = versions
        self.grad = _grad_enabled()
        self.settled: Tensor | None = None
        self.fused = False
        self.reported = False  # that it cannot be computed any more
        if arguments[0] is not None:
            _pending[key[0]] = weakref.ref(self)

    def fuse(self, slope: Tensor) -> Tensor:
        """Norm and PReLU by one operator."""
        self.check()
        self.fused = True
        self._begin()
        return fused(self.key[1], self.input, slope, self.arguments)

    def settle(self) -> Tensor:
        """What the norm would have returned, always the same tensor."""
        if self.settled is None:
            if torch.compiler.is_dynamo_compiling():
                torch._dynamo.graph_break(
                    msg="a compiled part of a model was given the result of a norm outside of it that "
                    f"torch_ext.fuse_norm_prelu has changed: {REMEDY}, or compile the norm with it"
                )
            self.check()
            with self._as_at_the_call():
                self._begin()
                once_more = _without_updates(self.arguments) if self.fused else self.arguments
                self.settled = normed(self.key[1], self.input, once_more)
        return self.settled

    def _begin(self) -> None:
        if _pending:
            _pending.pop(self.key[0], None)

    def check(self) -> None:
        """Raises if what the result depends on was changed since the call."""
        if self.versions != _versions(self.input, self.arguments):
            what = "the input"
            if self.input._version == self.versions[0]:
                what = "a Parameter or a statistic"
            self.reported = True
            raise RuntimeError(
                f"{what} of a norm was changed in place before its result was used, which a norm that "
                f"torch_ext.fuse_norm_prelu has changed computes then: {REMEDY}"
            )

    @contextlib.contextmanager
    def _as_at_the_call(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            elif self.grad and not _forward_grad_enabled():
                raise RuntimeError(
                    "the result of a norm that torch_ext.fuse_norm_prelu has changed was given to a "
                    f"torch.autograd.Function, which would lose its gradient: {REMEDY}"
                )
            if torch._C._functorch.peek_interpreter_stack() is not None:
                from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

                stack.enter_context(temporarily_clear_interpreter_stack())
            stack.enter_context(torch.set_grad_enabled(self.grad))
            yield

    def __del__(self) -> None:
        if self.fused or self.settled is not None or self.reported or sys.is_finalizing():
            return
        self._begin()
        if updates_statistics(self.arguments):
            try:
                self.check()
                update_statistics(self.key[1], self.input, self.arguments)
            except RuntimeError as error:
                warnings.warn(f"running statistics were not updated: {error}", stacklevel=2)


# Calls that have not read or updated their norm's statistics yet, by the norm's identity.
_pending: dict[int, weakref.ref[Call]] = {}


def finish(norm: nn.Module, only_updates: bool = False) -> None:
    """Has the norm's last call done with its statistics, or brings them up to date."""
    reference = _pending.get(id(norm))
    call = None if reference is None else reference()
    if call is not None and (updates_statistics(call.arguments) or not only_updates):
        call.settle()


def _without_updates(arguments: Arguments) -> Arguments:
    return (None, None, *arguments[2:]) if arguments[4] else arguments


def _versions(x: Tensor, arguments: Arguments) -> tuple[int, ...]:
    """Of what the result depends on; not of statistics that the call itself is to update."""
    mean, var, weight, bias, training, _, _ = arguments
    versions = (
        x._version,
        0 if weight is None else weight._version,
        0 if bias is None else bias._version,
    )
    if training or mean is None or var is None:
        return versions
    return (*versions, mean._version, var._version)


# ---- The tensor ----------------------------------------------------------------------------------

_SHAPE: dict[Any, Callable[..., Any]] = {
    Tensor.shape.__get__: lambda shape: shape,  # type: ignore[attr-defined]
    Tensor.ndim.__get__: len,  # type: ignore[attr-defined]
    Tensor.dim: len,
    Tensor.size: lambda shape, dim=None: shape if dim is None else shape[dim],
    Tensor.numel: lambda shape: shape.numel(),
}
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


class Deferred(Tensor):
    """The result of a norm, unsettled: what it is an instance of, and everything about it, is a Tensor's.

    Its shape is known without settling it. (Not its device: by asking for that, activation
    checkpointing settles what it is given before it begins to watch what is saved.)
    """

    _call: Call

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if type(first) is Deferred:
            if func in _SHAPE:
                return _SHAPE[func](first._call.input.shape, *args[1:], **kwargs)
            if func in DROPOUTS and does_nothing(*args, **kwargs):
                return first
        return func(*_settled(args), **_settled(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"{func} was called from outside of Python with the result of a norm that "
            f"torch_ext.fuse_norm_prelu has changed: {REMEDY}"
        )


def deferred(call: Call) -> Deferred:
    """The tensor that stands for a call's result."""
    made: Deferred = _make(Deferred, call.input.shape)
    made._call = call
    return made


_make: Any = Tensor._make_wrapper_subclass


def does_nothing(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> bool:
    """Whether a dropout returns its input, as PyTorch's does: the same tensor."""
    return p == 0 if training else 0 <= p <= 1


def _settled(value: Any) -> Any:
    """Arguments with every deferred result settled."""
    if isinstance(value, Tensor):
        return value._call.settle() if type(value) is Deferred else value
    if isinstance(value, tuple):
        parts = [_settled(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, list):
        return [_settled(part) for part in value]
    if isinstance(value, dict):
        return {key: _settled(part) for key, part in value.items()}
    return value


# ---- What the exchanged classes do when they are called ------------------------------------------


def call_norm(self: Any, *args: Any, **kwargs: Any) -> Any:
    """``__call__`` of a norm: its result, deferred where that is certain to be the same."""
    if torch.compiler.is_dynamo_compiling() or len(args) != 1 or kwargs:
        return nn.Module.__call__(self, *args, **kwargs)
    [x] = args
    if _pending:
        finish(self)
    if type(x) is Deferred:
        x = x._call.settle()
    if (
        type(x) is Tensor
        and is_undisturbed(self)
        and may_defer()
        and "_is_fsdp_managed_module" not in self.__dict__  # Parameters go after the forward
    ):
        kind = KINDS[type(self)._torch_ext_norm]
        found = arguments(self, kind, x)
        if found is not None:
            try:
                versions = _versions(x, found)
            except RuntimeError:  # tensors of inference mode do not tell that they were changed
                return normed(kind.instance, x, found)
            return deferred(Call((id(self), kind.instance), x, found, versions))
    return nn.Module.__call__(self, x)


def call_prelu(self: Any, *args: Any, **kwargs: Any) -> Any:
    """``__call__`` of a PReLU: one operator with the norm whose deferred result it gets."""
    if torch.compiler.is_dynamo_compiling():
        return nn.Module.__call__(self, *args, **kwargs)
    if len(args) == 1 and type(args[0]) is Deferred and not kwargs:
        call: Call = args[0]._call
        if (
            call.settled is None
            and not call.fused
            and call.grad is _grad_enabled()
            and is_undisturbed(self)
            and may_defer()
            and (slope := slope_for(self, call.input)) is not None
        ):
            return call.fuse(slope)
    # Hooks and wrappers get an ordinary tensor: what autograd does with them bypasses Python.
    return nn.Module.__call__(self, *_settled(args), **_settled(kwargs))

"""A norm's result that is not computed yet: fused by the PReLU that meets it, settled by anything else.

`fuse_norm_prelu` exchanges the classes of norms and of PReLUs for ones with these calls. The norm's
returns a `Deferred`, a tensor of the right shape without data. The PReLU's recognises it and runs both as
one operator. Any other use comes by ``__torch_function__`` and *settles* it first: the very same object
becomes the ordinary tensor that the norm would have returned, for that use and all later ones, those in C++
included. So nothing of a model's code has to be known, and any control flow is right.

What is right about it, whatever happens in between:

- Statistics are updated once for each call of the norm, before its module is called, asked for them,
  saved, copied, cast or loaded: when the result is fused or settled, or else when it is deleted. (Not before
  they are read from a buffer that was fetched earlier, or through ``buffers()``.)
- An input, Parameters or statistics that were changed in place meanwhile are noticed by their versions, and by
  the addresses of Parameters. (A change through ``.data`` or NumPy, which PyTorch does not notice either, is not.)
- The graph is that of the norm's call: its grad mode counts, and a PReLU under another one stays alone.
  Nobody who records or transforms what is computed later, by modes, hooks, tracing or torch.func, sees it.
- What cannot see ``__torch_function__`` (code in C++ that bypasses Python) meets a tensor of the meta device
  and the dispatcher: an error, never numbers.
"""

import sys
import warnings
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from torch_ext._norm_calls import (
    DROPOUTS,
    KINDS,
    KNOWN,
    Arguments,
    arguments,
    does_nothing,
    fused,
    is_undisturbed,
    may_defer,
    normed,
    slope_for,
    unobserved,
    update_statistics,
    updates_statistics,
)

_forward_grad_enabled = torch._C._is_fwd_grad_enabled
_grad_enabled = torch._C.is_grad_enabled

REMEDY = "leave this norm out by filter_fn of torch_ext.fuse_norm_prelu, or give it example_inputs"


class Call:
    """One call of a norm: all that its result depends on, and what has become of it."""

    __slots__ = (
        "arguments",
        "done",
        "fused",
        "grad",
        "input",
        "instance",
        "norm",
        "thread",
        "versions",
    )

    def __init__(
        self, norm: nn.Module, x: Tensor, arguments: Arguments, versions: tuple[int, ...]
    ) -> None:
        self.norm, self.thread = id(norm), get_ident()
        self.instance = KINDS[getattr(type(norm), KNOWN)].instance
        self.input = x
        self.arguments = arguments
        self.versions = versions
        self.grad = _grad_enabled()
        self.fused = False
        self.done = False  # with the statistics, or it cannot be computed any more

    def fuse(self, slope: Tensor) -> Tensor:
        """Norm and PReLU by one operator."""
        self.check()
        self.fused = True
        self._leave()
        return fused(self.instance, self.input, slope, self.arguments)

    def compute(self) -> Tensor:
        """What the norm would have returned."""
        if torch.compiler.is_dynamo_compiling():
            torch._dynamo.graph_break(
                msg="a compiled part of a model was given the result of a norm outside of it that "
                f"torch_ext.fuse_norm_prelu has changed: {REMEDY}, or compile the norm with it"
            )
        self.check()
        if self.grad and not _forward_grad_enabled() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                "the result of a norm that torch_ext.fuse_norm_prelu has changed was given to a "
                f"torch.autograd.Function, which would lose its gradient: {REMEDY}"
            )
        with unobserved(), torch.set_grad_enabled(self.grad):
            self._leave()
            given = self.arguments
            if self.fused and updates_statistics(given):  # that was once already
                given = given._replace(running_mean=None, running_var=None)
            result = normed(self.instance, self.input, given)
        self.done = True
        return result

    def has_changed(self) -> bool:
        """Whether what the result depends on was changed since the call."""
        return self.versions != _versions(self.input, self.arguments)

    def check(self) -> None:
        """Raises if it cannot be computed any more."""
        if self.has_changed():
            self.done = True
            self._leave()
            is_input = self.versions[0] != self.input._version
            raise RuntimeError(
                f"{'the input' if is_input else 'a Parameter or a statistic'} of a norm was changed in "
                "place before its result was used. By torch_ext.fuse_norm_prelu this norm is computed only "
                f"then, and the values that it needs are gone: {REMEDY}"
            )

    def _leave(self) -> None:
        """It is no longer the norm's pending call, if it has been."""
        if (reference := _pending.get(self.norm)) is not None:
            result = reference()
            if result is None or result._call is self:
                del _pending[self.norm]

    def __del__(self) -> None:
        if self.fused or self.done or sys.is_finalizing():
            return
        self._leave()
        if updates_statistics(self.arguments):
            try:
                self.check()
                with unobserved():
                    update_statistics(self.instance, self.input, self.arguments)
            except Exception as error:  # noqa: BLE001  (nobody could catch it)
                warnings.warn(f"running statistics were not updated: {error}", stacklevel=2)


# The result of the last call of each norm that has not read or updated its statistics yet, by the norm's identity.
_pending: "dict[int, weakref.ref[Deferred]]" = {}


def finish(norm: nn.Module, only_updates: bool = False) -> None:
    """Has the norm's last call done with its statistics, or brings them up to date."""
    reference = _pending.get(id(norm))
    result = None if reference is None else reference()
    if result is None:
        return
    call = result._call
    if not torch.compiler.is_dynamo_compiling() and call.thread != get_ident():
        return  # another thread, which shares the model, is about to use it
    # (What was changed cannot be settled. That is an error now only if statistics are missing.)
    if updates_statistics(call.arguments) or not (only_updates or call.has_changed()):
        settle(result)


def _versions(x: Tensor, arguments: Arguments) -> tuple[int, ...]:
    """Of what the result depends on; not of statistics that the call itself is to update."""
    mean, var, weight, bias, training, _, _ = arguments
    versions = [x._version]
    # (Parameters are given other memory by `weight.data = ...`, which does not show in their versions.)
    for parameter in (weight, bias):
        if parameter is not None:
            versions += (parameter._version, parameter.data_ptr())
    if not (training or mean is None or var is None):
        versions += (mean._version, var._version)
    return tuple(versions)


# ---- The tensor ----------------------------------------------------------------------------------

_SHAPE: dict[Any, Callable[..., Any]] = {
    Tensor.shape.__get__: lambda shape: shape,  # type: ignore[attr-defined]
    Tensor.ndim.__get__: len,  # type: ignore[attr-defined]
    Tensor.dim: len,
    Tensor.size: lambda shape, dim=None: shape if dim is None else shape[dim],
    Tensor.numel: lambda shape: shape.numel(),
}


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
    made: Deferred = _make(Deferred, call.input.shape, device=_META)
    made._call = call
    if call.arguments.running_mean is not None:
        _pending[call.norm] = weakref.ref(made)
    return made


def settle(result: Deferred) -> Tensor:
    """Makes it the ordinary tensor that the norm would have returned. Its call is then forgotten."""
    _swap(result, result._call.compute())
    del result._call
    result.__class__ = Tensor  # type: ignore[assignment]
    return result


_META = torch.device("meta")
_make: Any = Tensor._make_wrapper_subclass
_swap: Callable[[Tensor, Tensor], None] = torch._C._swap_tensor_impl


def _settled(value: Any) -> Any:
    """Arguments with every deferred result settled."""
    if isinstance(value, Tensor):
        return settle(value) if type(value) is Deferred else value
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
        settle(x)
    if (
        type(x) is Tensor
        and is_undisturbed(self)
        and may_defer()
        and "_is_fsdp_managed_module" not in self.__dict__  # Parameters go after the forward
    ):
        kind = KINDS[getattr(type(self), KNOWN)]
        found = arguments(self, kind, x)
        if found is not None:
            try:
                versions = _versions(x, found)
            except RuntimeError:  # tensors of inference mode do not tell that they were changed
                return normed(kind.instance, x, found)
            return deferred(Call(self, x, found, versions))
    return nn.Module.__call__(self, x)


def call_prelu(self: Any, *args: Any, **kwargs: Any) -> Any:
    """``__call__`` of a PReLU: one operator with the norm whose deferred result it gets."""
    if torch.compiler.is_dynamo_compiling():
        return nn.Module.__call__(self, *args, **kwargs)
    if len(args) == 1 and type(args[0]) is Deferred and not kwargs:
        call: Call = args[0]._call
        if (
            not call.fused
            and call.grad is _grad_enabled()
            and is_undisturbed(self)
            and may_defer()
            and (slope := slope_for(self, call.input)) is not None
        ):
            return call.fuse(slope)
    # Hooks and wrappers get an ordinary tensor: what autograd does with them bypasses Python.
    return nn.Module.__call__(self, *_settled(args), **_settled(kwargs))

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

import weakref
from collections import OrderedDict
from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from torch_ext._deferred_call import REMEDY, Call
from torch_ext._norm_calls import (
    DROPOUTS,
    KINDS,
    KNOWN,
    arguments,
    does_nothing,
    is_undisturbed,
    may_defer,
    normed,
    slope_for,
    updates_statistics,
)

_grad_enabled = torch._C.is_grad_enabled

# The result of the last call of each norm that uses running statistics, by the norm's identity.
_last: "dict[int, weakref.ref[Deferred]]" = {}


def finish(norm: nn.Module, calls_it: bool = False) -> None:
    """Brings the norm's statistics up to date. `calls_it`: and its last call no longer reads them, because
    the next one may change them."""
    reference = _last.get(id(norm))
    result = None if reference is None else reference()
    call = None if result is None else result.__dict__.get("_call")
    if result is None or call is None or call.norm() is not norm:
        return
    if not call.counted:
        if torch.compiler.is_dynamo_compiling():
            _break_the_graph()
        with call.lock:
            if not call.counted and type(result) is Deferred:
                # (What was changed cannot be settled. That is an error only if it is used.)
                call.update_statistics() if call.has_changed() else settle(result)
    elif calls_it and not updates_statistics(call.arguments) and call.thread == get_ident():
        if call.fused:
            call.keep_statistics()
        elif not call.has_changed():
            settle(result)


# ---- The tensor ----------------------------------------------------------------------------------

_SHAPE: dict[Any, Callable[..., Any]] = {
    Tensor.shape.__get__: lambda shape: shape,  # type: ignore[attr-defined]
    Tensor.ndim.__get__: len,  # type: ignore[attr-defined]
    Tensor.dim: len,
    Tensor.size: lambda shape, dim=None: shape if dim is None else shape[dim],
    Tensor.numel: lambda shape: shape.numel(),
}


# What asks for the gradient of a tensor.
_OF_GRADIENTS = (
    Tensor.register_hook,
    Tensor.retain_grad,
    torch.autograd.grad,
    torch.autograd.backward,
    torch.autograd.graph.get_gradient_edge,
)


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
        if func in _OF_GRADIENTS:
            tree_map_only(Deferred, _check_gradient, (args, kwargs))
        return func(*_settled(args), **_settled(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"{func} was called from outside of Python with the result of a norm that "
            f"torch_ext.fuse_norm_prelu has changed: {REMEDY}"
        )


def deferred(norm: nn.Module, call: Call) -> Deferred:
    """The tensor that stands for the result of a norm's call.

    It requires a gradient where that does, which a torch.autograd.Function that has handed it on without looking could
    compute: the gradient would be lost, so there is an error.
    """
    x = call.input
    made: Deferred = _make(
        Deferred, x.shape, dtype=x.dtype, device=_META, requires_grad=call.has_graph
    )
    made._call = call
    if call.has_graph:
        with _AsTensor():
            made._backward_hooks = _LOST
    if call.arguments.running_mean is not None:
        _last[id(norm)] = weakref.ref(made)
    return made


def settle(result: Deferred) -> Tensor:
    """Makes it the ordinary tensor that the norm would have returned. Its call is then forgotten."""
    if torch.compiler.is_dynamo_compiling():
        _break_the_graph()
    call = result.__dict__.get("_call")
    if call is not None:
        with call.lock:
            if type(result) is Deferred:  # and no other thread has done it
                _swap(result, call.compute())
                result.__class__ = Tensor  # type: ignore[assignment]
                result._backward_hooks = (
                    None  # (A Function that has the unsettled tensor keeps its own.)
                )
                del result._call
    return result


def _break_the_graph() -> None:
    torch._dynamo.graph_break(
        msg="a compiled part of a model was given the result of a norm outside of it that "
        f"torch_ext.fuse_norm_prelu has changed: {REMEDY}, or compile the norm with it"
    )


def _check_gradient(result: Deferred) -> None:
    if result._call.fused and result._call.has_graph:
        raise RuntimeError(
            f"the gradient of the result of {result._call} was asked for after a PReLU had used it. Both run as one "
            f"operator, which has no such gradient: {REMEDY}"
        )


def _gradient_is_lost(_grad: Tensor) -> None:
    raise RuntimeError(
        "a torch.autograd.Function was given the result of a norm that torch_ext.fuse_norm_prelu has changed, "
        f"and its gradient would be lost: {REMEDY}"
    )


_META = torch.device("meta")
_LOST: Any = OrderedDict({0: _gradient_is_lost})  # hooks of tensors that are not settled
_AsTensor: Any = torch._C.DisableTorchFunctionSubclass
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
    last = _last.get(id(self))
    if last is not None and last() is not None:
        finish(self, calls_it=True)
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
                call = Call(self, kind.instance, x, found)
            except RuntimeError:  # tensors of inference mode do not tell that they were changed
                return normed(kind.instance, x, found)
            return deferred(self, call)
    return nn.Module.__call__(self, x)


def call_prelu(self: Any, *args: Any, **kwargs: Any) -> Any:
    """``__call__`` of a PReLU: one operator with the norm whose deferred result it gets."""
    if torch.compiler.is_dynamo_compiling():
        return nn.Module.__call__(self, *args, **kwargs)
    if len(args) == 1 and type(args[0]) is Deferred and not kwargs:
        call = args[0].__dict__.get("_call")
        if call is not None and is_undisturbed(self) and may_defer():
            with call.lock:
                if (
                    type(args[0]) is Deferred
                    and not call.fused
                    and call.grad is _grad_enabled()
                    and (slope := slope_for(self, call.input)) is not None
                ):
                    return call.fuse(slope)
    # Hooks and wrappers get an ordinary tensor: what autograd does with them bypasses Python.
    return nn.Module.__call__(self, *_settled(args), **_settled(kwargs))

"""Runs aten::prelu on our kernels for a while, without changing a model. The switch is in C++."""

import inspect
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, TypeVar

import torch

from torch_ext import _C

__all__ = ["override_aten"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class override_aten(ContextDecorator):
    """Runs ``aten::prelu`` on our kernels while it is open, with no change to any model.

    Within it, ``F.prelu``, ``nn.PReLU``, ``torch.prelu`` and ScriptModules compute what they computed
    before, forward and backward, on the fused kernels of :func:`torch_ext.prelu`. As a context or,
    on a function, as a decorator::

        with torch_ext.override_aten():
            loss = criterion(scripted_model(images), labels)
            loss.backward()

    It holds for the whole process, every thread included, while at least one such context is open
    anywhere; contexts may nest, overlap, and be entered and left in any thread. The first context
    of a process replaces PyTorch's kernel for good. Enter it while no other thread calls PReLU,
    because PyTorch does not protect readers of its dispatch table from changes. A backward runs on
    the kernels that its forward ran on, even if the context was left in between.

    The rules for arguments are PyTorch's: input and weight of one dtype, errors in PyTorch's words.
    (Under autocast, ``aten::prelu`` gets both in 16 bits; ``replace_prelu`` keeps the slope in
    float32.) PyTorch's own code still serves other devices and layouts, ``vmap``, and everything
    that records a graph: ``torch.compile`` and ``torch.export`` give the same code inside as
    outside. Use :func:`torch_ext.replace_prelu` for models to be compiled. Entering the context
    inside a compiled function breaks the graph, and is an error with ``fullgraph=True``.

    Raises:
        RuntimeError: on entering, if another library has replaced ``aten::prelu``, before the first
            override or since; on leaving, if this object is left more often than it was entered.
        TypeError: as a decorator of a generator or a coroutine function, whose body would run
            outside.
    """

    def __init__(self) -> None:
        self._entered: list[None] = []  # append and pop are atomic: the object may be shared

    def __enter__(self) -> None:
        if torch.compiler.is_dynamo_compiling():
            torch._dynamo.graph_break(
                msg="torch_ext.override_aten is entered inside a compiled function: "
                "enter it around the call, or compile a model changed by torch_ext.replace_prelu"
            )
        _C.enter_override_aten()
        self._entered.append(None)

    def __exit__(self, *exception: object) -> None:
        try:
            self._entered.pop()
        except IndexError:
            raise RuntimeError("torch_ext.override_aten was left more often than entered") from None
        _C.leave_override_aten()

    def __call__(self, func: _Function) -> _Function:
        if (
            inspect.isgeneratorfunction(func)
            or inspect.iscoroutinefunction(func)
            or inspect.isasyncgenfunction(func)
        ):
            raise TypeError(
                "torch_ext.override_aten cannot decorate a generator or a coroutine function; "
                "use it as a context inside"
            )
        return super().__call__(func)

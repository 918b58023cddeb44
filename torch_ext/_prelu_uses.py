"""Finds where a model calls prelu itself instead of a module, by reading its code.

This reads the forward of each class, its other methods and the functions that they call by a global
name, including code that torch.fx and torch.export generate. Names are resolved, so ``F.prelu`` and
``from torch import prelu`` are found, and ``self.prelu`` is not mistaken for one. ``x.prelu(w)`` is
not found, because the type of ``x`` is known only when it runs.
"""

import dis
import types
from collections.abc import Collection, Iterator
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn.modules.activation import PReLU as PyTorchPReLU

from torch_ext.prelu import prelu

_OF_ATEN, _OF_OURS = torch.ops.aten.prelu, torch.ops.torch_ext.prelu
# (torch.nn.functional.prelu is torch.prelu.)
PYTORCHS = (torch.prelu, _OF_ATEN, _OF_ATEN.default)
OURS = (prelu, _OF_OURS, _OF_OURS.default)


def functional_uses(model: nn.Module, operators: Collection[Any]) -> list[tuple[str, str]]:
    """The name of each module whose code calls one of the operators, and how the code names it."""
    uses: dict[tuple[str, str], None] = {}
    for path, module in model.named_modules():
        if not isinstance(module, (PyTorchPReLU, torch.jit.ScriptModule)):
            for name in _names_in_class(type(module), operators):
                uses[path, f"{name} in {path or 'the model'}"] = None
    return list(uses)


def slopes_in_graph(module: fx.GraphModule) -> Iterator[nn.Parameter]:
    """The Parameters with which a graph calls prelu, PyTorch's or ours."""
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in (*PYTORCHS, *OURS):
            weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
            if isinstance(weight, fx.Node) and weight.op == "get_attr":
                path, _, name = cast(str, weight.target).rpartition(".")
                slopes = getattr(module.get_submodule(path), name)
                if isinstance(slopes, nn.Parameter):
                    yield slopes


def _names_in_class(cls: type, operators: Collection[Any]) -> list[str]:
    functions = [cls.forward] if hasattr(cls, "forward") else []
    for base in cls.__mro__:
        if not _is_torchs(base):
            functions += vars(base).values()
    seen: set[Any] = set()
    return [
        name
        for function in functions
        if isinstance(function, types.FunctionType)
        for name in _names_in_function(function, operators, seen)
    ]


def _names_in_function(
    function: types.FunctionType, operators: Collection[Any], seen: set[Any]
) -> Iterator[str]:
    function = cast(types.FunctionType, getattr(function, "__wrapped__", function))
    if not isinstance(function, types.FunctionType) or function in seen:
        return
    seen.add(function)
    for name, value in _global_names(function.__code__, function.__globals__):
        if any(value is operator for operator in operators):
            yield name
        elif isinstance(value, types.FunctionType) and not _is_torchs(value):
            yield from _names_in_function(value, operators, seen)


def _is_torchs(definition: Any) -> bool:
    return f"{definition.__module__}.".startswith(("torch.", "torch_ext.", "builtins."))


def _global_names(code: types.CodeType, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What code reads by a global name, or as an attribute of a module that has such a name."""
    name, value = "", None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and value is not None:
            name, value = f"{name}.{instruction.argval}", _attribute(value, instruction.argval)
        elif instruction.opname not in ("CACHE", "EXTENDED_ARG"):
            yield name, value  # as far as it was followed
            value = None
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                name, value = instruction.argval, names.get(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant, names)


def _attribute(value: Any, name: str) -> Any:
    """An existing attribute of a module or an operator; must not trigger a lazy import."""
    if value is torch.ops or isinstance(
        value, (torch._ops._OpNamespace, torch._ops.OpOverloadPacket)
    ):
        return getattr(value, name, None)
    return vars(value).get(name) if isinstance(value, types.ModuleType) else None

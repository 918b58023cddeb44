"""What is shared by the functions that search the modules of a model."""

import itertools
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn

from torch_ext.swap_report import SwapReport

COMPILED = "a ScriptModule, whose compiled code cannot be changed"
REFUSED = "refused by filter_fn"
ON_THE_INSTANCE = "its forward was replaced on the instance"


def check_model(model: object) -> None:
    """Raises TypeError unless it is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_filter_fn(filter_fn: object) -> None:
    """Raises TypeError unless it is None or can be called."""
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn must be callable or None, got {type(filter_fn).__name__}")


def compiled_code(module: torch.jit.ScriptModule) -> str:
    """The code of its forward, as TorchScript prints it; "" if it has none."""
    try:
        return str(module.graph)
    except RuntimeError:
        return ""


def own_forward(module: nn.Module, known: Collection[type]) -> type | None:
    """The class by which a module has another ``forward`` than the known classes, if any."""
    for cls in type(module).__mro__:
        if cls in known:
            return None
        if "forward" in vars(cls):
            return cls
    return None


def has_forward_on_the_instance(module: nn.Module) -> bool:
    """Whether calls run anything but the ``forward`` of the module's class.

    The forward of the class itself, bound to the module, does not count: tools that wrap it for a
    while (accelerate) leave it there.
    """
    forward = vars(module).get("forward")
    bound_here = getattr(forward, "__self__", None) is module
    of_the_class = getattr(forward, "__func__", None) is type(module).forward
    return forward is not None and not (bound_here and of_the_class)


def first_line(error: Exception) -> str:
    """The first line of its message; those of PyTorch may continue with lists of overloads."""
    return str(error).partition("\n")[0]


# The dicts that every module has, except those of its contents.
_HOOKS = [
    name
    for name, value in vars(nn.Module()).items()
    if isinstance(value, dict) and name not in ("_parameters", "_buffers", "_modules")
]


def without_hooks(modules: Iterable[nn.Module]) -> dict[int, Any]:
    """A memo for copy.deepcopy by which the copies of these modules have no hooks."""
    hooks = (vars(module).get(name) for module in modules for name in _HOOKS)
    return {id(kept): type(kept)() for kept in hooks if kept is not None}


def _fsdp(name: str) -> tuple[type, ...]:
    """A class of torch.distributed.fsdp; empty if the program has not imported that large
    module."""
    cls = getattr(sys.modules.get("torch.distributed.fsdp"), name, None)
    return () if cls is None else (cls,)


def is_sharded(cls: type) -> bool:
    """Whether fully_shard made this class: from one of its own and, as last base, the module's."""
    return len(cls.__bases__) == 2 and issubclass(cls.__bases__[0], _fsdp("FSDPModule"))


def data_parallel_parts(model: nn.Module) -> dict[nn.Module, str]:
    """Modules whose Parameters are synchronised by a wrapper around them, and the wrapper's name."""
    fsdp = (*_fsdp("FullyShardedDataParallel"), *_fsdp("FSDPModule"))
    parts: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            parts |= dict.fromkeys(module.modules(), "DistributedDataParallel")
        elif isinstance(module, fsdp):
            parts |= dict.fromkeys(module.modules(), "FSDP")
    return parts


def tensors_around(
    model: nn.Module, name: str, without: AbstractSet[Tensor] = frozenset()
) -> Iterator[Tensor]:
    """Floating-point tensors of the modules around the named one, those of the innermost first."""
    while name:
        name = name.rpartition(".")[0]
        around = model.get_submodule(name)
        for tensor in itertools.chain(around.parameters(), around.buffers()):
            if tensor.is_floating_point() and tensor not in without:
                yield tensor


def changeable_modules(
    model: nn.Module, operator: str, report: SwapReport
) -> Iterator[tuple[str, nn.Module]]:
    """Each module once, except ScriptModules; those that run `operator` are reported."""
    compiled = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield name, module
        elif f"{operator}(" in compiled_code(module):
            compiled.append(name or "(root)")
            report._skip(name, module, COMPILED)
    if compiled:
        warnings.warn(
            f"ScriptModules keep running {operator}: {', '.join(compiled)}. "
            "Swap first, then script or trace.",
            stacklevel=3,
        )

"""What the functions share that look through a model's modules."""

import itertools
from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor, nn

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
    """Its forward in TorchScript's text; "" if it has none."""
    try:
        return str(module.graph)
    except RuntimeError:
        return ""


def own_forward(module: nn.Module, known: Collection[type]) -> type | None:
    """The class that gives a module another ``forward`` than the known classes have, if any."""
    for cls in type(module).__mro__:
        if cls in known:
            return None
        if "forward" in vars(cls):
            return cls
    return None


def tensors_around(
    model: nn.Module, name: str, without: AbstractSet[Tensor] = frozenset()
) -> Iterator[Tensor]:
    """Floating-point tensors of the modules around the named one, the innermost's first."""
    while name:
        name = name.rpartition(".")[0]
        around = model.get_submodule(name)
        for tensor in itertools.chain(around.parameters(), around.buffers()):
            if tensor.is_floating_point() and tensor not in without:
                yield tensor

"""What the ReLUs and Leaky ReLUs of a model are called with: channels, dtypes, devices."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from torch_ext._example import ExampleInputs, run_once
from torch_ext._modules import tensors_around

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Use(NamedTuple):
    """What one call of a module says about the slopes that it would need."""

    channels: int
    dtype: torch.dtype
    device: torch.device


def observed_uses(
    model: nn.Module, modules: Mapping[str, nn.Module], example_inputs: ExampleInputs
) -> dict[nn.Module, set[Use]]:
    """Runs the model once and records the calls of each module; a module that was not reached has
    none."""
    uses: dict[nn.Module, set[Use]] = {module: set() for module in modules.values()}

    def noting(name: str, module: nn.Module) -> Callable[..., None]:
        def note(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            [input] = (*args, *kwargs.values())
            channels = input.size(1) if input.dim() > 1 else 1
            # nn.DataParallel calls copies on other devices, which get the slopes from this one.
            home = input if called is module else use_by_surroundings(model, name)
            uses[module].add(Use(channels, input.dtype, home.device))

        return note

    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            hook = noting(name, module)
            hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        run_once(model, example_inputs)
    return uses


def use_by_surroundings(model: nn.Module, name: str) -> Use:
    """Without an example: one slope, with device and dtype of the nearest floating-point tensor."""
    for tensor in tensors_around(model, name):
        if tensor.dtype in FLOATS:
            return Use(1, tensor.dtype, tensor.device)
    default = torch.get_default_dtype()
    return Use(
        1, default if default == torch.float64 else torch.float32, torch.get_default_device()
    )

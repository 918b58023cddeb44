"""What the ReLUs and Leaky ReLUs of a model are called with: channels, dtypes, devices."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_ext._modules import tensors_around

ExampleInputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]

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


def run_once(model: nn.Module, example_inputs: ExampleInputs) -> None:
    """Calls the model in eval mode and without gradients; all of it is as before afterwards."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        kwargs = {name: _cloned(value) for name, value in example_inputs.items()}
    else:
        values = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        args = tuple(map(_cloned, values))

    with contextlib.ExitStack() as stack:
        stack.enter_context(_unchanged(model))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled; importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        model(*args, **kwargs)


def _cloned(value: Any) -> Any:
    """Cloned, because a first module with inplace=True would overwrite the caller's tensor."""
    return value.clone() if isinstance(value, Tensor) else value


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Eval mode, with training flags and buffers as they were at the end, even after an error."""
    modules = list(model.modules())
    flags = [module.training for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    # (Buffers of a lazy module have no values yet, and those of an inference model cannot change.)
    written = [t for t in model.buffers() if not (is_lazy(t) or t.is_inference())]
    values = [(tensor, tensor._version, tensor.clone()) for tensor in written]
    for module in modules:
        module.training = False  # not eval(), which a model may have overridden
    try:
        yield
    finally:
        for module, flag, named in zip(modules, flags, buffers, strict=True):
            module.training = flag
            if not isinstance(module, torch.jit.ScriptModule):  # whose buffers have only values
                module._buffers.clear()
                module._buffers.update(named)
        with torch.no_grad():
            for tensor, version, value in values:
                if tensor._version != version:
                    tensor.copy_(value)


def use_by_surroundings(model: nn.Module, name: str) -> Use:
    """Without an example: one slope, with device and dtype of the nearest floating-point tensor."""
    for tensor in tensors_around(model, name):
        if tensor.dtype in FLOATS:
            return Use(1, tensor.dtype, tensor.device)
    return Use(1, torch.float32, torch.get_default_device())

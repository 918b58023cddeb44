"""Example inputs of a model, and a run of it that changes nothing."""

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

ExampleInputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]


def check_example_inputs(example_inputs: object) -> None:
    """Raises TypeError unless they are None or of one of these types."""
    if example_inputs is not None and not isinstance(example_inputs, (Tensor, tuple, Mapping)):
        raise TypeError(
            "example_inputs must be a tensor, a tuple or a dict, "
            f"got {type(example_inputs).__name__}"
        )


def run_once(model: nn.Module, example_inputs: ExampleInputs) -> None:
    """Calls the model in eval mode and without gradients. Afterwards all of it is as before, and so are the
    inputs, which a first module with inplace=True would overwrite, and the random number generators."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        kwargs = tree_map_only(Tensor, torch.clone, dict(example_inputs))
    else:
        values = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        args = tree_map_only(Tensor, torch.clone, values)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_unchanged(model))
        stack.enter_context(random_state_kept())
        if "torch._dynamo" in sys.modules:  # else nothing is compiled; importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        model(*args, **kwargs)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """The random number generators of Python and PyTorch are as before afterwards."""
    state = random.getstate()
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(state)


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
                # (F.batch_norm does not tell by the version that it has changed running statistics.)
                if not tensor.is_meta and (
                    tensor._version != version or not torch.equal(tensor, value)
                ):
                    tensor.copy_(value)

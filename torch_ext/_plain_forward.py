"""Whether a PReLU may be exchanged: its ``forward`` computes ``prelu(input, self.weight)`` and nothing else.

torch.fx traces it in training and in evaluation mode. Both graphs must consist of that one call,
and tracing must have changed no attribute of the module or its class, drawn no random numbers and
called nothing else of torch. A counter, a buffer, `no_grad` and autocast are detected that way.

Not detected are effects outside of the module (print, files, global variables), which tracing
causes twice; and decisions by anything but the training flag (another attribute, the environment,
``isinstance`` of the input), of which tracing sees only the present outcome.
"""

import collections
import contextlib
import copy
import inspect
import random
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.activation import PReLU as PyTorchPReLU
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from torch_ext._example import random_state_kept
from torch_ext._modules import (
    ON_THE_INSTANCE,
    first_line,
    has_forward_on_the_instance,
    own_forward,
    without_hooks,
)

# (torch.nn.functional.prelu is the first.)
_PRELU = (torch.prelu, torch.ops.aten.prelu, torch.ops.aten.prelu.default)

_DEVICES = ("cpu", "cuda")


def prelu_obstacle(module: PyTorchPReLU, trusted: tuple[type[nn.PReLU], ...] = ()) -> str | None:
    """Why another class would change what this module computes, or change nothing at all."""
    if has_forward_on_the_instance(module):
        return ON_THE_INSTANCE
    _, *parameters = inspect.signature(type(module).forward).parameters.values()
    if parameters and parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        return f"{type(module).__name__}.forward takes its input by keyword only"
    cls = own_forward(module, (PyTorchPReLU, *trusted))
    if cls is not None and (finding := why_not_plain(module)):
        what = f"{cls.__name__}.forward is not just prelu(input, self.weight)"
        return f"{what}: it {finding}; also= swaps it anyway"
    return None


def why_not_plain(module: PyTorchPReLU) -> str | None:
    """What else the forward of the module's class does; None if it does nothing else.

    Works on copies; the module, its hooks and the random number generators stay as they are.
    """
    for training, mode in ((True, "training"), (False, "evaluation")):
        try:
            with random_state_kept():
                finding = _finding(_traceable_copy(module, training))
        except Exception as error:  # noqa: BLE001  (a forward may raise anything on a proxy)
            what = f"{type(error).__name__}: {first_line(error)}"
            finding = f"cannot be traced by torch.fx ({what})"
        if finding:
            return f"{finding} in {mode} mode"
    return None


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True
    undisturbed = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        self.undisturbed &= not torch.is_inference_mode_enabled()
        self.undisturbed &= all(map(torch.is_autocast_enabled, _DEVICES))
        return super().create_node(*args, **kwargs)


class _NothingElse(TorchFunctionMode):
    """Records and refuses what a forward calls besides prelu, also on tensors that are no
    proxies."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _PRELU:
            return func(*args, **(kwargs or {}))
        self.called.append(getattr(func, "__name__", str(func)))
        raise RuntimeError(f"{self.called[-1]} in a forward that is traced")


def _finding(module: PyTorchPReLU) -> str | None:
    tracer, mode = _Tracer(), _NothingElse()
    kept: list[Any] = []
    before, numbers = _attributes(module, kept), random.getstate()
    with torch.inference_mode(False), _autocast(), mode:
        try:
            graph = tracer.trace(module)
        except Exception:
            if not mode.called:
                raise
    after = _attributes(module, kept)
    if mode.called:  # even if the forward went on after the refusal
        return f"calls {mode.called[0]}"
    if changed := [name for name in before | after if before.get(name) != after.get(name)]:
        return f"changes {', '.join(changed)}"
    if random.getstate() != numbers:
        return "draws random numbers"
    if not tracer.undisturbed:
        return "changes autocast or inference mode"
    if not _is_plain(graph):
        calls = [node.name for node in graph.nodes if node.op.startswith("call")]
        return f"computes {', '.join(calls) or 'something else'}"
    return None


def _is_plain(graph: fx.Graph) -> bool:
    """Exactly: the input, the weight, one prelu of both, the output."""
    if len(graph.nodes) != 4:
        return False
    input, weight, call, output = graph.nodes
    arguments = {**dict(zip(("input", "weight"), call.args)), **call.kwargs}
    return (
        (input.op, input.args) == ("placeholder", ())
        and not str(input.target).startswith("*")
        and (weight.op, weight.target) == ("get_attr", "weight")
        and (
            (call.op == "call_function" and call.target in _PRELU)
            or (call.op, call.target) == ("call_method", "prelu")
        )
        and len(call.args) + len(call.kwargs) == 2
        and arguments == {"input": input, "weight": weight}
        and output.args == (call,)
    )


def _traceable_copy(module: PyTorchPReLU, training: bool) -> PyTorchPReLU:
    """Without hooks, and with a Parameter as weight: no parametrization, no pruned tensor."""
    tensors = [*module.parameters(), *module.buffers(), *vars(module).values()]
    shared: dict[int, Any] = {id(value): value for value in tensors if isinstance(value, Tensor)}
    copied = copy.deepcopy(module, shared | without_hooks([module]))
    object.__setattr__(copied, "__class__", parametrize.type_before_parametrizations(module))
    attributes = vars(copied)
    attributes["training"] = training
    attributes.pop("weight", None)
    attributes["_parameters"]["weight"] = nn.Parameter(torch.empty(1, device="meta"))
    return copied


@contextlib.contextmanager
def _autocast() -> Iterator[None]:
    """Switched on for every device, so that switching it off is detected."""
    before = [torch.is_autocast_enabled(device) for device in _DEVICES]
    for device in _DEVICES:
        torch.set_autocast_enabled(device, True)
    try:
        yield
    finally:
        for device, enabled in zip(_DEVICES, before, strict=True):
            torch.set_autocast_enabled(device, enabled)


def _attributes(module: PyTorchPReLU, kept: list[Any]) -> dict[str, Any]:
    """Snapshots of a module's attributes and of those of its own classes."""
    found = {f"self.{name}": _snapshot(value, kept, set()) for name, value in vars(module).items()}
    for cls in type(module).__mro__:
        if cls is PyTorchPReLU:
            break
        for name, value in vars(cls).items():
            found[f"{cls.__qualname__}.{name}"] = _snapshot(value, kept, set())
    return found


def _snapshot(value: Any, kept: list[Any], seen: set[int]) -> Any:
    """Equal to a later snapshot if neither the object nor any of its parts was replaced meanwhile.

    Compares identities; `kept` keeps objects alive, because the identity of a freed one could be
    reused.
    """
    kept.append(value)
    if id(value) in seen:
        return id(value)
    seen.add(id(value))
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        parts = list(value)
    elif not isinstance(value, (Tensor, type, types.FunctionType, types.ModuleType)):
        parts = list(getattr(value, "__dict__", {}).values())
    return id(value), [_snapshot(part, kept, seen) for part in parts]

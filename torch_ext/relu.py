"""Makes the fixed rectifiers of a finished model learnable: ReLU and Leaky ReLU become PReLU.

The class of a module changes, and it gets a slope. It stays the same object, so hooks, names and
shared uses are not affected, and the root of the model may be converted as well.
"""

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.activation import PReLU as PyTorchPReLU
from torch.nn.utils import parametrize

from torch_ext._example import ExampleInputs, check_example_inputs, random_state_kept
from torch_ext._modules import (
    COMPILED,
    ON_THE_INSTANCE,
    REFUSED,
    check_filter_fn,
    check_model,
    compiled_code,
    data_parallel_parts,
    first_line,
    has_forward_on_the_instance,
    own_forward,
    without_hooks,
)
from torch_ext._prelu_uses import slopes_in_graph
from torch_ext._relu_uses import FLOATS, Use, observed_uses, use_by_surroundings
from torch_ext.prelu import PReLU
from torch_ext.swap_report import SwapReport

__all__ = ["parametrize_relu", "slope_parameters"]

# The names of the functional forms in a graph of torch.fx. (torch.nn.functional.relu_ is
# torch.relu_.)
_FUNCTIONS: dict[Any, str] = {
    torch.relu: "torch.relu",
    torch.relu_: "torch.relu_",
    F.relu: "F.relu",
    F.leaky_relu: "F.leaky_relu",
    F.leaky_relu_: "F.leaky_relu_",
}
_METHODS: dict[Any, str] = {"relu": "Tensor.relu", "relu_": "Tensor.relu_"}

# A built-in or a scripted function, as TorchScript prints it.
_COMPILED_RELU = re.compile(r'aten::(leaky_)?relu_?\(|Constant\[name="(leaky_)?relu_?"')


def parametrize_relu(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    per_channel: bool = True,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> SwapReport:
    """Turns every ``nn.ReLU`` and ``nn.LeakyReLU`` of a model into a learnable PReLU, in place.

    Slopes start at 0 for ReLU and at ``negative_slope`` for Leaky ReLU, so at first the model
    computes the same function for finite inputs: Leaky ReLU to the bit, ReLU except for the sign of
    zero, because a PReLU with slope 0 turns negative numbers into -0. The modules stay the same
    objects, with their names and hooks, and become ``torch_ext.PReLU``. The new Parameters,
    ``<name>.weight``, have to be given to an optimizer: :func:`slope_parameters` lists them.

    Slopes have shape (C) or (1) and are float32, also for 16-bit inputs, which the operator
    supports, and float64 for float64 inputs. They are on the device of the input that the module
    was called with, or else on that of the nearest tensor in the modules around it.

    ``example_inputs`` are run through the model once, in eval mode and without gradients, to see
    what each module is called with; training flags and buffers are restored afterwards. The model's
    own hooks run as in any call. C is the size of dimension 1, as for ``nn.PReLU``: where that is
    not a channel (transformers' (N, L, C)), use ``per_channel=False``.

    The report's ``skipped`` names, with the reason:

    - what ``filter_fn`` refuses, ScriptModules, subclasses with a ``forward`` of their own, and
      activations of ``nn.TransformerEncoderLayer``, whose fast path would still compute ReLU;
    - what DistributedDataParallel or FSDP wraps already: slopes that are added later are not
      synchronised between the processes, so convert before wrapping;
    - modules that ``example_inputs`` do not reach, and modules that need more than one slope
      vector;
    - functional uses (``F.relu(x)``, ``x.relu()``, ...), which are no modules. torch.fx finds them;
      if it cannot trace the model, the report says so. It does not trace into the modules of
      torch.nn (recurrent and transformer layers).

    Its ``notes`` name the modules that had ``inplace=True``, which PReLU does not support. A model
    that reads the overwritten input of such a module afterwards gets a different result.

    Args:
        model: searched with all its submodules, itself included.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of ``model``.
        per_channel: one slope per channel, which needs ``example_inputs``, or one per module.
        filter_fn: ``filter_fn(module, name)`` is asked about each ``nn.ReLU`` and ``nn.LeakyReLU``;
            a false answer leaves that module alone. All are asked before the first is converted.

    Returns:
        What was converted (``swapped``) and what was not.

    Raises:
        TypeError: if an argument is not of its type.
        ValueError: if ``per_channel`` is true and there are no ``example_inputs``.

    If one of these, or any error of the model itself, is raised, nothing has been converted.

    Example::

        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> print(torch_ext.parametrize_relu(model, torch.randn(1, 3, 16, 16)))
        1 swapped, 0 skipped
          module  result   class
          1       swapped  nn.ReLU -> torch_ext.PReLU
        >>> model[1]
        PReLU(num_parameters=8)
    """
    _check_arguments(model, example_inputs, per_channel, filter_fn)
    report = SwapReport()
    relus = _convertible(model, filter_fn, report)
    if relus and example_inputs is not None:
        uses = observed_uses(model, relus, example_inputs)
    else:
        uses = {module: {use_by_surroundings(model, name)} for name, module in relus.items()}

    slopes: dict[str, nn.Parameter] = {}
    for name, module in relus.items():
        if reason := _conflict(uses[module], per_channel):
            report._skip(name, module, reason)
        else:
            slopes[name] = _new_slopes(module, uses[module], per_channel)
            if getattr(module, "inplace", False):
                report.notes.append((name, "inplace=True was dropped, a PReLU has none"))
    report.skipped += _functional_uses(model)
    for name, weight in slopes.items():
        report._swap(name, relus[name], PReLU)
        _give_slopes(relus[name], weight)
    return report


def slope_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The slopes of every PReLU in a model, ``nn.PReLU`` and ``torch_ext.PReLU``.

    They belong in an optimizer group without weight decay, which would pull them to 0.

    Args:
        model: searched with all its submodules, itself included.

    Returns:
        Each Parameter once, in the order of ``model.modules()``, including frozen ones and those
        that a graph of torch.fx or torch.export passes to PReLU. Where ``weight`` is computed from
        other Parameters (``torch.nn.utils.parametrize``, ``prune``), these are returned instead.

    Raises:
        TypeError: if ``model`` is not a ``torch.nn.Module``.

    Example::

        >>> slopes = torch_ext.slope_parameters(model)
        >>> listed = set(slopes)
        >>> others = [p for p in model.parameters() if p not in listed]
        >>> optimizer = torch.optim.AdamW(
        ...     [{"params": others}, {"params": slopes, "weight_decay": 0.0}], weight_decay=0.05
        ... )
    """
    check_model(model)
    slopes: dict[nn.Parameter, None] = {}
    for module in model.modules():
        if isinstance(module, PyTorchPReLU):
            slopes.update(dict.fromkeys(module.parameters(recurse=False)))
            if parametrize.is_parametrized(module, "weight"):
                originals = cast(nn.ModuleDict, module.parametrizations)["weight"]
                slopes.update(dict.fromkeys(originals.parameters(recurse=False)))
        elif isinstance(module, fx.GraphModule):
            slopes.update(dict.fromkeys(slopes_in_graph(module)))
    return list(slopes)


# ---- Arguments ---------------------------------------------------------------------------------


def _check_arguments(
    model: object, example_inputs: object, per_channel: bool, filter_fn: object
) -> None:
    check_model(model)
    if example_inputs is None and per_channel:
        raise ValueError(
            "per_channel=True needs example_inputs, to see how many channels each module has; "
            "per_channel=False gives one slope to each without them"
        )
    check_example_inputs(example_inputs)
    check_filter_fn(filter_fn)


# ---- Which modules -----------------------------------------------------------------------------


def _convertible(
    model: nn.Module, filter_fn: Callable[[nn.Module, str], bool] | None, report: SwapReport
) -> dict[str, nn.Module]:
    """The modules that may be converted, each by its first name; the others are reported."""
    fast = {
        layer.activation
        for layer in model.modules()
        if isinstance(layer, nn.TransformerEncoderLayer)
    }
    parts = data_parallel_parts(model)
    relus: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            if _COMPILED_RELU.search(compiled_code(module)):
                report._skip(name, module, COMPILED)
        elif not isinstance(module, (nn.ReLU, nn.LeakyReLU)):
            continue
        elif filter_fn is not None and not filter_fn(module, name):
            report._skip(name, module, REFUSED)
        elif module in fast:
            reason = "the fast path of TransformerEncoderLayer would go on computing ReLU"
            report._skip(name, module, reason)
        elif wrapper := parts.get(module):
            reason = f"inside {wrapper}, which would not synchronise its slope: convert, then wrap"
            report._skip(name, module, reason)
        elif has_forward_on_the_instance(module):
            report._skip(name, module, ON_THE_INSTANCE)
        elif cls := own_forward(module, (nn.ReLU, nn.LeakyReLU)):
            report._skip(name, module, f"{cls.__qualname__} has a forward of its own")
        else:
            relus[name] = module
    return relus


# ---- Their slopes ------------------------------------------------------------------------------


def _conflict(uses: set[Use], per_channel: bool) -> str | None:
    """Why one slope vector cannot serve all uses."""
    if not uses:
        return "not reached by example_inputs"
    channels = {use.channels for use in uses}
    dtypes = {use.dtype for use in uses}
    devices = {use.device for use in uses}
    if not dtypes.issubset(FLOATS):
        return f"called with {_listed(sorted(dtypes, key=str))}: a PReLU has no such inputs"
    if torch.float64 in dtypes and len(dtypes) > 1:
        return f"called with {_listed(sorted(dtypes, key=str))}: no slope serves them all"
    if len(devices) > 1:
        return f"called on {_listed(sorted(devices, key=str))}: a slope is on one device"
    if per_channel and len(channels) > 1:
        return f"called with {_listed(sorted(channels))} channels: one slope vector cannot serve them all"
    return None


def _listed(values: Iterable[object]) -> str:
    return " and ".join(map(str, values))


def _new_slopes(module: nn.Module, uses: set[Use], per_channel: bool) -> nn.Parameter:
    channels, dtype, device = next(iter(uses))
    return nn.Parameter(
        torch.full(
            (channels if per_channel else 1,),
            _initial_slope(module),
            dtype=torch.float64 if dtype == torch.float64 else torch.float32,
            device=device,
        )
    )


def _initial_slope(module: nn.Module) -> float:
    return module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0


def _give_slopes(module: nn.Module, weight: nn.Parameter) -> None:
    """Replaces the attributes of the former class by those of torch_ext.PReLU."""
    attributes = vars(module)
    # reset_parameters() returns to init
    attributes["init"] = attributes.pop("negative_slope", 0.0)
    attributes["num_parameters"] = weight.numel()
    attributes.pop("inplace", None)
    module.register_parameter("weight", weight)


# ---- Functional uses ---------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = (nn.ReLU, nn.LeakyReLU, PyTorchPReLU, torch.jit.ScriptModule)
        return isinstance(m, own) or super().is_leaf_module(m, module_qualified_name)


def _functional_uses(model: nn.Module) -> list[tuple[str, str]]:
    """Calls of relu and leaky_relu outside of modules: the module around each, and a description."""
    tracer = _Tracer()
    if tracer.is_leaf_module(model, ""):
        return []
    try:
        with random_state_kept():
            nodes = tracer.trace(_disposable_copy(model)).nodes
    except Exception as error:  # noqa: BLE001  (a model's forward may raise anything on a proxy)
        what = f"torch.fx cannot trace the model ({first_line(error)})"
        return [("", f"functional uses not looked for: {what}")]
    uses: dict[tuple[str, str], None] = {}
    for node in nodes:
        called = {"call_function": _FUNCTIONS, "call_method": _METHODS}.get(node.op, {})
        if name := called.get(node.target):
            path = next(reversed(node.meta.get("nn_module_stack", {})), "")
            uses[path, f"functional use of {name} in {path or 'the model'}: not converted"] = None
    return list(uses)


def _disposable_copy(model: nn.Module) -> nn.Module:
    """Shares the parameters and has no hooks. (A forward may store the proxies that it gets.)"""
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared | without_hooks(model.modules()))

"""Puts torch_ext.PReLU into a finished model and takes it out again.

A swap exchanges the class of a module and nothing else: the module and its Parameters stay the same
objects. Optimizers, hooks, wrappers, tied weights and the model's root therefore never notice.
"""

import functools
import inspect
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from torch_ext._modules import (
    COMPILED,
    ON_THE_INSTANCE,
    REFUSED,
    check_filter_fn,
    check_model,
    compiled_code,
    is_sharded,
    own_forward,
    tensors_around,
)
from torch_ext._plain_forward import why_not_plain
from torch_ext.prelu import PReLU
from torch_ext.swap_report import SwapReport

__all__ = ["replace_prelu", "restore_prelu"]

# On a class that a swap made: the class it stands for.
_ORIGINAL = "_torch_ext_original"


def replace_prelu(
    model: nn.Module,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    also: Iterable[type[nn.PReLU]] = (),
) -> SwapReport:
    """Makes every ``nn.PReLU`` of a model run the fused operator, in place.

    Modules and Parameters stay the same objects, ``state_dict`` stays as it is, and
    ``isinstance(module, nn.PReLU)`` still holds. A module reached by several names is swapped once
    and reported by the first. One that is fused already is not reported. A subclass of ``nn.PReLU``
    becomes a subclass of both itself and ``torch_ext.PReLU``, if it inherits ``forward`` or if its
    own is exactly ``prelu(input, self.weight)`` when torch.fx traces it in training and in
    evaluation mode. Tracing works on a copy. It notices what else a ``forward`` computes, calls or
    stores; not what it prints, or a choice that it makes by another attribute than ``training``.

    Skipped, with the reason in the report: a subclass whose own ``forward`` is anything else, a
    module whose ``forward`` was replaced on the instance, what ``filter_fn`` refuses, and
    ScriptModules (with a warning: compiled code cannot be changed).

    A model that already ran under ``torch.compile`` needs ``torch.compiler.reset()`` afterwards:
    torch 2.11 does not notice that a class was exchanged and goes on with the code it has.

    Args:
        model: searched with all its submodules, itself included.
        filter_fn: ``filter_fn(module, name)`` is asked about each ``nn.PReLU``; a false answer
            leaves that module alone. All are asked before the first is swapped.
        also: subclasses of ``nn.PReLU`` whose own ``forward`` may be replaced, although tracing does
            not show it to be PReLU; covers their subclasses that inherit that ``forward``.

    Raises:
        TypeError: if an argument is not of its type; nothing is changed then.
    """
    check_model(model)
    check_filter_fn(filter_fn)
    trusted = _check_also(also)

    report = SwapReport()
    swaps: list[tuple[str, nn.Module, type]] = []
    for name, module in _changeable_modules(model, "aten::prelu", report):
        if not isinstance(module, nn.PReLU) or isinstance(module, PReLU):
            continue
        if filter_fn is not None and not filter_fn(module, name):
            report._skip(name, module, REFUSED)
        elif reason := _obstacle(module, trusted):
            report._skip(name, module, reason)
        else:
            try:
                fused = _fused_class(type(module), parametrize.is_parametrized(module))
                swaps.append((name, module, fused))
            except Exception as error:  # noqa: BLE001  (metaclasses and __init_subclass__ are free)
                report._skip(name, module, f"its class cannot be subclassed: {error}")
    return _apply(swaps, report)


def restore_prelu(model: nn.Module) -> SwapReport:
    """Takes every ``torch_ext.PReLU`` out of a model again, in place.

    Each becomes the class that :func:`replace_prelu` found there; one that was made as
    ``torch_ext.PReLU`` becomes ``nn.PReLU``. The model can then be pickled, quantized or shipped
    without ``torch_ext``. Skipped, with the reason in the report: a class that was written on top of
    ``torch_ext.PReLU``, a module whose ``forward`` was replaced on the instance, and ScriptModules.

    Parameters keep their dtype. A float32 slope amid 16-bit tensors, as :func:`parametrize_relu`
    makes, gets a note in the report: ``nn.PReLU`` refuses 16-bit inputs with it, until the module
    is cast too (``model.to(torch.bfloat16)``), which rounds the slope.

    Args:
        model: searched with all its submodules, itself included.

    Raises:
        TypeError: if ``model`` is not a ``torch.nn.Module``.
    """
    check_model(model)
    report = SwapReport()
    swaps: list[tuple[str, nn.Module, type]] = []
    for name, module in _changeable_modules(model, "torch_ext::prelu", report):
        if not isinstance(module, PReLU):
            continue
        original = _original_class(type(module), parametrize.is_parametrized(module))
        if "forward" in vars(module):
            report._skip(name, module, ON_THE_INSTANCE)
        elif original is None:
            report._skip(name, module, "its class was written on top of torch_ext.PReLU")
        else:
            swaps.append((name, module, original))
            if note := _refusal_of_stock(model, name, module):
                report.notes.append((name, note))
    return _apply(swaps, report)


def _refusal_of_stock(model: nn.Module, name: str, module: PReLU) -> str | None:
    """Says so if the data are probably 16-bit and the slope is not: nn.PReLU has no such mixture."""
    if all(slope.dtype != torch.float32 for slope in module.parameters()):
        return None
    slopes = {p for m in model.modules() if isinstance(m, nn.PReLU) for p in m.parameters()}
    around = next(tensors_around(model, name, without=slopes), None)
    if around is None or around.dtype not in (torch.float16, torch.bfloat16):
        return None
    return f"float32 slopes: nn.PReLU refuses {around.dtype} inputs; cast it .to({around.dtype})"


def _check_also(also: Iterable[type[nn.PReLU]]) -> tuple[type[nn.PReLU], ...]:
    classes = tuple(also) if isinstance(also, Iterable) else (None,)
    for cls in classes:
        if not isinstance(cls, type) or not issubclass(cls, nn.PReLU):
            raise TypeError(f"also must hold subclasses of torch.nn.PReLU, got {also!r}")
    return classes


def _changeable_modules(
    model: nn.Module, operator: str, report: SwapReport
) -> Iterator[tuple[str, nn.Module]]:
    """Each module once, without the compiled ones; those that run `operator` are reported."""
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


def _apply(swaps: list[tuple[str, nn.Module, type]], report: SwapReport) -> SwapReport:
    """Carries out what was decided. Last, so that an error before leaves the model unchanged."""
    for name, module, cls in swaps:
        report._swap(name, module, cls)
    return report


def _obstacle(module: nn.PReLU, trusted: tuple[type[nn.PReLU], ...]) -> str | None:
    """Why another class would change what this module computes, or change nothing at all."""
    if "forward" in vars(module):
        return ON_THE_INSTANCE
    cls = own_forward(module, (nn.PReLU, *trusted))
    if cls is not None and (finding := why_not_plain(module)):
        what = f"{cls.__name__}.forward is not just prelu(input, self.weight)"
        return f"{what}: it {finding}; also= swaps it anyway"
    return None


# torch.nn.utils.parametrize and FSDP2's fully_shard give a module a class of their own, with the one
# that it had as last base. A swap makes it anew over what that base becomes.


def _fused_class(cls: type, parametrized: bool) -> type:
    sharded = is_sharded(cls)
    if not sharded and not parametrized:
        return _twin(cls)
    base = _fused_class(cls.__bases__[-1], parametrized and sharded)
    return (_rebase if parametrized else _rebase_once)(cls, base)


def _original_class(cls: type, parametrized: bool) -> type | None:
    sharded, original = is_sharded(cls), _stands_for(cls)
    if not sharded and not parametrized:
        return original
    # The very class from before the swap, unless parametrizations came or went in the meantime:
    # they are properties of the class.
    if original is not None and _namespace(original) == _namespace(cls):
        return original
    base = _original_class(cls.__bases__[-1], parametrized and sharded)
    return base and (_rebase if parametrized else _rebase_once)(cls, base)


def _stands_for(cls: type) -> type | None:
    return nn.PReLU if cls is PReLU else vars(cls).get(_ORIGINAL)


@functools.cache
def _twin(original: type) -> type:
    """The subclass of `original` and of torch_ext.PReLU that differs from `original` in forward."""
    if original is nn.PReLU:
        return PReLU

    def reduce_ex(self: PReLU, protocol: int) -> tuple[Any, ...]:
        # No import finds the twin, so a pickle names the original and makes the twin anew.
        function, arguments, *state = super(twin, self).__reduce_ex__(protocol)
        named = [original if value is twin else value for value in (function, *arguments)]
        return _rebuild, (original, *named), *state

    twin: Any = type(original)(
        original.__name__,
        (original, PReLU),
        {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "__reduce_ex__": reduce_ex,
            "forward": _forward_like(original),
            _ORIGINAL: original,
        },
    )
    return cast(type, twin)


def _forward_like(original: Any) -> Callable[..., Any]:
    """torch_ext.PReLU's forward, with the name that the original's gives its input: m(x=...).

    A wrapper with keyword arguments would do, but not for TorchScript.
    """
    _, *parameters = inspect.signature(original.forward).parameters.values()
    names = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD][:1]
    if names in ([], ["input"]):
        return PReLU.forward
    code = PReLU.forward.__code__.replace(co_varnames=("self", *names))
    return types.FunctionType(code, PReLU.forward.__globals__, "forward")


def _rebuild(original: type, function: Callable[..., PReLU], *arguments: Any) -> PReLU:
    """Unpickles an instance of `original`'s twin; its state follows."""
    module = function(*arguments)
    object.__setattr__(module, "__class__", _twin(original))
    return module


def _rebase(cls: type, base: type) -> type:
    """A parametrized or sharded module's class, over another last base.

    A parametrized one has the parametrized tensors as properties, and its base comes back with their
    removal. Deep copies share it, so it is made anew and never edited.
    """
    namespace = {**_namespace(cls), _ORIGINAL: cls}
    return type(cls)(cls.__name__, (*cls.__bases__[:-1], base), namespace)


# Layers of one sharded class stay layers of one class, which torch.compile compiles once.
_rebase_once = functools.cache(_rebase)


def _namespace(cls: type) -> dict[str, Any]:
    return {name: value for name, value in vars(cls).items() if name != _ORIGINAL}

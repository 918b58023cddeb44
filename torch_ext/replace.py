"""Puts torch_ext.PReLU into a finished model and takes it out again.

A swap exchanges the class of a module and nothing else: the module and its Parameters stay the same
objects. Optimizers, hooks, wrappers, tied weights and the root of the model are therefore not
affected.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.activation import PReLU as PyTorchPReLU
from torch.nn.utils import parametrize

from torch_ext._deferred import finish
from torch_ext._modules import (
    ON_THE_INSTANCE,
    REFUSED,
    changeable_modules,
    check_filter_fn,
    check_model,
    has_forward_on_the_instance,
    tensors_around,
)
from torch_ext._norm_twins import original_norm, stands_for_a_norm
from torch_ext._plain_forward import prelu_obstacle
from torch_ext._prelu_uses import OURS, PYTORCHS, functional_uses
from torch_ext._twins import fused_class, is_fused, original_class
from torch_ext.swap_report import SwapReport

__all__ = ["replace_prelu", "restore_prelu"]


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
    evaluation mode. Tracing works on a copy. It detects what else a ``forward`` computes, calls or
    stores, but not what it prints, nor a decision by another attribute than ``training``.

    Skipped, with the reason in the report: a subclass whose own ``forward`` is anything else, a
    module whose ``forward`` was replaced on the instance, what ``filter_fn`` refuses, and
    ScriptModules (with a warning: compiled code cannot be changed); and code that calls ``F.prelu``
    or ``torch.prelu`` itself, in methods and in graphs of torch.fx and torch.export, which
    :class:`torch_ext.override_aten` serves. (Such code is found by reading it; ``x.prelu(w)`` is
    not found.)

    After swapping modules of a model that already ran under ``torch.compile``, call
    ``torch.compiler.reset()``: torch 2.11 does not notice that a class was exchanged and keeps
    using the code that it has compiled.

    Args:
        model: searched with all its submodules, itself included.
        filter_fn: ``filter_fn(module, name)`` is asked about each ``nn.PReLU``; a false answer
            leaves that module alone. All are asked before the first is swapped.
        also: subclasses of ``nn.PReLU`` whose own ``forward`` may be replaced, although tracing
            does not show it to be PReLU; subclasses that inherit this ``forward`` are included.

    Raises:
        TypeError: if an argument is not of its type; nothing is changed then.
    """
    check_model(model)
    check_filter_fn(filter_fn)
    trusted = _check_also(also)

    report = SwapReport()
    swaps: list[tuple[str, nn.Module, type]] = []
    for name, module in changeable_modules(model, "aten::prelu", report):
        if not isinstance(module, PyTorchPReLU) or is_fused(type(module)):
            continue
        if filter_fn is not None and not filter_fn(module, name):
            report._skip(name, module, REFUSED)
        elif reason := prelu_obstacle(module, trusted):
            report._skip(name, module, reason)
        else:
            try:
                fused = fused_class(type(module), parametrize.is_parametrized(module))
                swaps.append((name, module, fused))
            except Exception as error:  # noqa: BLE001  (metaclasses and __init_subclass__ are free)
                report._skip(name, module, f"its class cannot be subclassed: {error}")
    for name, use in functional_uses(model, PYTORCHS):
        reason = f"functional use of {use}: not swapped; torch_ext.override_aten() covers it"
        report.skipped.append((name, reason))
    return apply_swaps(swaps, report)


def restore_prelu(model: nn.Module) -> SwapReport:
    """Takes every ``torch_ext.PReLU`` out of a model again, in place, and what fuses norms with it.

    Each becomes the class that :func:`replace_prelu` or :func:`fuse_norm_prelu` found there; one
    that was made as ``torch_ext.PReLU`` becomes ``nn.PReLU``. Norms get their classes back, too. The
    model can then be pickled, quantized or shipped without ``torch_ext``. Skipped, with the reason in
    the report: a class that somebody derived from ``torch_ext.PReLU``, a module whose ``forward`` was
    replaced on the instance, ScriptModules, and code that calls the operator itself, in methods and in
    graphs of torch.fx and torch.export.

    Restore a model before using tools that know only PyTorch's operator or exact classes:
    quantization, ``torch.jit.optimize_for_inference``, and tools that count or prune by
    ``type(module)``.

    Parameters keep their dtype. A float32 slope among 16-bit tensors, as :func:`parametrize_relu`
    creates it, is noted in the report: ``nn.PReLU`` refuses 16-bit inputs with it until the module
    is cast as well (``model.to(torch.bfloat16)``), which rounds the slope.

    Args:
        model: searched with all its submodules, itself included.

    Raises:
        TypeError: if ``model`` is not a ``torch.nn.Module``.
    """
    check_model(model)
    report = SwapReport()
    swaps: list[tuple[str, nn.Module, type]] = []
    for name, module in changeable_modules(model, "torch_ext::prelu", report):
        if stands_for_a_norm(type(module)):
            finish(module)
            swaps.append((name, module, original_norm(type(module))))
        if not is_fused(type(module)):
            continue
        original = original_class(type(module), parametrize.is_parametrized(module))
        if has_forward_on_the_instance(module):
            report._skip(name, module, ON_THE_INSTANCE)
        elif original is None:
            report._skip(name, module, "its class was written on top of torch_ext.PReLU")
        else:
            swaps.append((name, module, original))
            if note := _refusal_by_nn_prelu(model, name, module):
                report.notes.append((name, note))
    for name, use in functional_uses(model, OURS):
        report.skipped.append((name, f"functional use of {use}: not restored"))
    return apply_swaps(swaps, report)


def _refusal_by_nn_prelu(model: nn.Module, name: str, module: nn.Module) -> str | None:
    """A note if the data are probably 16-bit and the slope is not, which nn.PReLU refuses."""
    if all(slope.dtype != torch.float32 for slope in module.parameters()):
        return None
    slopes = {p for m in model.modules() if isinstance(m, PyTorchPReLU) for p in m.parameters()}
    around = next(tensors_around(model, name, without=slopes), None)
    if around is None or around.dtype not in (torch.float16, torch.bfloat16):
        return None
    return f"float32 slopes: nn.PReLU refuses {around.dtype} inputs; cast it .to({around.dtype})"


def _check_also(also: Iterable[type[nn.PReLU]]) -> tuple[type[nn.PReLU], ...]:
    classes = tuple(also) if isinstance(also, Iterable) else (None,)
    for cls in classes:
        if not isinstance(cls, type) or not issubclass(cls, PyTorchPReLU):
            raise TypeError(f"also must hold subclasses of torch.nn.PReLU, got {also!r}")
    return classes


def apply_swaps(swaps: list[tuple[str, nn.Module, type]], report: SwapReport) -> SwapReport:
    """Carries out the swaps. Called last, so that an earlier error leaves the model unchanged."""
    for name, module, cls in swaps:
        report._swap(name, module, cls)
    return report

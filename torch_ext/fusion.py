"""A norm and the PReLU after it as one operator: for two modules, as a layer, and in finished models."""

import contextlib
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn.modules.activation import PReLU as PyTorchPReLU
from torch.nn.utils import parametrize

from torch_ext._deferred import finish
from torch_ext._example import ExampleInputs, check_example_inputs, run_once
from torch_ext._modules import REFUSED, changeable_modules, check_filter_fn, check_model
from torch_ext._norm_calls import KINDS, arguments, fused, is_plain_eager, is_undisturbed, slope_for
from torch_ext._norm_twins import NORMS, known_norm, norm_obstacle, norm_twin, stands_for_a_norm
from torch_ext._plain_forward import prelu_obstacle
from torch_ext._twins import BEHIND_NORM, ORIGINAL, fused_class, is_fused, original_class
from torch_ext.swap_report import SwapReport

__all__ = ["NormPReLU", "fuse_norm_prelu", "norm_prelu"]


def norm_prelu(norm: nn.Module, prelu: nn.Module, input: Tensor) -> Tensor:
    """``prelu(norm(input))``, as one operator where the result is the same.

    It is the same if ``norm`` is a batch or instance norm of ``torch.nn``; ``prelu`` is an
    ``nn.PReLU``, a :class:`PReLU`, or was changed by :func:`replace_prelu`; the pair supports these
    dtypes, sizes and devices; the input is batched; neither module has hooks, parametrizations or a
    ``forward`` of its own; and there are no global hooks. Otherwise the two modules are called one
    after the other. This is decided at each call, so hooks may be added and removed, SyncBatchNorm
    may replace a norm, and modules may be wrapped. Running statistics, the count of batches and
    errors are those of the norm's own ``forward``.

    Args:
        norm: any module.
        prelu: any module that accepts what the norm returns.
        input: shape :math:`(N, C)` or :math:`(N, C, *)`.

    Returns:
        What ``prelu(norm(input))`` returns, up to rounding. The normalised tensor between the two is
        neither stored nor kept for the backward.

    Example::

        >>> norm, prelu = nn.BatchNorm2d(8), nn.PReLU(8)
        >>> torch_ext.norm_prelu(norm, prelu, torch.randn(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """
    if not torch.compiler.is_compiling() and type(input) is Tensor and is_plain_eager():
        cls: Any = type(norm)
        known = known_norm(cls) if isinstance(norm, NORMS) else None
        if (
            known is not None
            and _is_plain_prelu(prelu)
            and is_undisturbed(norm)
            and is_undisturbed(prelu)
            and (slope := slope_for(prelu, input)) is not None
            and (type(prelu) is not PyTorchPReLU or slope.dtype is input.dtype)
        ):
            finish(norm, calls_it=True)
            found = arguments(norm, kind := KINDS[known], input)
            if found is not None:
                return fused(kind.instance, input, slope, found)
    return prelu(norm(input))  # type: ignore[no-any-return]


def _is_plain_prelu(module: nn.Module) -> bool:
    """Whether its forward is known to be PReLU."""
    cls = type(module)
    return cls is PyTorchPReLU or ORIGINAL in vars(cls)


class NormPReLU(nn.Module):
    """A norm and a PReLU as one layer, by :func:`norm_prelu`.

    The modules are its children ``norm`` and ``prelu``, with their own Parameters, buffers and names.
    The layer is no subclass of a norm, so ``convert_sync_batchnorm`` converts the norm inside it and
    keeps the activation.

    Args:
        norm: a batch or instance norm; another module is called as it is.
        prelu: an ``nn.PReLU`` or a :class:`PReLU`.

    Example::

        >>> layer = torch_ext.NormPReLU(nn.BatchNorm2d(8), torch_ext.PReLU(8))
        >>> layer(torch.randn(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(self, norm: nn.Module, prelu: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.prelu = prelu

    def forward(self, input: Tensor) -> Tensor:
        """Runs the forward pass."""
        if is_scripting():
            result: Tensor = self.prelu(self.norm(input))
            return result
        return norm_prelu(self.norm, self.prelu, input)


def fuse_norm_prelu(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> SwapReport:
    """Runs each batch or instance norm of a model together with the PReLU after it, in place.

    Modules and Parameters stay the same objects, with their names and hooks, and ``state_dict`` does
    not change. Only the classes of the norms and PReLUs are exchanged, for subclasses, so
    ``isinstance`` finds them as before. :func:`restore_prelu` undoes it. An ``nn.Identity`` or an
    inactive dropout may be between the two.

    A changed norm does not compute its result when it is called, but returns a tensor that stands for
    it. If a PReLU receives this tensor, both run as one operator; any other use computes the result
    first. So a forward may be written in any way and use a norm's result anywhere. Whether a pair is
    fused is decided at each call. It is not fused with hooks, parametrizations or FSDP on either
    module; where ``torch.compile``, ``torch.jit.trace`` or ``torch.func`` record or transform; inside
    of non-reentrant activation checkpointing, ``torch.autograd.Function`` and
    ``torch.inference_mode`` (use ``torch.no_grad``); or if only one of the two runs under
    ``no_grad``. The modules then run separately, as they would otherwise, PReLU by the operator of
    :func:`prelu`.

    Two things that were possible before raise an error that explains them: changing a norm's input in
    place between the norm and the first use of its result, and passing that result, before any other
    use, to a ``torch.autograd.Function`` or to C++ code that is not called through PyTorch's Python
    functions. Exclude such a norm by ``filter_fn``; ``example_inputs`` exclude all norms that no
    PReLU follows.

    ``example_inputs`` are run through the model once, in eval mode and without gradients (training
    flags and buffers are restored afterwards), and only norms whose result reached a PReLU are
    changed. Without them, every norm is changed that is followed by a PReLU in the model's order.

    The report's ``skipped`` names what was left alone, with the reason: subclasses with a ``forward``
    of their own (timm's ``BatchNormAct2d``), SyncBatchNorm, lazy modules, parametrized and sharded
    norms, ScriptModules, what ``filter_fn`` refuses, and norms and PReLUs without a partner.

    Args:
        model: searched with all its submodules, itself included.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of ``model``.
        filter_fn: ``filter_fn(module, name)`` is asked about each norm and each PReLU; a false answer
            leaves that module alone. All are asked before the first is changed.

    Raises:
        TypeError: if an argument is not of its type. Nothing is changed then, nor after an error of
            the model itself.

    Example::

        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8))
        >>> print(torch_ext.fuse_norm_prelu(model))
        2 swapped, 0 skipped
          module  result   class
          1       swapped  nn.BatchNorm2d -> nn.BatchNorm2d, fused
          2       swapped  nn.PReLU -> torch_ext.PReLU
    """
    check_model(model)
    check_example_inputs(example_inputs)
    check_filter_fn(filter_fn)
    report = SwapReport()
    norms: dict[str, nn.Module] = {}
    prelus: dict[str, nn.Module] = {}
    reasons: dict[str, str] = {}
    for name, module in changeable_modules(model, "aten::prelu", report):
        if isinstance(module, (*NORMS, PyTorchPReLU)):
            (norms if isinstance(module, NORMS) else prelus)[name] = module
            if filter_fn is not None and not filter_fn(module, name):
                reasons[name] = REFUSED
            elif reason := _obstacle(module):
                reasons[name] = reason
    if example_inputs is None:
        pairs = _pairs_by_order([*_in_order(model, norms | prelus)], norms)
    else:
        pairs = _observed_pairs(model, norms, prelus, example_inputs)
    reasons |= _without_partner(norms, prelus, pairs, reasons, example_inputs is not None)

    for name in _in_order(model, norms | prelus):
        module = (norms | prelus)[name]
        if name in reasons:
            report._skip(name, module, reasons[name])
        elif name in norms and not stands_for_a_norm(type(module)):
            cls: Any = type(module)
            report._swap(name, module, norm_twin(cls))
            if example_inputs is not None:
                report.classes[name] += f" with {', '.join(pairs[name])}"
        elif name in prelus and not getattr(type(module), BEHIND_NORM, False):
            report._swap(name, module, _class_behind_norm(module))
    return report


def _in_order(model: nn.Module, names: Container[str]) -> Iterator[str]:
    return (name for name, _ in model.named_modules() if name in names)


def _class_behind_norm(prelu: nn.Module) -> type:
    cls, parametrized = type(prelu), parametrize.is_parametrized(prelu)
    original = original_class(cls, parametrized) if is_fused(cls) else cls
    return fused_class(original or cls, parametrized, behind_norm=True)


def _obstacle(module: nn.Module) -> str | None:
    if isinstance(module, NORMS):
        return None if stands_for_a_norm(type(module)) else norm_obstacle(module)
    cls = type(module)
    if not is_fused(cls):
        return prelu_obstacle(module)  # type: ignore[arg-type]
    if original_class(cls, parametrize.is_parametrized(module)) is None:
        return "its class was written on top of torch_ext.PReLU"
    return None


# Which PReLUs may get the result of a norm, by name.
_Pairs: TypeAlias = dict[str, list[str]]


def _pairs_by_order(names: list[str], norms: Container[str]) -> _Pairs:
    """Without an example: any PReLU that comes after a norm in the model's order."""
    return {
        name: [later for later in names[place:] if later not in norms]
        for place, name in enumerate(names)
        if name in norms
    }


def _without_partner(
    norms: Collection[str],
    prelus: Collection[str],
    pairs: _Pairs,
    reasons: Mapping[str, str],
    observed: bool,
) -> dict[str, str]:
    """The reasons of those that could be changed, but would never be fused."""
    lonely: dict[str, str] = {}
    for norm in norms:
        partners = pairs.get(norm, [])
        if norm not in reasons and all(prelu in reasons for prelu in partners):
            nothing = "no PReLU got its result" if observed else "no PReLU comes after it"
            lonely[norm] = f"its PReLU was skipped: {partners[0]}" if partners else nothing
    for prelu in prelus:
        partners = [norm for norm, found in pairs.items() if prelu in found]
        if prelu not in reasons and all(norm in reasons for norm in partners):
            nothing = "no norm comes before it"
            if observed:
                nothing = "what it got is not the result of a batch or instance norm"
            lonely[prelu] = f"its norm was skipped: {partners[0]}" if partners else nothing
    return lonely


def _observed_pairs(
    model: nn.Module,
    norms: Mapping[str, nn.Module],
    prelus: Mapping[str, nn.Module],
    example_inputs: ExampleInputs,
) -> _Pairs:
    """Runs the model once and sees which PReLUs are called with the very tensor that a norm returned."""
    results: list[tuple[str, Any, int]] = []
    pairs: _Pairs = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.is_inference():
                results.append((name, output, output._version))

        return hook

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            input, *_ = (*args, *kwargs.values(), None)
            for norm, output, version in results:
                if output is input and output._version == version:
                    found = pairs.setdefault(norm, [])
                    found += [] if name in found else [name]

        return hook

    with contextlib.ExitStack() as hooks:
        for name, module in norms.items():
            hooks.enter_context(module.register_forward_hook(keep(name)))
        for name, module in prelus.items():
            hooks.enter_context(module.register_forward_pre_hook(look(name), with_kwargs=True))
        run_once(model, example_inputs)
    return pairs

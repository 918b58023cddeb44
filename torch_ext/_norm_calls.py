"""What a batch or instance norm is about to compute, and whether the fused operators compute the same.

The arguments of a call are read from the module once, when it is called: statistics, Parameters, training
or not. `norm_prelu` passes them to the operators at once, a deferred result (`_deferred.py`) later.

In any doubtful case PyTorch's modules compute the result, and raise their errors.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, graph
from torch.nn import functional as F
from torch.nn.modules import module as nn_module
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from torch.nn.modules.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d

from torch_ext import _C

# What torch_ext.batch_norm_prelu and its like call in the end; see prelu.py.
batch_norm_prelu, instance_norm_prelu = (
    getattr(packet, "_op", packet)
    for packet in (torch.ops.torch_ext.batch_norm_prelu, torch.ops.torch_ext.instance_norm_prelu)
)

# On a class that fuse_norm_prelu has made: PyTorch's class of norms that the kernels know.
KNOWN = "_torch_ext_norm"


class Arguments(NamedTuple):
    """Those of F.batch_norm and F.instance_norm after the first."""

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool  # whether the input's statistics are used
    momentum: float
    eps: float


_arguments: Callable[[tuple[Any, ...]], Arguments] = functools.partial(
    tuple.__new__, Arguments
)  # in a third of the time


class Kind(NamedTuple):
    """What distinguishes a class of norms."""

    instance: bool
    dims: tuple[int, ...]  # of batched inputs


KINDS: dict[type, Kind] = {
    BatchNorm1d: Kind(False, (2, 3)),
    BatchNorm2d: Kind(False, (4,)),
    BatchNorm3d: Kind(False, (5,)),
    InstanceNorm1d: Kind(True, (3,)),
    InstanceNorm2d: Kind(True, (4,)),
    InstanceNorm3d: Kind(True, (5,)),
}

# Whether a result that is computed later is the one that is computed now. Not within
# `torch.autograd.Function.forward` (where forward gradients are off, as in inference mode, whose tensors do not
# tell that they were changed): its results get their graph from outside. Not where saved tensors go to hooks
# (checkpointing, offloading): what is saved belongs to the place of the norm's call, and how often a checkpointed
# norm counts its statistics depends on it. Not under dispatch modes, which watch operators one by one.
may_defer = _C.may_defer

# Whether tensors, none of a subclass, have one dtype that goes with the input's, and its device.
_go_together = _C.go_together

_GLOBAL_HOOKS = [
    getattr(nn_module, name)
    for name in (
        "_global_forward_hooks",
        "_global_forward_pre_hooks",
        "_global_backward_hooks",
        "_global_backward_pre_hooks",
    )
]
_forward, _forward_pre, _backward, _backward_pre = _GLOBAL_HOOKS

_tracing = torch._C._get_tracing_state
_set_tracing: Callable[[Any], None] = getattr(torch._C, "_set_tracing_state")  # noqa: B009
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_included = torch._C._dispatch_tls_is_dispatch_key_included
_EXPORTS = torch._C.DispatchKey.PreDispatch  # there is a mode for what is above autograd
_transforms = torch._C._functorch.peek_interpreter_stack
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks


def is_undisturbed(module: nn.Module) -> bool:
    """Whether a call of the module is its class's forward and nothing else.

    Hooks are looked for at each call, as PyTorch does; a module inside is a parametrization's.
    """
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own["_modules"]
        or _forward
        or _forward_pre
        or _backward
        or _backward_pre
        or "forward" in own
        or module._compiled_call_impl is not None
    )


def is_plain_eager() -> bool:
    """Whether nothing but PyTorch's own autograd follows what is computed now."""
    return _tracing() is None and _transforms() is None and forward_ad._current_level < 0


@contextlib.contextmanager
def unobserved() -> Iterator[None]:
    """Computes as ordinary code did before: no transform, mode, hook or tracer sees it."""
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if _transforms() is not None:
            from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

            stack.enter_context(temporarily_clear_interpreter_stack())
        if _dispatch_modes() or _is_included(_EXPORTS):
            from torch.utils._python_dispatch import _disable_current_modes

            stack.enter_context(_disable_current_modes())
        if _saved_tensors_hooks(False) is not None:
            stack.enter_context(graph.saved_tensors_hooks(lambda t: t, lambda t: t))
        if (tracing := _tracing()) is not None:
            stack.callback(_set_tracing, tracing)
            _set_tracing(None)
        yield


def _takes(norm: Any, kind: Kind, x: Tensor) -> bool:
    """Whether PyTorch would take an input of this shape, batched, and the fused operators, too."""
    shape = x.shape
    if len(shape) not in kind.dims or shape[1] != norm.num_features or norm.eps <= 0:
        return False
    channels = shape[0] * shape[1] if kind.instance else shape[1]
    return x.numel() > channels > 0 and x.layout is torch.strided and (x.is_cpu or x.is_cuda)


def arguments(norm: Any, kind: Kind, x: Tensor) -> Arguments | None:
    """What the norm's forward would hand to the function; None if the fused operators might differ.

    Counts the call, as PyTorch's forward does, if it is not None.
    """
    if not _takes(norm, kind, x):
        return None
    buffers, named = norm._buffers, norm._parameters
    if "weight" in named and "bias" in named:
        weight, bias = named["weight"], named["bias"]
    else:  # a replica of nn.DataParallel, where they are attributes
        weight, bias = norm.weight, norm.bias
    if "running_mean" not in buffers or "running_var" not in buffers:
        return None  # a Parameter or an attribute has its place
    mean, var = buffers["running_mean"], buffers["running_var"]
    if (mean is None) is not (var is None) or not _go_together(x, weight, bias, mean, var):
        return None
    tracked, training, momentum = norm.track_running_stats, norm.training, norm.momentum
    factor = 0.0 if momentum is None else momentum
    if kind.instance:
        if tracked and mean is None:
            return None
        return _arguments((mean, var, weight, bias, training or not tracked, factor, norm.eps))
    if training and tracked:
        name = "num_batches_tracked"
        count = buffers[name] if name in buffers else getattr(norm, name)
        if count is not None:
            count.add_(1)
            if momentum is None:
                factor = 1.0 / float(count)
    if training and not tracked:
        mean = var = None
    return _arguments((mean, var, weight, bias, training or mean is None, factor, norm.eps))


def slope_for(prelu: Any, x: Tensor) -> Tensor | None:
    """The slope with which a PReLU takes what a norm makes of x; None if it might refuse."""
    slope: Any = prelu._parameters.get("weight")
    if slope is None:  # a replica's is an attribute
        slope = prelu.weight
    shape = slope.shape
    if len(shape) > 1 or (shape and shape[0] != 1 and shape[0] != x.shape[1]):
        return None
    return slope if _go_together(x, slope, None, None, None) else None


def updates_statistics(arguments: Arguments) -> bool:
    """Whether a call with these arguments changes running statistics."""
    return arguments.training and arguments.running_mean is not None


def fused(instance: bool, x: Tensor, slope: Tensor, arguments: Arguments) -> Tensor:
    """Norm and PReLU by one operator."""
    function = instance_norm_prelu if instance else batch_norm_prelu
    return _counted(function, instance, x, arguments, slope)


def normed(instance: bool, x: Tensor, arguments: Arguments) -> Tensor:
    """The norm by itself."""
    return _counted(F.instance_norm if instance else F.batch_norm, instance, x, arguments)


def _counted(
    function: Callable[..., Tensor],
    instance: bool,
    x: Tensor,
    arguments: Arguments,
    *slope: Tensor,
) -> Tensor:
    """Calls the function. Updates running statistics even if it is stopped, as a norm in front has.

    (Checkpointing stops a recomputation as soon as the last tensor has been saved: hooks raise. What
    F.batch_norm does to the statistics does not show in their versions.)
    """
    mean = arguments.running_mean
    if mean is None or not arguments.training or _saved_tensors_hooks(False) is None:
        return function(x, *slope, *arguments)
    before = mean.clone()
    try:
        return function(x, *slope, *arguments)
    except BaseException:
        if torch.equal(mean, before):
            update_statistics(instance, x, arguments)
        raise


def update_statistics(instance: bool, x: Tensor, arguments: Arguments) -> None:
    """What a call does to running statistics, and nothing else."""
    if updates_statistics(arguments):
        with torch.no_grad():
            (F.instance_norm if instance else F.batch_norm)(x, *arguments)


# ---- What may stand between a norm and a PReLU ---------------------------------------------------

DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


def does_nothing(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> bool:
    """Whether a dropout returns its input, as PyTorch's does: the same tensor."""
    return p == 0 if training else 0 <= p <= 1

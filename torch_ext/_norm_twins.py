"""The classes that fuse_norm_prelu gives to norms: their own, with a call that may defer its result.

Nothing but ``__call__`` differs, and that running statistics are brought up to date before they are read,
saved, copied, cast or loaded.
``forward`` stays the class's own, so TorchScript, torch.fx and torch.compile see PyTorch's norm.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from torch_ext._deferred import call_norm, finish
from torch_ext._modules import (
    ON_THE_INSTANCE,
    has_forward_on_the_instance,
    is_sharded,
)
from torch_ext._norm_calls import KINDS, KNOWN
from torch_ext._twins import like, rebased

# On the classes that are made here: the class that they stand for.
ORIGINAL = "_torch_ext_norm_original"

NORMS = (_BatchNorm, _InstanceNorm)

# What a subclass may not define anew. (How it is built, saved or printed is its own matter.)
_CALL = {"forward", "__call__", "_call_impl", "_wrapped_call_impl"}
_INSIDE = {"_check_input_dim", "_apply_instance_norm", "__getattribute__", "__getattr__"}
_STATISTICS = ("running_mean", "running_var")
_OWN = {*_CALL, *_INSIDE, *_STATISTICS}
# What reads or replaces all that a module holds: state_dict, load_state_dict, to() and its like, copy and pickle.
_WITH_STATISTICS = ("_save_to_state_dict", "_load_from_state_dict", "_apply", "__reduce_ex__")


def is_norm_twin(cls: type) -> bool:
    """Whether fuse_norm_prelu made this class."""
    return ORIGINAL in vars(cls)


def original_norm(cls: type) -> type:
    """The class that was there before, parametrized or sharded if this one is."""
    if is_norm_twin(cls):
        original: type = vars(cls)[ORIGINAL]
        return original
    return rebased(cls, original_norm(cls.__bases__[-1]))


def stands_for_a_norm(cls: type) -> bool:
    """Whether fuse_norm_prelu made this class, or one that it was made of by parametrize or FSDP."""
    return any(is_norm_twin(base) for base in cls.__mro__)


@functools.cache
def known_norm(cls: type) -> type | None:
    """The class of torch.nn whose calls those of this class are; None if it has its own."""
    for base in cls.__mro__:
        if base in KINDS:
            return base
        if not is_norm_twin(base) and not _OWN.isdisjoint(vars(base)):
            return None
    return None


def norm_obstacle(norm: nn.Module) -> str | None:
    """Why a norm cannot be fused with a PReLU."""
    cls = type(norm)
    if isinstance(norm, SyncBatchNorm):
        return "SyncBatchNorm takes its statistics over all processes"
    if any(map(is_lazy, norm.parameters())) or any(map(is_lazy, norm.buffers())):
        return "a lazy module: run the model once first"
    if parametrize.is_parametrized(norm):
        return "its Parameters are parametrized"
    if is_sharded(cls) or "_is_fsdp_managed_module" in vars(norm):
        return "FSDP takes its Parameters away after its forward"
    if has_forward_on_the_instance(norm):
        return ON_THE_INSTANCE
    if known_norm(cls) is None:  # type: ignore[arg-type]
        return f"{cls.__name__} has a forward of its own, not that of torch.nn's norm"
    return None


@functools.cache
def norm_twin(original: type) -> type:
    """What fuse_norm_prelu gives to a norm of this class."""
    own: dict[str, Any] = {
        "__call__": call_norm,
        **{name: _finishing(getattr(original, name)) for name in _WITH_STATISTICS},
        "__jit_unused_properties__": list(_STATISTICS),  # TorchScript takes the buffers
        **{name: _statistic(name) for name in _STATISTICS},
        ORIGINAL: original,
        KNOWN: known_norm(original),
    }
    return like(original, (original,), own, (norm_twin, original))


def _statistic(name: str) -> Any:
    """A buffer; or, as on any module, a Parameter or an attribute that was put in its place."""

    def get(self: nn.Module) -> Tensor | None:
        finish(self)
        for place in (self._buffers, self.__dict__):
            if name in place:
                return place[name]
        raise AttributeError(name)  # nn.Module.__getattr__ looks among the Parameters

    def put(self: nn.Module, value: Any) -> None:
        self.__dict__[name] = value

    def remove(self: nn.Module) -> None:
        del self.__dict__[name]

    return property(get, put, remove)


def _finishing(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, after the statistics have been brought up to date."""

    @functools.wraps(method)
    def finished(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        finish(self)
        return method(self, *args, **kwargs)

    return finished

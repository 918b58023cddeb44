"""The classes that a swap gives to modules: their own, with the fused forward.

A module of PyTorch's own class becomes a torch_ext.PReLU. A module of a subclass gets a *twin*: a
subclass of its class and of torch_ext.PReLU that differs from the former in its forward only. PReLUs
that follow a norm, and the norms (`_norm_twins.py`), get twins whose ``__call__`` fuses both
(`_deferred.py`).

torch.nn.utils.parametrize and FSDP2's fully_shard give a module a class of their own, whose last
base is the class that it had. A swap makes this class anew over what the base becomes.
"""

import abc
import copyreg
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, cast

from torch.nn.modules.activation import PReLU as PyTorchPReLU

from torch_ext._deferred import call_prelu
from torch_ext._modules import is_sharded
from torch_ext.prelu import PReLU

# An attribute of torch_ext.PReLU and of classes that a swap made: the class that they stand for. It
# identifies them, because a program may have imported torch_ext.PReLU twice.
ORIGINAL = "_torch_ext_original"


# On classes whose PReLU is fused with the norm in front of it.
BEHIND_NORM = "_torch_ext_behind_norm"
# On generated classes: what makes them, and of what, for pickle.
MADE_BY = "_torch_ext_made_by"


def is_fused(cls: type) -> bool:
    """Whether the class is, or was made from, torch_ext.PReLU, also that of an earlier import."""
    return any(vars(base).get(ORIGINAL) is PyTorchPReLU for base in cls.__mro__)


def fused_class(cls: type, parametrized: bool, behind_norm: bool = False) -> type:
    """What a swap gives to a module of this class."""
    sharded = is_sharded(cls)
    if not sharded and not parametrized:
        if cls is PyTorchPReLU:
            return _prelu_behind_norm() if behind_norm else PReLU
        return _twin(cls, behind_norm)
    base = fused_class(cls.__bases__[-1], parametrized and sharded, behind_norm)
    return (rebased if parametrized else _rebased_once)(cls, base)


def original_class(cls: type, parametrized: bool) -> type | None:
    """The class that was there before the swap; None for a class that no swap has made."""
    sharded, original = is_sharded(cls), vars(cls).get(ORIGINAL)
    if not sharded and not parametrized:
        return original
    # The very class from before the swap, unless parametrizations came or went in the meantime:
    # they are properties of the class.
    if original is not None and _namespace(original) == _namespace(cls):
        return cast(type, original)
    base = original_class(cls.__bases__[-1], parametrized and sharded)
    return base and (rebased if parametrized else _rebased_once)(cls, base)


@functools.cache
def _twin(original: type, behind_norm: bool = False) -> type:
    own: dict[str, Any] = {"forward": _forward_like(original), ORIGINAL: original}
    if behind_norm:
        own |= {"__call__": call_prelu, BEHIND_NORM: True}
    return like(original, (original, PReLU), own, (_twin, original, behind_norm))


@functools.cache
def _prelu_behind_norm() -> type:
    """torch_ext.PReLU for modules of that class and of PyTorch's."""
    own = {"__call__": call_prelu, BEHIND_NORM: True, ORIGINAL: PyTorchPReLU}
    return like(PReLU, (PReLU,), own, (_prelu_behind_norm,))


def like(original: type, bases: tuple[type, ...], own: dict[str, Any], made_by: Any) -> type:
    """A class that goes by the name of another, with these bases and attributes."""
    namespace = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        MADE_BY: made_by,
        **own,
    }
    return _new_class(original.__name__, bases, namespace, _picklable(type(original)))


def _forward_like(original: Any) -> Callable[..., Any]:
    """torch_ext.PReLU's forward, with the name that the original gives its input: m(x=...).

    (TorchScript would not accept a wrapper with keyword arguments.)
    """
    _, *parameters = inspect.signature(original.forward).parameters.values()
    names = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD][:1]
    if names in ([], ["input"]):
        return PReLU.forward
    code = PReLU.forward.__code__.replace(co_varnames=("self", *names))
    return types.FunctionType(code, PReLU.forward.__globals__, "forward")


def rebased(cls: type, base: type) -> type:
    """A parametrized or sharded module's class, over another last base.

    A parametrized class has the parametrized tensors as properties, and removing them brings back
    its base. Deep copies share it, so it is made anew instead of edited.
    """
    namespace = {**_namespace(cls), ORIGINAL: cls}
    return _new_class(cls.__name__, (*cls.__bases__[:-1], base), namespace, type(base))


# Layers of one sharded class remain layers of one class, which torch.compile compiles once.
_rebased_once = functools.cache(rebased)


def _namespace(cls: type) -> dict[str, Any]:
    """The namespace of a class without what each class has for itself (the last two are abc's)."""
    own = (ORIGINAL, "_abc_impl", "__abstractmethods__")
    return {name: value for name, value in vars(cls).items() if name not in own}


# ---- Making classes without notifying their bases -----------------------------------------------


class _Unnoticed:
    def __init_subclass__(cls, **_: Any) -> None:
        pass


def _new_class(
    name: str, bases: tuple[type, ...], namespace: dict[str, Any], metaclass: type
) -> type:
    """Makes a class without notifying its bases and their metaclass.

    They may keep a register of subclasses by name, from which a program creates its layers, and the
    new class would replace the one that it stands for. So a base in front hides __init_subclass__
    and is removed again, and the metaclass's own ways to create a class are bypassed.
    """
    maker: Any = abc.ABCMeta if issubclass(metaclass, abc.ABCMeta) else type
    made = maker.__new__(metaclass, name, (_Unnoticed, *bases), namespace)
    made.__bases__ = bases
    return cast(type, made)


@functools.cache
def _picklable(metaclass: type) -> type:
    """A metaclass like the given one, whose classes pickle without being found by an import."""
    name = f"{metaclass.__name__}OfTwins"
    made: Any = type.__new__(type, name, (metaclass,), {"__module__": __name__})
    copyreg.pickle(made, _reduced)
    return cast(type, made)


def _reduced(cls: type) -> str | tuple[Any, ...]:
    if MADE_BY in vars(cls):
        make, *arguments = vars(cls)[MADE_BY]
        return make, tuple(arguments)
    return cls.__qualname__  # a class derived from a twin: found by an import, or not at all

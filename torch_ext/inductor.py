"""What Inductor, the code generator of torch.compile, does with the operators.

Inductor cannot fuse what comes before a custom operator with what comes after it. The forward of
PReLU takes two instructions for each element, so it is decomposed into the formulas that Inductor
gets from ``torch.nn.functional.prelu``, and fused. The backward is kept whole: our kernel reads and
writes once, where Inductor sums the gradient of the slope in a separate loop. There are two
exceptions, in which the backward is decomposed as well. If the gradient of the input goes directly
into other sums, as in the backward of a normalization, Inductor computes all of it in one loop. And
for small tensors a call of the operator costs more than the kernel saves.

A batch or instance norm and the PReLU after it, as two modules or as one call of
``torch_ext.batch_norm_prelu``, is one operator where ``norm_as_one`` says so, forward and backward:
it moves less, and finds the data of its second pass in the cache. Elsewhere it is PyTorch's norm, which
Inductor fuses with its neighbours, and our PReLU.

``docs/design.md`` has the figures, which ``make bench-compile`` measures. The environment variable
``TORCH_EXT_COMPILE`` or :func:`set_compile` chooses another policy. Other compiler backends and
``torch.export`` keep the operators whole.
"""

import os

import torch

__all__ = ["POLICIES", "compile_policy", "set_compile"]

POLICIES = ("auto", "decompose", "opaque")
"""Decide by neighbours and size, as above; always decompose; never decompose."""


def small_backward(device: torch.device) -> int:
    """Elements up to which a backward is decomposed: a call costs more than the kernel saves.

    Measured for CPUs (a call costs 20 to 25 us within compiled code); an estimate for GPUs.
    """
    if device.type != "cpu":
        return 2**20
    # Beyond the caches the number of passes over memory decides, whatever the number of threads.
    return min(2**18 * torch.get_num_threads(), 2**22)


def norm_as_one(input: torch.Tensor, from_input: bool, grad: bool) -> bool:
    """Whether a norm and the PReLU after it are one operator; for an ``input`` that is in memory anyway.

    Otherwise (an ``input`` that Inductor computes element by element) they are not: Inductor computes it
    within its loops.

    Args:
        input: the norm's.
        from_input: whether the norm's statistics are those of its input, instead of given ones.
        grad: whether there will be a backward.

    Measured for CPUs, as a layer between convolutions and alone; not yet for GPUs.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes long

    if input.device.type != "cpu":
        return False
    if not from_input and not grad:
        return False  # element by element, which Inductor fuses with what is around it
    return not statically_known_true(input.numel() <= SMALL_NORM)


SMALL_NORM = 2**14
"""Elements up to which two calls from compiled code cost more than they save."""


def compile_policy() -> str:
    """The policy for code that is compiled from now on: one of :data:`POLICIES`."""
    return _policy


def set_compile(policy: str) -> None:
    """Chooses what Inductor does with the operators from now on, as ``TORCH_EXT_COMPILE`` does.

    Code that is compiled already stays as it is; ``torch.compiler.reset()`` discards it.

    Args:
        policy: ``"auto"``, ``"decompose"`` or ``"opaque"``; see :data:`POLICIES`.

    Raises:
        ValueError: for any other policy.
    """
    global _policy
    _policy = _checked(policy, "policy")


def _checked(policy: str, name: str) -> str:
    if policy not in POLICIES:
        raise ValueError(f"torch_ext: {name} must be one of {POLICIES}, not {policy!r}")
    return policy


_policy = _checked(os.environ.get("TORCH_EXT_COMPILE") or "auto", "TORCH_EXT_COMPILE")

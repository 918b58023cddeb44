"""What torch.compile's code generator, Inductor, does with the operators.

To Inductor an operator that is not its own is a wall: nothing before it can be computed in the same
loop as something behind it. PReLU forward is two instructions an element, so it is taken apart into
the formulas that Inductor gets from ``torch.nn.functional.prelu``, and fused. The backward is worth a
kernel: ours reads and writes once, where Inductor sums the slope's gradient in a loop of its own.
Only where the gradient of the input goes straight into other sums, as in front of a normalization,
does one loop of Inductor's do all of it, and the backward is taken apart too; so are small ones.

``docs/design.md`` has the figures; ``make bench-compile`` makes them. The environment variable
``TORCH_EXT_COMPILE`` or :func:`set_compile` chooses otherwise. Other compiler backends and
``torch.export`` keep the operators whole.
"""

import os

import torch

__all__ = ["POLICIES", "compile_policy", "set_compile"]

POLICIES = ("auto", "decompose", "opaque")
"""As above, by neighbours and size; always taken apart; never."""


def small_backward(device: torch.device) -> int:
    """Elements up to which a backward is taken apart: a call costs more than the kernel saves.

    Measured for CPUs (a call costs 20 to 25 us in the middle of compiled code); a guess for GPUs.
    """
    if device.type != "cpu":
        return 2**20
    # Beyond the caches it is the number of passes over memory that counts, however many threads.
    return min(2**18 * torch.get_num_threads(), 2**22)


def compile_policy() -> str:
    """The policy that what is compiled next gets: one of :data:`POLICIES`."""
    return _policy


def set_compile(policy: str) -> None:
    """Chooses what Inductor does with the operators from here on; as ``TORCH_EXT_COMPILE``.

    What is compiled already stays as it is; ``torch.compiler.reset()`` forgets it.

    Args:
        policy: ``"auto"``, ``"decompose"`` or ``"opaque"``; see :data:`POLICIES`.

    Raises:
        ValueError: for another word.
    """
    global _policy
    _policy = _checked(policy, "policy")


def _checked(policy: str, name: str) -> str:
    if policy not in POLICIES:
        raise ValueError(f"torch_ext: {name} must be one of {POLICIES}, not {policy!r}")
    return policy


_policy = _checked(os.environ.get("TORCH_EXT_COMPILE") or "auto", "TORCH_EXT_COMPILE")

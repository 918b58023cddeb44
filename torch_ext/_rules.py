"""Rules that parts of PyTorch need for the operators, registered when a program imports those parts.

Importing them takes long, and most programs never do, so nothing here imports them first.

If a rule is refused (the interface is experimental, or another version of PyTorch has moved it),
there is a warning instead of an error, because a program may use that part of PyTorch without ever
using these operators there.
"""

import warnings
from collections.abc import Callable

import torch

from torch_ext._post_import import when_imported


def register_when_needed() -> None:
    """Registers each rule as soon as its part of PyTorch is imported, or now if it is already."""
    when_imported("torch._inductor.compile_fx", _inductor)
    when_imported("torch.distributed.tensor", _dtensor)
    when_imported("torch.onnx", _onnx)
    when_imported("torch.onnx._internal.exporter._torchlib.ops", _onnx_dynamo)


def _inductor() -> None:
    def register() -> None:
        from torch_ext import _inductor_pass

        _inductor_pass.register()

    _give(register, "their graph pass", "torch.compile will keep the operators of torch_ext whole")


def _dtensor() -> None:
    def register() -> None:
        from torch_ext import _sharding

        _sharding.register()

    _give(register, "their sharding rules", "The operators of torch_ext will not run on DTensors")


def _onnx() -> None:
    def register() -> None:
        from torch_ext import onnx

        onnx.register_symbolic()

    what = "torch.onnx.export(dynamo=False) will not know the operators of torch_ext"
    _give(register, "their symbolic function", what)


def _onnx_dynamo() -> None:
    def register() -> None:
        from torch_ext import onnx

        onnx.register_translation()

    what = "torch.onnx.export will need torch_ext.onnx.translation_table()"
    _give(register, "their translation", what)


def _give(register: Callable[[], None], rule: str, otherwise: str) -> None:
    try:
        register()
    except Exception as error:  # noqa: BLE001  (anything may be missing in another torch)
        warnings.warn(
            f"{otherwise}: torch {torch.__version__} did not take {rule} "
            f"({type(error).__name__}: {error})",
            stacklevel=3,
        )

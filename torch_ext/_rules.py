"""Rules that parts of PyTorch want for the operators: given once a program imports those parts.

Importing them takes long, and most programs never do, so nothing here is the first to do it.

A rule that a part does not take (it is experimental, or another torch has moved it) is a warning: it
must not take that part away from programs, which may not even use the operators with it.
"""

import warnings
from collections.abc import Callable

import torch

from torch_ext._post_import import when_imported


def register_when_needed() -> None:
    """Has each rule registered as soon as its part of PyTorch is imported, or now if it is."""
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

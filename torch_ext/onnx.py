"""What torch.onnx needs to know of the operators: they become the standard PRelu, with BatchNormalization
or InstanceNormalization in front of it for norm + PReLU, no custom domain.

This is registered with ``torch.onnx.export`` when a program imports it, for the exporter on
``torch.export`` and for the older one on TorchScript (``dynamo=False``). If another version of
PyTorch does not accept the registration, which gives a warning, the former can be given a table::

    program = torch.onnx.export(
        model, args, dynamo=True, custom_translation_table=torch_ext.onnx.translation_table()
    )

A runtime does not need torch_ext to run the result.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["translation_table"]

_OPERATOR = torch.ops.torch_ext.prelu.default


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The ``custom_translation_table`` with which ``torch.onnx.export`` knows the operator.

    Supports what :func:`torch_ext.prelu` supports, with static or dynamic sizes. A one-dimensional
    slope gets shape :math:`(C, 1, ...)`, since ONNX aligns shapes at their ends; if the slope is a
    parameter, this usually happens during the export. A 16-bit input with a float32 slope is cast
    to float32 and the result back, which rounds once, as the operator does.

    ONNX keeps zeros as they are, where PyTorch multiplies them by the slope: the sign of a zero may
    differ, and a zero with an infinite or NaN slope stays zero. A runtime need not implement every
    dtype: onnxruntime's CPU kernels support all except pure float64 and pure bfloat16.

    Returns:
        A new dict; entries for other operators may be added.

    Raises:
        ImportError: if onnxscript or onnx, which it needs, is not installed.
    """
    try:
        # Imported here because torch_ext works without it; Any because its annotations lack symbols.
        onnxscript: Any = importlib.import_module("onnxscript")
    except ImportError as error:
        raise ImportError(
            f"Export to ONNX needs packages that are missing ({error}): pip install onnx onnxscript"
        ) from error
    return {
        _OPERATOR: _translation(onnxscript.opset18)
    }  # the exporter's own; it converts in the end


def _translation(op: Any) -> Callable[..., Any]:
    # Runs while the exporter traces: the arguments are symbols with a shape and a dtype, which the
    # results of `op` may lack.
    def prelu(input: Any, weight: Any) -> Any:
        rank = len(input.shape)
        slope = weight
        if len(weight.shape) == 1 and rank > 2:
            slope = op.Unsqueeze(weight, list(range(1, rank - 1)))
        elif len(weight.shape) == 1 and rank == 0:
            slope = op.Squeeze(weight, [0])
        if input.dtype == weight.dtype:
            return op.PRelu(input, slope)
        return op.Cast(op.PRelu(op.Cast(input, to=weight.dtype), slope), to=input.dtype)

    return prelu


def register_translation() -> None:
    """Registers what the table says; for :mod:`torch_ext._rules`."""
    from onnxscript import opset18
    from torch.onnx._internal.exporter._torchlib._torchlib_registry import onnx_impl

    onnx_impl(_OPERATOR, trace_only=True)(_translation(opset18))


def register_symbolic() -> None:
    """The same for ``torch.onnx.export(dynamo=False)``; for :mod:`torch_ext._rules`."""
    from torch.onnx import register_custom_op_symbolic  # type: ignore[attr-defined]

    register_custom_op_symbolic("torch_ext::prelu", _symbolic, opset_version=9)
    # (The other exporter gets them as two calls: norms.py.)
    for name in ("batch_norm", "instance_norm"):
        norm = _norm_symbolic(name)
        register_custom_op_symbolic(f"torch_ext::{name}_prelu", norm, opset_version=14)


def _norm_symbolic(name: str) -> Callable[..., Any]:
    def symbolic(
        g: Any, input: Any, slope: Any, mean: Any, var: Any, weight: Any, bias: Any, *settings: Any
    ) -> Any:
        from torch.onnx import symbolic_opset9, symbolic_opset14

        norm = getattr(symbolic_opset14, name, None) or getattr(symbolic_opset9, name)
        z = norm(g, input, weight, bias, mean, var, *settings, False)
        z.setType(input.type())
        return _symbolic(g, z, slope)

    return symbolic


def _symbolic(g: Any, input: Any, weight: Any) -> Any:
    from torch.onnx import symbolic_opset9

    def prelu(input: Any) -> Any:
        if (
            weight.type().dim() == 0
        ):  # PyTorch's function would give it more dimensions than the input has
            return g.op("PRelu", input, weight)
        return symbolic_opset9.prelu(g, input, weight)

    narrow, wide = input.type().dtype(), weight.type().dtype()
    if narrow == wide:
        return prelu(input)
    wide_input = g.op("Cast", input, to_i=_ONNX_TYPES[wide])
    return g.op("Cast", prelu(wide_input), to_i=_ONNX_TYPES[narrow])


_ONNX_TYPES = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}

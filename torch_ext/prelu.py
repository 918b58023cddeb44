"""PReLU as a function and as a module. The operator, its autograd and its checks are in C++."""

from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn.modules.activation import PReLU as PyTorchPReLU  # programs rebind torch.nn.PReLU

__all__ = ["PReLU", "prelu"]

if (PyTorchPReLU.__module__, PyTorchPReLU.__qualname__) != ("torch.nn.modules.activation", "PReLU"):
    raise ImportError(
        f"torch.nn.modules.activation.PReLU is not PyTorch's but {PyTorchPReLU!r}, so that torch_ext "
        "cannot tell PyTorch's layers: import torch_ext before it is replaced",
        name="torch_ext",
    )

# Looked up once: finding it through torch.ops takes a noticeable part of a small call. The packet
# rather than its only overload, because TorchScript knows packets only.
_prelu: Callable[[Tensor, Tensor], Tensor] = torch.ops.torch_ext.prelu
# What the packet calls in the end, where this torch calls it so. Calling it directly takes a fifth
# off a small call; Dynamo and TorchScript, which cannot look into it, get the packet.
_operator: Callable[[Tensor, Tensor], Tensor] = getattr(_prelu, "_op", _prelu)


def _prelu_now(input: Tensor, weight: Tensor) -> Tensor:
    """The operator, with PyTorch's errors where the operator's own binding gives others."""
    try:
        return _operator(input, weight)
    except RuntimeError as error:
        for position, (name, value) in enumerate((("input", input), ("weight", weight)), 1):
            if not isinstance(value, Tensor) and not hasattr(type(value), "__torch_function__"):
                raise TypeError(
                    f"prelu(): argument '{name}' (position {position}) must be Tensor, "
                    f"not {type(value).__name__}"
                ) from None
        if "Named tensors" in str(error):  # which newer versions of PyTorch do not have
            raise RuntimeError(
                "prelu(): named dimensions are not supported: drop the names by rename(None)"
            ) from None
        raise


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    r"""PReLU with the slope ``weight``, elementwise: a fused :func:`torch.nn.functional.prelu`.

    With :math:`g` the gradient of the output,

    .. math::
        y = \begin{cases} x & x > 0 \\ w x & \text{else} \end{cases} \qquad
        \frac{\partial L}{\partial x} = \begin{cases} g & x > 0 \\ w g & \text{else} \end{cases}
        \qquad \frac{\partial L}{\partial w} =
        \sum \begin{cases} 0 & x > 0 \\ x g & \text{else} \end{cases}

    (He et al., "Delving Deep into Rectifiers", arXiv:1502.01852, equations 1, 9 and 10, with zero
    and NaN on the side of the slope, as in PyTorch). A select chooses the side, so the slope may
    have any value: negative, above one, infinite. The backward is one pass, which also computes the
    sum.

    Args:
        input: shape :math:`()`, :math:`(S)` or :math:`(N, C, *)`, with any strides; float64,
            float32, float16 or bfloat16.
        weight: one slope, shape :math:`()` or :math:`(1)`, or one per channel, shape :math:`(C)`.
            Of ``input``'s dtype; or float32 with a 16-bit ``input``, and then products are formed
            in float32 and the gradient of ``weight`` is float32.

    Returns:
        A tensor of ``input``'s shape, dtype and memory format, differentiable in both arguments
        any number of times.

    Raises:
        TypeError: if an argument is not a tensor.
        RuntimeError: if shapes, dtypes or devices do not fit together, in the words of
            :func:`torch.nn.functional.prelu`.
        NotImplementedError: for other dtypes than those above.

    Example::

        >>> torch_ext.prelu(torch.tensor([-2.0, 0.5, 3.0]), torch.tensor(0.25))
        tensor([-0.5000,  0.5000,  3.0000])
    """
    if is_scripting() or torch.compiler.is_dynamo_compiling():
        return _prelu(input, weight)
    else:
        return _prelu_now(input, weight)


class PReLU(PyTorchPReLU):
    """:class:`torch.nn.PReLU` with the fused operator; :func:`torch_ext.prelu` has the formulas.

    Takes the same arguments, ``num_parameters=1, init=0.25, device=None, dtype=None``, and holds
    the same one parameter, ``weight``: checkpoints of either load into the other with
    ``strict=True``, and ``isinstance(module, nn.PReLU)`` holds. Only :meth:`forward` differs.

    Keep ``weight`` out of weight decay, which would pull the activation towards ReLU.

    Example::

        >>> torch_ext.PReLU(64)(torch.randn(8, 64, 28, 28)).shape
        torch.Size([8, 64, 28, 28])
    """

    _torch_ext_original = PyTorchPReLU  # what restore_prelu makes of it; see _twins.py

    def forward(self, input: Tensor) -> Tensor:
        """Runs the forward pass."""
        if is_scripting() or torch.compiler.is_dynamo_compiling():
            return _prelu(input, self.weight)
        elif isinstance(input, fx.Proxy):
            return _traced(self, input)
        else:
            return _prelu_now(input, self.weight)


# The tracer is asked about this layer in place of ours.
_A_LAYER_OF_PYTORCH = PyTorchPReLU(device="meta")


def _traced(layer: PReLU, input: fx.Proxy) -> fx.Proxy:
    """One call of the layer in the graph, if the tracer would write one for ``nn.PReLU``.

    A tracer decides by the module that defines a layer's class: it writes a call for layers of
    torch.nn, and traces into the forward of others. Ours is among the others, and makes up for it.
    """
    tracer = input.tracer
    if layer.__module__ == __name__ and isinstance(tracer, fx.Tracer) and tracer.root is not layer:
        path = tracer.path_of_module(layer)
        if tracer.is_leaf_module(_A_LAYER_OF_PYTORCH, path):
            return tracer.create_proxy("call_module", path, (input,), {})
    return _prelu_now(input, layer.weight)  # type: ignore[arg-type, return-value]

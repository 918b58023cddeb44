"""What the dispatcher knows about the two operators: schemas, keys, tags, fake kernels."""

import pytest
import torch
from installed import LIBRARY, run_python
from reference import assert_same_bits

import torch_ext  # noqa: F401  (registers the operators)

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


def _has_kernel(name, key, library="torch_ext"):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{library}::{name}", key)


AUTOCAST_KEYS = [name for name in torch._C.DispatchKey.__members__ if name.startswith("Autocast")]


def test_autocast_has_a_kernel_wherever_stock_has_one():
    stocks, ours = (
        {key for key in AUTOCAST_KEYS if _has_kernel("prelu", key, library)}
        for library in ("aten", "torch_ext")
    )
    assert {"AutocastCPU", "AutocastCUDA", "AutocastXPU"} <= stocks
    assert stocks <= ours


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_devices_without_kernels_of_ours_take_float32_slopes_too(dtype):
    """What an XPU calls, here on CPU tensors. A CPU build beside a CUDA torch is such a case."""
    elsewhere = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)
    prelu = torch.ops.torch_ext.prelu.default
    input, weight = torch.randn(2, 3, 50).to(dtype), torch.tensor([0.3, -1.7, 2.9])
    assert_same_bits(prelu.redispatch(elsewhere, input, weight), prelu(input, weight))
    alike = weight.to(dtype)
    assert_same_bits(prelu.redispatch(elsewhere, input, alike), prelu(input, alike))
    with pytest.raises(RuntimeError, match="Type promoting not supported"):
        prelu.redispatch(elsewhere, input, weight.double())


# ---- The library alone -------------------------------------------------------------------------


def test_loading_the_library_alone_gives_the_whole_operator():
    """No line of the Python package runs here; a C++ program gets the same."""
    run_python(f"""
        import sys, torch
        torch.ops.load_library({str(LIBRARY)!r})
        x = torch.tensor([[-2.0, 0.5], [3.0, -4.0]], requires_grad=True)
        w = torch.tensor([0.25, 2.0], requires_grad=True)
        y = torch.ops.torch_ext.prelu(x, w)
        assert y.tolist() == [[-0.5, 0.5], [3.0, -8.0]]
        grads = torch.autograd.grad(y.sum(), (x, w), create_graph=True)
        assert grads[0].tolist() == [[0.25, 1.0], [1.0, 2.0]] and grads[1].tolist() == [-2.0, -4.0]
        assert torch.autograd.grad(grads[0].sum(), w)[0].tolist() == [1.0, 1.0]
        assert torch.ops.torch_ext.prelu(x.to("meta"), w.to("meta")).shape == (2, 2)
        prelu = torch.ops.torch_ext.prelu
        assert torch.func.vmap(prelu)(x[:, :, None], w[:, None]).shape == (2, 2, 1)
        with torch.autocast("cpu"):
            assert torch.ops.torch_ext.prelu(x, w).dtype == torch.bfloat16
        assert "torch_ext" not in sys.modules
    """)

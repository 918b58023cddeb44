"""With torch.set_flush_denormal(True), subnormal numbers are zeros: which side of PReLU they are on
is then PyTorch's choice, too. (The flag belongs to a thread; here all work is one thread's.)"""

import pytest
import torch
import torch.nn.functional as F
from cases import forward_backward
from reference import assert_same_bits

import torch_ext  # noqa: F401  (registers the operators)

pytestmark = pytest.mark.contract

prelu = torch.ops.torch_ext.prelu


@pytest.fixture
def flushing():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such flag")
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


def _arguments(dtype, layout):
    """Subnormal, tiny normal and ordinary numbers of both signs, made before the flag is set."""
    info = torch.finfo(dtype)
    magnitudes = [info.tiny * info.eps, info.tiny / 2, info.tiny, info.tiny * 4, 0.5, 1.0, 0.0]
    values = torch.tensor([*magnitudes, *(-m for m in magnitudes)], dtype=torch.float64).to(dtype)
    x, g = values.repeat_interleave(14), values.repeat(14)
    if layout == "planes":
        return x.repeat(2, 3, 1), g.repeat(2, 3, 1), torch.tensor([0.25, -2.0, 1.0], dtype=dtype)
    shape = (196, 3)
    return (
        x.view(196, 1).expand(shape).contiguous(),
        g.view(196, 1).expand(shape).contiguous(),
        torch.tensor([0.25, -2.0, 1.0], dtype=dtype),
    )


@pytest.mark.parametrize("layout", ("planes", "columns"))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.float16, torch.bfloat16))
def test_subnormal_numbers_are_on_pytorchs_side(dtype, layout, request):
    x, g, w = _arguments(dtype, layout)
    plain = forward_backward(prelu, x, w, g)
    request.getfixturevalue("flushing")
    ours = forward_backward(prelu, x, w, g)
    pytorchs = forward_backward(F.prelu, x, w, g)
    torch.set_flush_denormal(False)  # comparisons are to see every bit
    assert_same_bits(ours[0], pytorchs[0])
    assert_same_bits(ours[1], pytorchs[1])
    # float16 has no subnormal numbers in float32, where arithmetic happens.
    changed = not all(map(torch.equal, ours[:2], plain[:2]))
    assert changed == (dtype != torch.float16)


@pytest.mark.parametrize("layout", ("planes", "columns"))
def test_a_positive_subnormal_counts_as_zero_in_every_result(layout, request):
    """The case that a user met: bfloat16, slope 0.25. PyTorch's input gradient is 0.25, not 1."""
    shape = (1, 1, 50) if layout == "planes" else (50, 2)
    x = torch.full(shape, torch.finfo(torch.bfloat16).tiny / 2, dtype=torch.bfloat16)
    w = torch.full((shape[1],), 0.25, dtype=torch.bfloat16)
    assert (x > 0).all()
    assert forward_backward(prelu, x, w, torch.ones_like(x))[1].eq(1).all()
    request.getfixturevalue("flushing")
    _, grad_input, grad_weight = forward_backward(prelu, x, w, torch.ones_like(x))
    assert grad_input.eq(0.25).all() and grad_weight.eq(0).all()

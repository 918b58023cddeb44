"""One small problem of each kind, of whole numbers: every result has one right answer.

The first proof on a new GPU (`make gpu`), and what compute-sanitizer watches. Tensors are made and compared on
the CPU: on the device run our kernels and copies alone.
"""

import pytest
import torch

import torch_ext  # noqa: F401  (registers the operators)

prelu, prelu_backward = torch.ops.torch_ext.prelu, torch.ops.torch_ext.prelu_backward

PAIRS = [(t, t) for t in (torch.float64, torch.float32, torch.bfloat16, torch.float16)]
PAIRS += [(torch.bfloat16, torch.float32), (torch.float16, torch.float32)]
# Each traversal, with one split and with many, whole packs and tails, sums of one block and of many.
PROBLEMS = {
    "planes": (2, 3, 40, 40),
    "odd planes": (3, 5, 29, 31),
    "one long plane": (1, 2, 70001),
    "tiny planes": (9, 16, 7, 7),
    "many tiny planes": (700, 3, 5, 5),
    "channels last": (3, 64, 9, 9),
    "3 channels last": (4, 3, 61, 33),
    "transposed": (6, 10, 5, 8),
    "misaligned": (2, 3, 30, 30),
    "misaligned rows": (400, 24),
    "wide rows": (5, 4099),
    "tall rows": (5003, 7),
    "one slope": (3, 33333),
    "one element": (1,),
    "expanded gradient": (3, 5, 20, 21),
}


def whole_numbers(shape, largest, kind, dtype):
    """In the problem's layout, on the CPU; float64 holds the same values."""
    values = torch.randint(-largest, largest + 1, shape).to(dtype)
    if "channels last" in kind:
        return values.to(memory_format=torch.channels_last)
    if kind == "transposed":
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    return values


def on(device, values, kind):
    if kind.startswith("misaligned"):  # one element into a block of memory
        block = torch.empty(values.numel() + 1, dtype=values.dtype)
        block[1:] = values.flatten()
        return block.to(device)[1:].view(values.shape)
    return values.to(device)


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_outputs_and_gradients_are_exact(kind, dtypes, device):
    torch.manual_seed(0)
    shape = PROBLEMS[kind]
    x, g = (whole_numbers(shape, n, kind, dtypes[0]) for n in (4, 3))
    slopes = 1 if kind.startswith("one ") and len(shape) < 3 else shape[1]
    weight = (torch.arange(slopes) % 17 - 8).to(dtypes[1]) / 4
    if kind == "one element":
        x, g = -x.abs() - 1, g.abs() + 1
    if kind == "expanded gradient":
        g = g.flatten()[:1].to(device).expand(shape)
    args = on(device, x, kind), weight.to(device)
    gradient = g if kind == "expanded gradient" else on(device, g, kind)
    y = prelu(*args)
    dx, dw = prelu_backward(gradient, *args, [True, True])
    only_dx, _ = prelu_backward(gradient, *args, [True, False])
    _, only_dw = prelu_backward(gradient, *args, [False, True])

    x, g, w = x.double(), g.cpu().double(), weight.double().view(-1, *[1] * max(len(shape) - 2, 0))
    positive = x > 0
    assert not positive.all() and (positive.any() or x.numel() == 1)
    others = [d for d in range(len(shape)) if slopes == 1 or d != 1]
    for name, exact, dtype, actual in (
        ("y", torch.where(positive, x, w * x), dtypes[0], y),
        ("dx", torch.where(positive, g, w * g), dtypes[0], dx),
        ("dw", torch.where(positive, 0, x * g).sum(others).view(-1), dtypes[1], dw),
    ):
        assert exact.norm() > 0, name
        torch.testing.assert_close(actual.cpu(), exact.to(dtype), rtol=0, atol=0, msg=name)
    assert torch.equal(only_dx.cpu(), dx.cpu()) and torch.equal(only_dw.cpu(), dw.cpu())

"""Calls each path of the operators 10,000 times and prints, as JSON, how memory grew meanwhile.

For test_memory_growth.py, which runs it in a process of its own, because what other tests have freed
would hide small leaks, and without malloc's caches for each thread, which count as given out.
"""

import array
import ctypes
import itertools
import json
import statistics
from pathlib import Path

import torch

import torch_ext

WARM_UP = 2000
CALLS = 10_000
STEP = 1000
PAGE = 4  # KiB

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p


class Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            [
                "arena",
                "ordblks",
                "smblks",
                "hblks",
                "hblkhd",
                "usmblks",
                "fsmblks",
                "uordblks",
                "fordblks",
                "keepcost",
            ]
        )
    ]


libc.mallinfo2.restype = Mallinfo2


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def allocated():
    """KiB that malloc has given out, which shows what fits into holes of the heap, too."""
    info = libc.mallinfo2()
    return (info.uordblks + info.hblkhd) / 1024


def slope(values):
    """The median of the slopes between all pairs of samples (Theil and Sen)."""
    pairs = itertools.combinations(enumerate(values), 2)
    return statistics.median((b - a) / (j - i) for (i, a), (j, b) in pairs)


def growth(call):
    """KiB per 1,000 calls."""
    samples = [array.array("d", range(CALLS // STEP)) for _ in range(2)]  # no memory of their own
    for _ in range(WARM_UP):
        call()
    for i in range(CALLS // STEP):
        for _ in range(STEP):
            call()
        samples[0][i] = resident()
        samples[1][i] = allocated()
    return {"resident": slope(samples[0]), "allocated": slope(samples[1])}


# ---- What is called ----------------------------------------------------------------------------

INPUT = torch.randn(2, 4, 3, 3, requires_grad=True)
HALF = torch.randn(2, 4, 3, 3, dtype=torch.float16).to(memory_format=torch.channels_last)
WEIGHT = torch.full((4,), 0.25, requires_grad=True)
MODULE = torch_ext.PReLU(4)
prelu_backward = torch.ops.torch_ext.prelu_backward


def raises(call, *arguments):
    try:
        call(*arguments)
    except (RuntimeError, NotImplementedError):
        return
    raise AssertionError("no error")


def forward():
    torch_ext.prelu(INPUT.detach(), WEIGHT.detach())
    torch_ext.prelu(HALF, WEIGHT.detach())


def backward():
    torch.autograd.grad(torch_ext.prelu(INPUT, WEIGHT).sum(), (INPUT, WEIGHT))


def backward_of_a_module():
    MODULE(INPUT).sum().backward()


def graph_without_a_backward():
    torch_ext.prelu(INPUT, WEIGHT)


def backward_as_an_operator():
    prelu_backward(HALF, HALF, WEIGHT.detach(), [True, True])
    prelu_backward(HALF, HALF, WEIGHT.detach(), [False, True])


def second_order():
    output = torch_ext.prelu(INPUT, WEIGHT).sum()
    grads = torch.autograd.grad(output, (INPUT, WEIGHT), create_graph=True)
    torch.autograd.grad(sum(grad.sum() for grad in grads), (INPUT, WEIGHT))


def wrong_arguments():
    raises(torch_ext.prelu, INPUT, torch.ones(3))
    raises(torch_ext.prelu, INPUT, torch.ones(4, dtype=torch.float64))
    raises(torch_ext.prelu, torch.ones(2, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    raises(prelu_backward, torch.ones(2), HALF, WEIGHT.detach(), [True, True])


def backward_twice():
    output = torch_ext.prelu(INPUT, WEIGHT).sum()
    torch.autograd.grad(output, (INPUT, WEIGHT))
    raises(torch.autograd.grad, output, (INPUT, WEIGHT))


def override():
    with torch_ext.override_aten():
        torch.nn.functional.prelu(INPUT, WEIGHT)


PATHS = (
    forward,
    backward,
    backward_of_a_module,
    graph_without_a_backward,
    backward_as_an_operator,
    second_order,
    wrong_arguments,
    backward_twice,
    override,
)

kept = []


def leak_in_python():
    kept.append(object())


def leak_in_c():
    libc.malloc(8)


CANARIES = (leak_in_python, leak_in_c)

if __name__ == "__main__":
    print(json.dumps({call.__name__: growth(call) for call in PATHS + CANARIES}))

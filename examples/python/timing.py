"""Part 3: time per forward and backward of one PReLU layer, PyTorch's against ours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import Checks, bits_equal, new_table
from rich.console import Console
from rich.progress import track
from torch.nn import functional as F

import torch_ext

# (what, shape, channels-last?); one slope per channel, float32.
CASES = [
    ("IResNet stage 1", (8, 64, 112, 112), False),
    ("IResNet stage 3", (64, 256, 14, 14), False),
    ("IResNet stage 3", (64, 256, 14, 14), True),
    ("MTCNN PNet", (1, 10, 360, 360), False),
    ("MTCNN ONet", (32, 128, 3, 3), False),
    ("features (N, C)", (4096, 512), False),
]
QUICK_CASES = [("small", (8, 32, 14, 14), False), ("features (N, C)", (256, 64), False)]
REPEATS = 7
Operator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def seconds(function: Callable[[], object], count: int) -> float:
    """Time of one call, averaged over `count` calls."""
    start = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - start) / count


def interleaved(functions: list[Callable[[], object]], target: float) -> list[float]:
    """Seconds per call of each function in its fastest repeat; repeats take turns.

    The fastest, because other programs only ever delay one, and may delay most of them.
    """
    # Least of five: first calls pay for memory and thread start, and a busy machine delays any.
    counts = [
        max(1, int(target / min(seconds(function, 1) for _ in range(5)))) for function in functions
    ]
    rounds = [
        [seconds(f, n) for f, n in zip(functions, counts, strict=True)] for _ in range(REPEATS)
    ]
    return [min(column) for column in zip(*rounds, strict=True)]


def measure(shape: tuple[int, ...], channels_last: bool, target: float) -> tuple[list[float], bool]:
    """Time [PyTorch's forward, our forward, PyTorch's backward, our backward]; compare bits."""
    torch.manual_seed(0)
    x, g = torch.randn(shape), torch.randn(shape)
    if channels_last:
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    x.requires_grad_()
    w = torch.linspace(-0.5, 0.5, shape[1]).requires_grad_()
    operators: list[Operator] = [F.prelu, torch_ext.prelu]
    outputs = [operator(x, w) for operator in operators]

    def backward(y: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
        return lambda: torch.autograd.grad(y, (x, w), g, retain_graph=True)

    calls = [backward(y) for y in outputs]
    same = bits_equal(*outputs) and bits_equal(*(call()[0] for call in calls))
    forward = interleaved([lambda o=o: o(x, w) for o in operators], target)
    return forward + interleaved(calls, target), same


def run(console: Console, output: Path, quick: bool) -> Checks:
    """Run part 3; `output` is not used, the result is a table."""
    checks = Checks(console)
    cases, target = (QUICK_CASES, 0.002) if quick else (CASES, 0.05)
    table = new_table("One PReLU layer, float32, one slope per channel: time per call in µs")
    table.add_column("layer", no_wrap=True)
    table.add_column("input", no_wrap=True)
    for what in ("forward", "backward"):
        for heading in (f"{what}\nPyTorch", "\nours", "\nratio"):
            table.add_column(heading, justify="right", no_wrap=True)
    equal = []
    for name, shape, channels_last in track(cases, "timing", console=console, transient=True):
        times, same = measure(shape, channels_last, target)
        equal.append(same)
        fs, fo, bs, bo = times
        table.add_row(
            name,
            "×".join(map(str, shape)) + (" cl" if channels_last else ""),
            *(f"{fs * 1e6:.1f}", f"{fo * 1e6:.1f}", f"{fs / fo:.2f}×"),
            *(f"{bs * 1e6:.1f}", f"{bo * 1e6:.1f}", f"{bs / bo:.2f}×"),
        )
    console.print(table)
    console.print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}; fastest of {REPEATS} interleaved repeats.\n"
        "ratio: PyTorch / ours, above 1 means that ours is faster; cl: channels-last.\n"
        "A small table for a first look; benchmarks/ measures with care.",
        highlight=False,
    )
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores + 1:
        console.print(
            f"[yellow]The machine is busy (load {load:.1f} on {cores} cores): repeat before use."
        )
    checks.expect(all(equal), "outputs and input gradients of the timed calls are bit-equal")
    return checks

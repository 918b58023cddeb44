"""Times PReLU forward and backward: torch_ext, stock eager, and a plain copy, interleaved.

Every figure is the median of rounds in which all contenders run in turn, in one process; results are
compared before anything is timed. Rates count the bytes that must move: 2 tensors forward (x, y), 3
backward (x, g, the gradient of x).
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import torch_ext

CASES = Path(__file__).with_name("cases.txt")
MIN_ROUND_SECONDS = 0.02  # calls are repeated until a round takes that long


@dataclass
class Case:
    name: str
    shape: tuple[int, ...]
    layout: str
    slopes: str
    dtype: str

    @property
    def title(self) -> str:
        return (
            f"{self.name} {'x'.join(map(str, self.shape))} {self.layout} {self.slopes} {self.dtype}"
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """input, weight and grad_output."""
        data, _, slope = self.dtype.partition("/")
        dtype, weight_dtype = getattr(torch, data), getattr(torch, slope or data)
        torch.manual_seed(0)
        x = torch.randn(self.shape).to(dtype)
        if self.layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        weight = torch.rand(self.shape[1] if self.slopes == "channel" else 1).to(weight_dtype)
        return x.requires_grad_(), weight.requires_grad_(), torch.randn_like(x)


def read_cases() -> list[Case]:
    rows = [line.split() for line in CASES.read_text().splitlines()]
    return [
        Case(name, tuple(map(int, shape.split("x"))), *rest)
        for name, shape, *rest in (row for row in rows if row and row[0] != "#")
    ]


def stock_prelu(x: Tensor, weight: Tensor) -> Tensor:
    """Stock refuses a float32 weight with 16-bit data; a cast is what autocast adds there."""
    return functional.prelu(x, weight.to(x.dtype))


def medians(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds per call of each, from rounds in which they take turns."""
    calls = {}
    for name, run in contenders.items():
        run()
        start = time.perf_counter()
        run()
        calls[name] = max(1, round(MIN_ROUND_SECONDS / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                run()
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return {name: statistics.median(values) for name, values in seconds.items()}


def check(case: Case, x: Tensor, weight: Tensor, grad_output: Tensor) -> None:
    """Output and input gradient have stock's bits (mixed dtypes have no stock to compare with)."""
    if "/" in case.dtype:
        return
    for ours, stock in zip(
        (y := torch_ext.prelu(x, weight), *torch.autograd.grad(y, x, grad_output)),
        (y := functional.prelu(x, weight), *torch.autograd.grad(y, x, grad_output)),
        strict=True,
    ):
        if not torch.equal(ours, stock):
            raise SystemExit(f"{case.title}: results differ from stock; nothing was timed")


def measure(case: Case, rounds: int) -> dict[str, object]:
    x, weight, grad_output = case.tensors()
    check(case, x, weight, grad_output)
    outputs = {"stock": stock_prelu(x, weight), "ours": torch_ext.prelu(x, weight)}

    def backward(name: str) -> Callable[[], object]:
        return lambda: torch.autograd.grad(
            outputs[name], (x, weight), grad_output, retain_graph=True
        )

    with torch.no_grad():
        forward_seconds = medians(
            {
                "stock": lambda: stock_prelu(x, weight),
                "ours": lambda: torch_ext.prelu(x, weight),
                "copy": lambda: x.clone(),
            },
            rounds,
        )
    backward_seconds = medians({"stock": backward("stock"), "ours": backward("ours")}, rounds)
    return {
        "case": case.title,
        "bytes": x.numel() * x.element_size(),
        "forward": forward_seconds,
        "backward": backward_seconds,
    }


def ratio(times: dict[str, float]) -> float:
    return times["stock"] / times["ours"]


def table(rows: list[dict]) -> str:
    lines = [
        f"{'case':66} {'forward':>8} {'of copy':>8} {'backward':>9} {'GB/s':>6}",
        f"{'':66} {'× stock':>8} {'':>8} {'× stock':>9} {'':>6}",
    ]
    for row in rows:
        forward, backward = row["forward"], row["backward"]
        lines.append(
            f"{row['case']:66} {ratio(forward):8.2f} {forward['copy'] / forward['ours']:8.0%} "
            f"{ratio(backward):9.1f} {3 * row['bytes'] / backward['ours'] / 1e9:6.1f}"
        )
    for what in ("forward", "backward"):
        ratios = [ratio(row[what]) for row in rows]
        lines.append(
            f"{what}: geometric mean {statistics.geometric_mean(ratios):.2f} × stock, "
            f"worst {min(ratios):.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose title has TEXT")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    arguments = parser.parse_args()

    cases = [case for case in read_cases() if arguments.only in case.title]
    rows = []
    for done, case in enumerate(cases):
        if sys.stderr.isatty():
            print(
                f"\r[{done + 1}/{len(cases)}] {case.title:70}", end="", file=sys.stderr, flush=True
            )
        rows.append(measure(case, arguments.rounds))
    if sys.stderr.isatty():
        print("\r" + " " * 90 + "\r", end="", file=sys.stderr)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {capability}\n")
    print(table(rows))
    if arguments.json:
        record = {"build": torch_ext.build_info(), "capability": capability, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

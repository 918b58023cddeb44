"""Norm and PReLU as one operator, layer by layer; a part of benchmarks/prelu.py.

Against PyTorch's norm with our PReLU ("apart"), PyTorch's norm and PReLU ("stock") and torch.compile of
these ("compile"). All take turns in one process after their results were compared. A step is forward and
backward with a fresh graph, of the batch's statistics; inference has given statistics and no graph. The
rate counts the bytes of 5 tensors (x, y; x, g, the gradient of x), the least that a step can move.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import memory
import torch
from interleaving import Run, Timing, interleaved
from layer_cases import Case, cases_of
from layer_report import Target
from rich import box
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import torch_ext

CASES = Path(__file__).with_name("norm_cases.txt")
TENSORS_AT_ONCE = 10  # of full size that a row may need
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the norm of a result
Layer = Callable[..., Tensor]


@dataclass
class Row:
    """What was measured of one layer; in the record as a line."""

    case: Case
    step: Timing
    inference: Timing
    saved: dict[str, int]  # bytes held between forward and backward

    @property
    def of_copy(self) -> float:
        """The rate of a step as a share of a copy's."""
        return 5 / 2 * self.inference.seconds["copy"] / self.step.seconds["ours"]

    @property
    def was_disturbed(self) -> bool:
        return self.step.disturbed or self.inference.disturbed


def layers_of(case: Case, compiled: bool) -> dict[str, Layer]:
    """Functions of x, slope, running mean and variance, weight, bias, and whether x has the statistics."""
    instance = case.name == "instance"
    norm = functional.instance_norm if instance else functional.batch_norm

    def apart(x: Tensor, slope: Tensor, *rest: object) -> Tensor:
        return torch_ext.prelu(norm(x, *rest), slope)

    def stock(x: Tensor, slope: Tensor, *rest: object) -> Tensor:
        z = norm(x, *rest)
        return functional.prelu(z, slope.to(z.dtype))

    ours = torch_ext.instance_norm_prelu if instance else torch_ext.batch_norm_prelu
    layers: dict[str, Layer] = {"stock": stock, "apart": apart, "ours": ours}
    if compiled:
        torch._dynamo.reset()
        layers["compile"] = torch.compile(stock, dynamic=False)
    return layers


def arguments_of(case: Case) -> tuple[Tensor, ...]:
    """Running mean and variance, weight, bias."""
    channels, dtype = case.shape[1], case.weight_dtype
    weight, bias = torch.rand(channels, dtype=dtype) + 0.5, torch.randn(channels, dtype=dtype)
    running = (torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype))
    return *running, weight.requires_grad_(), bias.requires_grad_()


def check(case: Case, found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Ends the program unless outputs and the gradients of the parameters are right up to rounding.

    Those of PyTorch in float64 are expected; in float32 its sums are wrong by 1e-3 in the largest rows. (The
    input's gradient jumps where a value is next to zero, and rounding decides on which side.)
    """
    for actual, right in zip(found, expected, strict=True):
        error = float((actual.double() - right).norm() / right.norm())
        if not error <= TOLERANCES[case.data_dtype]:
            raise SystemExit(f"{case.title}: ours differs by {error:.1e}; nothing was timed")


def doubles(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(
        tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors
    )


def measure(case: Case, rounds: int, compiled: bool) -> Row:
    x, slope, grad_output = case.tensors()
    others = arguments_of(case)
    wanted = (x, slope, *others[2:])
    layers = layers_of(case, compiled)

    def step(layer: Layer) -> Run:
        return lambda: torch.autograd.grad(layer(x, slope, *others, True), wanted, grad_output)

    def inference(layer: Layer) -> Run:
        return lambda: layer(x, slope, *others, case.name == "instance")

    with torch.no_grad():
        passes = {name: inference(layer) for name, layer in layers.items()}
        right = layers["stock"](*doubles(x, slope, *others), case.name == "instance")
        check(case, (passes["ours"](),), (right,))
        inference_times = interleaved({**passes, "copy": lambda: x.clone()}, rounds)
    steps = {name: step(layer) for name, layer in layers.items()}
    arguments = doubles(x, slope, *others)
    y = layers["stock"](*arguments, True)
    right = torch.autograd.grad(y, (arguments[1], *arguments[4:]), grad_output.double())
    check(case, steps["ours"]()[1:], right)
    del arguments, y, right
    saved = {
        name: memory.saved_bytes(lambda layer=layer: layer(x, slope, *others, True))
        for name, layer in layers.items()
    }
    return Row(case, interleaved(steps, rounds), inference_times, saved)


def chosen_cases(only: str) -> list[Case]:
    return [case for case in cases_of(CASES) if only in f"norm {case.title}"]


# ---- The report ----------------------------------------------------------------------------------


def targets(rows: list[Row]) -> list[Target]:
    def ratios(rival: str, dtype: str = "", part: str = "step") -> list[tuple[float, str]]:
        timings = [
            (getattr(row, part), row.case) for row in rows if row.case.dtype.startswith(dtype)
        ]
        return [(t.ratio(rival), case.title) for t, case in timings if rival in t.seconds]

    found = [
        Target("norm + PReLU, step, float32", ratios("apart", "float32"), 2.5, 1.1),
        Target("norm + PReLU, step, bfloat16", ratios("apart", "bfloat16"), 1.5, 1.1),
        Target("norm + PReLU, step against torch.compile", ratios("compile"), 1.3, 1.0),
        Target("norm + PReLU, inference", ratios("apart", part="inference"), 1.3, 1.0),
    ]
    return [target for target in found if target.ratios]


def table(rows: list[Row]) -> Table:
    shown = Table(
        title="\nnorm and PReLU as one operator",
        box=box.SIMPLE_HEAD,
        caption="× apart: PyTorch's norm, our PReLU. step: forward and backward. GB/s: of 5 tensors a step. "
        "saved: MB kept for the backward (one operator/apart). *: other processes disturbed it",
    )
    shown.add_column("layer", no_wrap=True)
    for heading in (
        *("MB", "step\nms", "\n× PyTorch", "\n× apart", "\n× compile", "\nGB/s", "\nof copy"),
        *("inference\n× apart", "\n× compile", "saved"),
    ):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(*cells(row))
    return shown


def cells(row: Row) -> list[str]:
    compiled = "compile" in row.step.seconds
    seconds = row.step.seconds["ours"]
    ratio = "{:.2f}".format
    saved = "/".join(f"{row.saved[name] / 1e6:.1f}" for name in ("ours", "apart"))
    return [
        row.case.title + (" *" if row.was_disturbed else ""),
        f"{row.case.bytes / 1e6:.1f}",
        f"{seconds * 1e3:.2f}",
        ratio(row.step.ratio("stock")),
        ratio(row.step.ratio("apart")),
        ratio(row.step.ratio("compile")) if compiled else "",
        f"{5 * row.case.bytes / seconds / 1e9:.1f}",
        f"{row.of_copy:.0%}",
        ratio(row.inference.ratio("apart")),
        ratio(row.inference.ratio("compile")) if compiled else "",
        saved,
    ]


def record(rows: list[Row]) -> list[dict]:
    return [{"title": row.case.title, "bytes": row.case.bytes, **asdict(row)} for row in rows]

"""Rows of measurements as a table, as a list of targets, as JSON and as a picture."""

import platform
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from interleaving import Timing
from layer_cases import Case
from memory import Memory
from rich import box
from rich.console import Console
from rich.table import Table

import torch_ext

CALL_ELEMENTS = 64 << 10  # below, the time is that of the call instead of the kernel
LARGE_BYTES = 8 << 20  # larger tensors have the targets of large ones
NOISE = 0.03


@dataclass
class Row:
    case: Case
    forward: Timing
    backward: Timing
    step: Timing
    backward_memory: dict[str, Memory]

    def rate(self, timing: Timing, tensors: int, who: str = "ours") -> float:
        """GB/s of useful bytes."""
        return tensors * self.case.bytes / timing.seconds[who] / 1e9

    @property
    def is_call(self) -> bool:
        return self.case.numel < CALL_ELEMENTS

    @property
    def is_large(self) -> bool:
        return self.case.bytes > LARGE_BYTES

    @property
    def was_disturbed(self) -> bool:
        return any(timing.disturbed for timing in (self.forward, self.backward, self.step))

    @property
    def is_small_planes_16_bit(self) -> bool:
        planes = self.case.layout == "contiguous" and self.case.shape[2:] in ((7, 7), (5, 5))
        return planes and self.case.dtype in ("bfloat16", "float16")


@dataclass
class Scaling:
    case: Case
    forward: float
    backward: float


@dataclass
class Machine:
    processor: str
    threads: int
    capability: str
    torch: str
    build: dict

    @classmethod
    def here(cls) -> "Machine":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
        return cls(
            names[0] if names else platform.machine(),
            torch.get_num_threads(),
            torch.backends.cpu.get_cpu_capability(),
            torch.__version__,
            torch_ext.build_info(),
        )

    @property
    def title(self) -> str:
        threads = f"{self.threads} threads"
        return f"torch {self.torch}, {self.processor}, {threads}, {self.capability}"


def show(machine: Machine, tables: list[Table], judged: list["Target"]) -> None:
    console = Console(width=max(Console().width, 210))
    console.print(
        f"\n{machine.title}; × PyTorch, × compile: how many times as fast; medians of interleaved rounds"
    )
    for each in (*tables, _targets_table(judged)):
        if each.row_count:
            console.print(each)


def table(rows: list[Row]) -> Table:
    shown = Table(
        box=box.SIMPLE_HEAD,
        caption="GB/s: useful bytes. step: forward and backward. made: full-size tensors that backward allocates, "
        "extra: MB at its peak besides grad_input (torch_ext/PyTorch). *: other processes disturbed it",
    )
    shown.add_column("layer", no_wrap=True)
    for name in (
        "MB",
        "forward\n× PyTorch", "\n× compile", "\nGB/s", "\nof copy",
        "backward\n× PyTorch", "\n× compile", "\nGB/s", "\nof copy",
        "step\n× PyTorch", "\n× compile", "made", "extra",
    ):  # fmt: skip
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(*_cells(row))
    return shown


def _cells(row: Row) -> list[str]:
    compiled = "compile" in row.step.seconds
    copy_rate = row.rate(row.forward, 2, "copy")
    mark = " *" if row.was_disturbed else ""
    cells = [row.case.title + mark, f"{row.case.bytes / 1e6:.1f}"]
    for timing, tensors in ((row.forward, 2), (row.backward, 3)):
        rate = row.rate(timing, tensors)
        cells += [
            f"{timing.ratio('stock'):.2f}",
            f"{timing.ratio('compile'):.2f}" if compiled else "",
            f"{rate:.1f}",
            f"{rate / copy_rate:.0%}",
        ]
    cells += [
        f"{row.step.ratio('stock'):.2f}",
        f"{row.step.ratio('compile'):.2f}" if compiled else "",
    ]
    used = [row.backward_memory[name] for name in ("ours", "stock")]
    cells += [
        "/".join(str(memory.full_size(row.case.bytes)) for memory in used),
        "/".join(f"{memory.beside(row.case.bytes) / 1e6:.1f}" for memory in used),
    ]
    return cells


def scaling_table(scaling: list[Scaling]) -> Table:
    table = Table(title="\nall threads against one, in cache, operators alone", box=box.SIMPLE_HEAD)
    table.add_column("layer")
    for name in ("forward", "backward"):
        table.add_column(name, justify="right")
    for row in scaling:
        table.add_row(row.case.title, f"{row.forward:.2f}", f"{row.backward:.2f}")
    return table


@dataclass
class Target:
    """Ratios of some rows, and the values that they should reach."""

    what: str
    ratios: list[tuple[float, str]]  # with the title of each row
    mean: float | None
    each: float

    @property
    def held(self) -> bool:
        held_mean = self.mean is None or self.geometric_mean >= self.mean * (1 - NOISE)
        return held_mean and self.worst[0] >= self.each * (1 - NOISE)

    @property
    def geometric_mean(self) -> float:
        return statistics.geometric_mean(ratio for ratio, _ in self.ratios)

    @property
    def worst(self) -> tuple[float, str]:
        return min(self.ratios)


def targets(rows: list[Row], scaling: list[Scaling]) -> list[Target]:
    kernels = [row for row in rows if not row.is_call]
    calls = [row for row in rows if row.is_call]

    def ratios(chosen: Iterable[Row], of: Callable[[Row], float]) -> list[tuple[float, str]]:
        return [(of(row), row.case.title) for row in chosen]

    def forward(row: Row) -> float:
        return row.forward.ratio("stock")

    def backward(row: Row) -> float:
        return row.backward.ratio("stock")

    def step(row: Row) -> float:
        return row.step.ratio("stock")

    one = [row for row in calls if row.case.numel == 1]
    from_1k = [row for row in calls if row.case.numel >= 1024]
    compiled = [row for row in kernels if "compile" in row.step.seconds]
    found = [
        Target(
            "backward, to 8 MB",
            ratios((r for r in kernels if not r.is_large), backward), 12, 3,
        ),
        Target("backward, larger", ratios((r for r in kernels if r.is_large), backward), 4, 2),
        Target("forward", ratios(kernels, forward), 1.3, 1),
        Target(
            "forward, 16 bit, small planes",
            ratios((r for r in kernels if r.is_small_planes_16_bit), forward), None, 10,
        ),
        Target(
            "step against torch.compile",
            ratios(compiled, lambda row: row.step.ratio("compile")), 1.5, 1,
        ),
        Target("call of one element: forward", ratios(one, forward), None, 1 / 1.3),
        Target("call of one element: step", ratios(one, step), None, 1 / 1.05),
        Target("call of 1 Ki elements or more: step", ratios(from_1k, step), None, 1),
        Target(
            "all threads against one",
            [(min(row.forward, row.backward), row.case.title) for row in scaling], None, 1.8,
        ),
    ]  # fmt: skip
    return [target for target in found if target.ratios]


def _targets_table(judged: list[Target]) -> Table:
    table = Table(title=f"\ntargets ({NOISE:.0%} allowed for noise)", box=box.SIMPLE_HEAD)
    for name in ("what", "rows", "mean", "of", "worst", "of", "held", "worst row"):
        table.add_column(name, justify="left" if name in ("what", "worst row") else "right")
    for target in judged:
        worst, title = target.worst
        table.add_row(
            target.what,
            str(len(target.ratios)),
            f"{target.geometric_mean:.2f}",
            "" if target.mean is None else f"{target.mean:.2f}",
            f"{worst:.2f}",
            f"{target.each:.2f}",
            "yes" if target.held else "NO",
            title,
        )
    return table


def record(machine: Machine, rows: list[Row], scaling: list[Scaling], judged: list[Target]) -> dict:
    """Everything, for JSON."""
    return {
        "machine": asdict(machine),
        "rows": [{"title": row.case.title, "bytes": row.case.bytes, **asdict(row)} for row in rows],
        "scaling": [asdict(row) for row in scaling],
        "targets": [
            {
                "what": target.what,
                "rows": len(target.ratios),
                "geometric_mean": target.geometric_mean,
                "worst": target.worst,
                "wanted": [target.mean, target.each],
                "held": target.held,
            }
            for target in judged
        ],
    }


def plot(machine: Machine, rows: list[Row], file: Path) -> None:
    """Dots on a logarithmic axis: how many times as fast, layer by layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    series: list[tuple[str, str, Callable[[Row], float]]] = [
        ("forward, × PyTorch", "tab:blue", lambda row: row.forward.ratio("stock")),
        ("backward, × PyTorch", "tab:red", lambda row: row.backward.ratio("stock")),
    ]
    if all("compile" in row.step.seconds for row in rows):
        series.append(
            ("forward + backward, × torch.compile", "black", lambda row: row.step.ratio("compile"))
        )
    figure, axes = pyplot.subplots(figsize=(11, 2 + 0.2 * len(rows)), layout="constrained")
    for label, colour, of in series:
        axes.plot(
            [of(row) for row in rows], range(len(rows)), "o", label=label, color=colour, ms=4.5
        )
    axes.set_yticks(range(len(rows)), [row.case.title for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], minor=False)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.axvline(1, color="gray", linewidth=1)
    axes.grid(alpha=0.3)
    axes.set_title(f"times as fast as PyTorch\n{machine.title}", fontsize=9)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(file, dpi=110)

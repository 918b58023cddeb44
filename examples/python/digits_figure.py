"""The picture of part 2: functions, derivatives, learned slopes, silent units and accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

import torch_ext

if TYPE_CHECKING:
    from digits_demo import Result

COLOURS = {"ReLU": "#343a40", "Leaky ReLU": "#1c7ed6", "PReLU": "#e8590c"}
DASHES = {"ReLU": "-", "Leaky ReLU": (0, (5, 2)), "PReLU": "-"}
LAYERS = ("conv 1", "conv 2", "dense 1")


def _curves(slope: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x over -19 ... 19, the function and its derivative there, from the operator itself."""
    x = torch.linspace(-19.0, 19.0, 381, dtype=torch.float64)
    x[190] = 0.0  # exactly: the derivative there is the negative side's
    x.requires_grad_()
    y = torch_ext.prelu(x, torch.tensor([slope], dtype=torch.float64))
    (derivative,) = torch.autograd.grad(y.sum(), x)
    return x.detach().numpy(), y.detach().numpy(), derivative.numpy()


def _plot_functions(axes: Axes, slopes: dict[str, float]) -> None:
    inset = axes.inset_axes((0.08, 0.5, 0.4, 0.4))
    for way, slope in slopes.items():
        x, y, _ = _curves(slope)
        style = {"color": COLOURS[way], "linestyle": DASHES[way], "linewidth": 2}
        axes.plot(x, y, label=f"{way}, slope {slope:.3g}", **style)
        inset.plot(x, y, **style)
    inset.set(xlim=(-19, 1), ylim=(-0.45, 0.15))
    inset.set_title("negative side, enlarged", fontsize=9)
    inset.set_xticks([-15, -10, -5, 0])
    inset.tick_params(labelsize=8)
    inset.grid(alpha=0.3)
    axes.text(9.2, 10.0, "x > 0: all three are x", fontsize=9, ha="right")
    axes.set(title="The functions", xlabel="x", ylabel="f(x)", xlim=(-19, 19))
    axes.legend(loc="lower right", fontsize=9)
    axes.grid(alpha=0.3)


def _plot_derivatives(axes: Axes, slopes: dict[str, float]) -> None:
    for way, slope in slopes.items():
        x, _, derivative = _curves(slope)
        left = x <= 0
        style = {"color": COLOURS[way], "linestyle": DASHES[way], "linewidth": 2}
        axes.plot(
            x[left], derivative[left], label=f"{way}: {derivative[left][-1]:.3g} for x ≤ 0", **style
        )
        axes.plot(x[~left], derivative[~left], **style)
        axes.plot(0, derivative[left][-1], "o", color=COLOURS[way], markersize=7)
    axes.plot(0, 1, "o", color="black", markerfacecolor="white", markersize=7)
    axes.annotate(
        "x = 0 belongs to the negative side",
        (0.4, 0.02),
        (4.0, 0.13),
        fontsize=9,
        arrowprops={"arrowstyle": "->", "color": "0.4"},
    )
    axes.text(9.5, 1.03, "x > 0: all three are 1", fontsize=9, ha="center")
    axes.set(
        title="Their derivatives", xlabel="x", ylabel="f′(x)", xlim=(-19, 19), ylim=(-0.06, 1.1)
    )
    axes.legend(loc="upper left", fontsize=9)
    axes.grid(alpha=0.3)


def _plot_slopes(axes: Axes, result: Result) -> None:
    rng = np.random.default_rng(0)  # sideways jitter only, so that the dots do not hide each other
    for layer in range(len(LAYERS)):
        values = torch.cat([seed[layer] for seed in result.slopes]).numpy()
        axes.plot(
            layer + rng.uniform(-0.28, 0.28, len(values)),
            values,
            ".",
            color=COLOURS["PReLU"],
            alpha=0.45,
        )
        axes.plot(
            [layer - 0.36, layer + 0.36],
            [np.median(values)] * 2,
            color="black",
            linewidth=2,
            label="median" if layer == 0 else None,
        )
    axes.axhline(0.25, color="0.5", linestyle=":", label="start: 0.25")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.22 * (high - low))  # room for the legend
    axes.set_xticks(range(len(LAYERS)), LAYERS)
    axes.set(title="PReLU: learned slope of each channel", ylabel="slope")
    axes.legend(loc="upper right", fontsize=9, ncols=2)
    axes.grid(alpha=0.3, axis="y")


def _plot_silent(axes: Axes, results: dict[str, Result]) -> None:
    for i, (way, result) in enumerate(results.items()):
        shares = [100 * result.silent_share(layer) for layer in range(len(LAYERS))]
        dead = way == "ReLU"
        bars = axes.bar(
            np.arange(len(LAYERS)) + 0.27 * (i - 1),
            shares,
            0.25,
            edgecolor=COLOURS[way],
            facecolor=COLOURS[way] if dead else "white",
            hatch=None if dead else "////",
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.set_xticks(range(len(LAYERS)), LAYERS)
    axes.margins(y=0.45)  # room for the legend
    axes.set(title="Units that no training image makes positive", ylabel="share of units, %")
    names = {
        "ReLU": "ReLU: dead (no gradient)",
        "Leaky ReLU": "Leaky ReLU: passes a gradient",
        "PReLU": "PReLU: passes a gradient",
    }
    handles = [
        Patch(
            edgecolor=COLOURS[w],
            facecolor=COLOURS[w] if w == "ReLU" else "white",
            hatch=None if w == "ReLU" else "////",
            label=names[w],
        )
        for w in results
    ]
    axes.legend(handles=handles, loc="upper left", fontsize=9)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3, axis="y")


def _plot_accuracy(axes: Axes, results: dict[str, Result]) -> None:
    seeds = 0
    for way, result in results.items():
        accuracy = 100 * np.array(result.accuracy)
        seeds, epochs = accuracy.shape
        x = np.arange(1, epochs + 1)
        axes.fill_between(
            x, accuracy.min(0), accuracy.max(0), color=COLOURS[way], alpha=0.13, linewidth=0
        )
        median = np.median(accuracy, axis=0)
        axes.plot(
            x,
            median,
            color=COLOURS[way],
            linestyle=DASHES[way],
            linewidth=2,
            label=f"{way}: {median[-1]:.1f} % at the end",
        )
    band = f" (median and range of {seeds} seeds)" if seeds > 1 else ""
    axes.set(title=f"Test accuracy{band}", xlabel="epoch", ylabel="%")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", fontsize=9)
    axes.grid(alpha=0.3)


def save_figure(results: dict[str, Result], path: Path) -> Path:
    """Draw the five panels and return the path written."""
    learned = torch.cat([s for seed in results["PReLU"].slopes for s in seed]).median().item()
    slopes = {"ReLU": 0.0, "Leaky ReLU": 0.01, "PReLU": learned}
    figure = Figure(figsize=(15, 9.4), layout="constrained")
    grid = figure.add_gridspec(2, 6)
    _plot_functions(figure.add_subplot(grid[0, :3]), slopes)
    _plot_derivatives(figure.add_subplot(grid[0, 3:]), slopes)
    _plot_slopes(figure.add_subplot(grid[1, :2]), results["PReLU"])
    _plot_silent(figure.add_subplot(grid[1, 2:4]), results)
    _plot_accuracy(figure.add_subplot(grid[1, 4:]), results)
    figure.suptitle(
        "One operator, three activations: slope 0, slope 0.01, slope learned "
        "(drawn: the median learned slope)",
        fontsize=14,
    )
    figure.savefig(path, dpi=100)
    return path

"""The picture of an ActivationReport. Needs matplotlib, so only ActivationReport.plot() imports it."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from torch_ext.monitor_layer import LayerStatistics

__all__ = ["draw"]

# Distinguishable with any kind of colour vision, and in grey.
BLUE, ORANGE, BLACK, GREY = "#0072b2", "#d55e00", "#222222", "#8a8a8a"
NAMED_LAYERS = 40  # if there are more, they are numbered


def draw(layers: list[LayerStatistics], window: int, every: int) -> Figure:
    """Four panels, the layers from left to right in each."""
    width = min(20.0, max(10.0, 0.5 * len(layers)))
    figure = Figure(figsize=(width, 7.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    _draw_non_positive(panels[0, 0], layers)
    _draw_silent(panels[0, 1], layers, window)
    _draw_slopes(panels[1, 0], layers)
    _draw_gradients(panels[1, 1], layers)
    for axes in panels.flat:
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
        axes.set_xlim(-0.6, max(len(layers), 1) - 0.4)
    for axes in panels[1]:
        if len(layers) <= NAMED_LAYERS:
            labels = [layer.label for layer in layers]
            upright = sum(map(len, labels)) < 4 * width
            axes.set_xticks(range(len(layers)), labels, rotation=0 if upright else 90)
        axes.set_xlabel("layer" if len(layers) <= NAMED_LAYERS else "layer, numbered from 0")
    steps = max((layer.steps for layer in layers), default=0)
    share = f", one in {every}" if every > 1 else ""
    figure.suptitle(f"Activations over {steps} observed training steps{share}")
    return figure


def _draw_non_positive(axes: Axes, layers: list[LayerStatistics]) -> None:
    for place, layer in enumerate(layers):
        if layer.elements:
            _draw_channels(axes, place, 100 * layer.non_positive_by_channel, BLUE)
    axes.set(title="Inputs that are not positive", ylabel="% of a channel's inputs", ylim=(-3, 125))
    axes.set_yticks(range(0, 101, 20))  # above: room for the legend
    axes.plot([], [], color=BLUE, linewidth=1.5, label="all channels")
    axes.plot([], [], color=BLUE, linewidth=6, alpha=0.6, label="middle half")
    axes.plot([], [], color=BLACK, linewidth=2, label="median")
    axes.legend(loc="upper left", fontsize=9, ncols=3)


def _draw_silent(axes: Axes, layers: list[LayerStatistics], window: int) -> None:
    places = range(len(layers))
    silent = [100 * (layer.silent or 0) / layer.channels for layer in layers]
    dead = [100 * (layer.dead or 0) / layer.channels for layer in layers]
    axes.bar(places, silent, 0.7, facecolor="white", edgecolor=ORANGE, hatch="////", label="silent")
    axes.bar(places, dead, 0.7, color=ORANGE, label="dead: silent with slope 0")
    for place, layer in enumerate(layers):
        if layer.silent is None:
            axes.text(place, 1, "?", ha="center", color=GREY)
    top = max([*silent, 5.0])
    axes.set(
        title=f"Units without a positive input in {window} steps",
        ylabel="% of units",
        ylim=(0, 1.3 * top),  # room for the legend
    )
    axes.legend(loc="upper left", fontsize=9, ncols=2)


def _draw_slopes(axes: Axes, layers: list[LayerStatistics]) -> None:
    for place, layer in enumerate(layers):
        if layer.slope is None:
            continue
        _draw_channels(axes, place, layer.slope, BLUE)
        if layer.start_slope is not None:
            start = layer.start_slope.mean().item()
            axes.plot(place, start, "o", color=BLACK, markerfacecolor="white", markersize=5)
    axes.plot([], [], "o", color=BLACK, markerfacecolor="white", label="mean at the start")
    axes.set(title="Slopes of the negative side", ylabel="slope")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.15 * (high - low))  # room for the legend
    axes.legend(loc="upper left", fontsize=9)


def _draw_gradients(axes: Axes, layers: list[LayerStatistics]) -> None:
    ends = (
        ("at its output", [layer.grad_output.mean for layer in layers], "s", BLUE),
        ("at its input", [layer.grad_input.mean for layer in layers], "o", ORANGE),
    )
    drawn = False
    for label, norms, marker, colour in ends:
        known = [(place, norm) for place, norm in enumerate(norms) if norm is not None and norm > 0]
        if known:
            axes.plot(
                *zip(*known, strict=True), marker=marker, color=colour, label=label, alpha=0.8
            )
            drawn = True
    axes.set(title="Gradient through the layer", ylabel="L2 norm, mean over steps")
    if drawn:
        axes.set_yscale("log")
        axes.legend(loc="best", fontsize=9)


def _draw_channels(axes: Axes, place: int, values: Tensor, colour: str) -> None:
    """All channels as a thin line, the middle half as a thick one, the median as a bar."""
    known = values[values.isfinite()]
    if not known.numel():
        return
    points = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=known.dtype, device=known.device)
    low, lower, middle, upper, high = known.quantile(points).tolist()
    axes.vlines(place, low, high, color=colour, linewidth=1.5)
    axes.vlines(place, lower, upper, color=colour, linewidth=6, alpha=0.6)
    axes.hlines(middle, place - 0.25, place + 0.25, color=BLACK, linewidth=2)

"""Why two linear pieces suffice: what a bias, a sum and a second input make of one kink.

    python examples/python/two_pieces.py [--quick] [--output FILE]

One unit is f(w·x + b), with f(z) = z for z > 0 and a·z otherwise: two straight pieces. The bias
says where they meet: f(7 + A) bends at A = -7. A sum of units has a kink for each and a slope
between any two, so that it follows a curve as closely as wanted. A unit with two inputs,
f(2A + 3B), bends elsewhere for every B: the inputs interact, which no sum of separate functions
of A and of B can do. All values come from `torch_ext.prelu`. (--quick changes nothing: it is.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from story import BLUE, DARK, GREEN, ORANGE, parse_arguments, save
from torch import Tensor

import torch_ext

SLOPE = 0.25
BIASES = (7.0, 0.0, -4.0)
UNITS = (2, 6, 16)
SECOND_INPUTS = (-4.0, 0.0, 4.0)
STYLES = ((BLUE, "-"), (DARK, (0, (5, 2))), (ORANGE, "-"))


@dataclass
class Results:
    """What the picture shows, found from the operator's values and derivatives."""

    kinks: dict[float, float]  # bias b -> where f(b + A) bends
    target: Tensor  # the curve, at the points of `line(3.25)`
    sums: dict[int, Tensor]  # number of units -> the best sum of so many
    kinks_of_a: dict[float, float]  # B -> where f(2A + 3B) bends, seen along A
    interaction: float  # how far f(2A + 3B) is from a function of A plus one of B
    interaction_of_a_line: float  # the same with slope 1, which is no kink


def f(z: Tensor, slope: float = SLOPE) -> Tensor:
    """PReLU: z for z > 0, slope·z otherwise."""
    return torch_ext.prelu(z, torch.tensor([slope], dtype=z.dtype))


def line(reach: float) -> Tensor:
    """Points from -reach to reach, 64 in a unit, so that they and sums of them are exact."""
    return torch.arange(-64 * reach, 64 * reach + 1, dtype=torch.float64) / 64


def kink(function: Callable[[Tensor], Tensor], reach: float = 16.0) -> float:
    """Where the derivative changes: the last point of the left piece."""
    x = line(reach).requires_grad_()
    (derivative,) = torch.autograd.grad(function(x).sum(), x)
    changes = (derivative.diff() != 0).nonzero().flatten().tolist()
    assert len(changes) == 1, "two pieces have one kink"
    return x[changes[0]].item()


def best_sum(target: Tensor, x: Tensor, units: int) -> Tensor:
    """Units with kinks evenly over the line, plus a constant, weighted by least squares."""
    places = torch.linspace(x[0].item(), x[-1].item(), units + 1, dtype=x.dtype)[:-1]
    columns = torch.stack([f(x - place) for place in places] + [torch.ones_like(x)], dim=1)
    return columns @ torch.linalg.lstsq(columns, target.unsqueeze(1)).solution.flatten()


def interaction(slope: float) -> float:
    """g(1, 1) - g(1, -1) - g(-1, 1) + g(-1, -1), which is 0 for any function of A plus one of B."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    g = f(2 * signs[:, None] + 3 * signs[None, :], slope)
    return (g * signs[:, None] * signs[None, :]).sum().item()


def run(quick: bool) -> Results:
    """Compute everything; takes a moment either way."""
    x = line(3.25)
    target = torch.sin(2 * x) + x / 2
    return Results(
        kinks={b: kink(lambda a, b=b: f(b + a)) for b in BIASES},
        target=target,
        sums={units: best_sum(target, x, units) for units in UNITS},
        kinks_of_a={b: kink(lambda a, b=b: f(2 * a + 3 * b)) for b in SECOND_INPUTS},
        interaction=interaction(SLOPE),
        interaction_of_a_line=interaction(1.0),
    )


def print_results(results: Results) -> None:
    """Print the figures that the picture shows."""
    for b, place in results.kinks.items():
        print(f"f({b:g} + A) bends at A = {place:g}")
    for units, values in results.sums.items():
        error = (values - results.target).abs().max().item()
        print(f"a sum of {units} units is at most {error:.3f} from the curve")
    for b, place in results.kinks_of_a.items():
        print(f"f(2A + 3B) bends at A = {place:g} for B = {b:g}")
    print(
        f"interaction of A and B: {results.interaction:g}, {results.interaction_of_a_line:g} of a line"
    )


def _draw_bias(axes: Axes, results: Results) -> None:
    a = line(12.0)
    for (b, place), (colour, dashes) in zip(results.kinks.items(), STYLES, strict=True):
        name = f"f({b:g} + A)" if b >= 0 else f"f(A − {-b:g})"
        label = f"{name if b else 'f(A)'}: bends at {place:g}".replace("-", "−")
        axes.plot(a, f(b + a), color=colour, linestyle=dashes, linewidth=2.5, label=label)
        axes.plot(place, 0, "o", color=colour, markersize=9)
    axes.set(title="A bias moves the kink", xlabel="A", ylabel="output", ylim=(-5, 20))
    axes.legend(loc="upper left", fontsize=10)
    axes.grid(alpha=0.3)


def _draw_sums(axes: Axes, results: Results) -> None:
    x = line(3.25)
    axes.plot(x, results.target, color="0.75", linewidth=8, label="the curve")
    styles = ((GREEN, (0, (1, 1))), (BLUE, (0, (5, 2))), (ORANGE, "-"))
    for (units, values), (colour, dashes) in zip(results.sums.items(), styles, strict=True):
        error = (values - results.target).abs().max().item()
        label = f"{units} units: within {error:.2g}"
        axes.plot(x, values, color=colour, linestyle=dashes, linewidth=2.2, label=label)
    axes.set(title="A sum of units has many slopes", xlabel="A", ylim=(-3.2, 4.2))
    axes.legend(loc="upper left", fontsize=10)
    axes.grid(alpha=0.3)


def _draw_two_inputs(axes: Axes, results: Results) -> None:
    a = line(12.0)
    for (b, place), (colour, dashes) in zip(results.kinks_of_a.items(), STYLES, strict=True):
        label = f"B = {b:g}: bends at A = {place:g}".replace("-", "−")
        axes.plot(a, f(2 * a + 3 * b), color=colour, linestyle=dashes, linewidth=2.5, label=label)
        axes.plot(place, 0, "o", color=colour, markersize=9)
    axes.set(title="Two inputs interact: f(2A + 3B)", xlabel="A", ylim=(-10, 46))
    axes.legend(loc="upper left", fontsize=10)
    axes.grid(alpha=0.3)


def draw(results: Results) -> Figure:
    """One panel for the bias, one for sums, one for two inputs."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    panels = figure.subplots(1, 3)
    _draw_bias(panels[0], results)
    _draw_sums(panels[1], results)
    _draw_two_inputs(panels[2], results)
    figure.suptitle(
        f"Why two linear pieces suffice: f(z) = z for z > 0, {SLOPE:g}·z otherwise", fontsize=15
    )
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story."""
    arguments = parse_arguments(__doc__, "two_pieces", argv)
    results = run(arguments.quick)
    print_results(results)
    save(draw(results), arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

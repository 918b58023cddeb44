"""Vanishing and exploding gradients: the same deep network with four activations.

    python examples/python/gradient_flow.py [--quick] [--output FILE]

Twenty layers learn to tell three spirals apart. At the first step ActivationMonitor measures the
norm of the gradient at each activation's output; then the network is trained. A gradient that is
ten or a million times smaller in the first layers than in the last leaves them where they were.
The initialisation decides as much as the activation: ReLU is shown with the right weights, with
half and with double.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from story import BLUE, DARK, GREEN, ORANGE, batches, parse_arguments, save, spirals
from torch import nn
from torch.nn import functional as F

import torch_ext

DEPTH, WIDTH = 20, 64
RATE = 0.005  # of SGD with momentum 0.9
XAVIER, HE = 1.0, 2**0.5  # times 1 / sqrt(inputs): the standard deviation of the weights
ACTIVATIONS = (nn.Sigmoid, nn.Tanh, nn.ReLU, nn.PReLU)


class Way(NamedTuple):
    """An activation, the scale of the weights before it, and how it is drawn."""

    activation: Callable[[], nn.Module]
    gain: float
    colour: str
    dashes: str | tuple[int, tuple[float, ...]] = "-"


WAYS = {
    "sigmoid": Way(nn.Sigmoid, XAVIER, BLUE),
    "tanh": Way(nn.Tanh, XAVIER, GREEN),
    "ReLU": Way(nn.ReLU, HE, DARK),
    "PReLU": Way(lambda: torch_ext.PReLU(WIDTH), (2 / (1 + 0.25**2)) ** 0.5, ORANGE),
    "ReLU, weights × ½": Way(nn.ReLU, HE / 2, DARK, (0, (1, 1.5))),
    "ReLU, weights × 2": Way(nn.ReLU, 2 * HE, DARK, (0, (5, 2))),
}


@dataclass
class Outcome:
    """Gradient norms at the first step, first layer to last, and the loss of each step."""

    norms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How much of the last layer's gradient arrives in the first."""
        return self.norms[0] / self.norms[-1]


def network(way: Way) -> nn.Sequential:
    """(N, 2) points to (N, 3) logits through DEPTH layers."""
    layers: list[nn.Module] = []
    for inputs in (2, *[WIDTH] * (DEPTH - 1)):
        linear = nn.Linear(inputs, WIDTH)
        nn.init.normal_(linear.weight, 0.0, way.gain / inputs**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, way.activation()]
    last = nn.Linear(WIDTH, 3)
    nn.init.normal_(last.weight, 0.0, WIDTH**-0.5)
    return nn.Sequential(*layers, last)


def train(way: Way, steps: int) -> Outcome:
    """Train one network, monitored in its first step."""
    torch.manual_seed(0)
    net = network(way)
    monitor = torch_ext.ActivationMonitor(net, layers=ACTIVATIONS)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    outcome = Outcome()
    for step, (x, y) in enumerate(batches(steps, *spirals(seed=0))):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        if step == 0:
            outcome.norms = [layer.grad_output.mean for layer in monitor.report().layers]
            monitor.close()
        optimizer.step()
        outcome.losses.append(loss.item())
    return outcome


def run(quick: bool) -> dict[str, Outcome]:
    """Train all of them, from the same seed and on the same batches."""
    return {name: train(way, 80 if quick else 400) for name, way in WAYS.items()}


def print_results(outcomes: dict[str, Outcome]) -> None:
    """Print both ends of the gradient and of the training."""
    print(f"{'':20} gradient, last layer  first layer  loss, first step  last 20")
    for name, outcome in outcomes.items():
        late = sum(outcome.losses[-20:]) / 20
        print(
            f"{name:20} {outcome.norms[-1]:20.1e} {outcome.norms[0]:12.1e}"
            f" {outcome.losses[0]:17.3g} {late:8.3g}"
        )


def _draw_gradients(axes: Axes, outcomes: dict[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        way = WAYS[name]
        layers = range(1, len(outcome.norms) + 1)
        style = {"color": way.colour, "linestyle": way.dashes, "linewidth": 2.5}
        axes.plot(layers, outcome.norms, label=name, **style)
    axes.set_yscale("log")
    axes.text(5.5, 8e3, "explodes", fontsize=11)
    axes.text(1.5, 1e-9, "vanishes", fontsize=11)
    axes.text(1.5, 0.12, "keeps its size: tanh, ReLU, PReLU", fontsize=11)
    axes.set(
        title="Gradient at each layer, first step",
        xlabel="layer  (the gradient comes from the right)",
        ylabel="L2 norm",
    )
    axes.set_xticks(range(1, DEPTH + 1, 3))
    axes.legend(loc="lower right", fontsize=10)
    axes.grid(alpha=0.3)


def _draw_losses(axes: Axes, outcomes: dict[str, Outcome]) -> None:
    window = min(20, len(next(iter(outcomes.values())).losses) // 4)
    for name, outcome in outcomes.items():
        losses = torch.tensor(outcome.losses)
        if not losses.isfinite().all():
            continue  # its loss is not a number from the second step on; the legend says so
        way = WAYS[name]
        smooth = losses.unfold(0, window, 1).mean(1)
        style = {"color": way.colour, "linestyle": way.dashes, "linewidth": 2.5}
        axes.plot(range(window, len(losses) + 1), smooth, label=name, **style)
    for name, outcome in outcomes.items():
        if not torch.tensor(outcome.losses).isfinite().all():
            style = {"color": WAYS[name].colour, "linestyle": WAYS[name].dashes}
            axes.plot([], [], label=f"{name}: diverges at once", linewidth=2.5, **style)
    axes.set(
        title="What becomes of it",
        xlabel="training step",
        ylabel=f"cross entropy, mean over {window} steps",
        ylim=(0, 1.75),
    )
    axes.axhline(torch.tensor(3.0).log().item(), color="black", linestyle=":", linewidth=1)
    axes.text(window, 1.12, "a guess", fontsize=10)
    axes.legend(loc="upper right", fontsize=10, ncols=2)
    axes.grid(alpha=0.3)


def draw(outcomes: dict[str, Outcome]) -> Figure:
    """Gradients on the left, losses on the right."""
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_gradients(left, outcomes)
    _draw_losses(right, outcomes)
    figure.suptitle(
        f"A network of {DEPTH} layers learns if its first layers get a gradient", fontsize=15
    )
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story."""
    arguments = parse_arguments(__doc__, "gradient_flow", argv)
    torch.set_num_threads(1)  # tensors too small for more to pay
    outcomes = run(arguments.quick)
    print_results(outcomes)
    save(draw(outcomes), arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

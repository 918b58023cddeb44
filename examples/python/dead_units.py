"""Units die from too high a learning rate and from a large negative bias; what helps against each?

    python examples/python/dead_units.py [--quick] [--output FILE]

A small ReLU network learns to tell three spirals apart. ActivationMonitor counts its units without
a positive input: with slope 0 they are dead, for no gradient passes to the weights that would have
to change. Three remedies are tried against both causes: a lower rate, a better initialisation, and
learnable slopes (`torch_ext.parametrize_relu`), with which silent units pass a gradient.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from story import BLUE, CHANCE, DARK, GREEN, ORANGE, batches, parse_arguments, save, spirals
from torch import nn
from torch.nn import functional as F

import torch_ext

WIDTH = 64
RATE, HIGH_RATE, LOW_RATE = 0.1, 1.0, 0.01  # of SGD with momentum 0.9
NEGATIVE_BIAS = -2.0
WINDOW = 20  # steps without a positive input that make a unit silent
RECORD_EVERY = 10  # steps

CAUSES = {
    "high rate": f"Cause: a learning rate of {HIGH_RATE:g}, ten times too high",
    "negative bias": f"Cause: biases that start at −{-NEGATIVE_BIAS:g}",
}
REMEDIES = ("none", "lower rate", "better initialisation", "learnable slopes")
COLOURS = dict(zip(REMEDIES, (DARK, BLUE, GREEN, ORANGE), strict=True))
DASHES = dict(zip(REMEDIES, ("-", "-", (0, (5, 2)), (0, (1, 1))), strict=True))


@dataclass
class Outcome:
    """One training: shares of all hidden units at each record, and the accuracy on new points.

    A record after the training diverged is NaN: then nothing is positive, and nothing is meant.
    """

    silent: list[float] = field(default_factory=list)
    dead: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    diverged: bool = False
    summary: str = ""


Results = dict[tuple[str, str], list[Outcome]]  # by cause and remedy, one outcome per seed


def network(well_initialised: bool, bias: float) -> nn.Sequential:
    """(N, 2) points to (N, 3) logits, with He's initialisation or a better one.

    Better: orthogonal weights of the same variance, and biases of 0 whatever `bias` says.
    """
    net = nn.Sequential(
        *(nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))
    )
    for layer in (net[0], net[2]):
        if well_initialised:
            nn.init.orthogonal_(layer.weight, nn.init.calculate_gain("relu"))
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.constant_(layer.bias, 0.0 if well_initialised else bias)
    return net


def train(cause: str, remedy: str, seed: int, steps: int) -> Outcome:
    """Train one network; a seed gives all of them the same start and batches."""
    torch.manual_seed(seed)
    points, labels = spirals(seed=0)
    net = network(
        remedy == "better initialisation", NEGATIVE_BIAS if cause == "negative bias" else 0.0
    )
    rate, lower = (HIGH_RATE, RATE) if cause == "high rate" else (RATE, LOW_RATE)
    if remedy == "learnable slopes":
        torch_ext.parametrize_relu(net, points)
    monitor = torch_ext.ActivationMonitor(net, window=WINDOW)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=lower if remedy == "lower rate" else rate, momentum=0.9
    )
    outcome = Outcome()
    for step, (x, y) in enumerate(batches(steps, points, labels), start=1):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        if step % RECORD_EVERY == 0 and step >= WINDOW:
            outcome.diverged = not all(bool(p.isfinite().all()) for p in net.parameters())
            layers = monitor.report().layers
            for shares, counts in (
                (outcome.silent, [layer.silent for layer in layers]),
                (outcome.dead, [layer.dead for layer in layers]),
            ):
                shares.append(float("nan") if outcome.diverged else sum(counts) / (2 * WIDTH))
    monitor.close()
    test_points, test_labels = spirals(seed=1)
    with torch.no_grad():
        outcome.accuracy = (net(test_points).argmax(1) == test_labels).double().mean().item()
    outcome.summary = monitor.summary()
    return outcome


def run(quick: bool) -> Results:
    """Train every network with every remedy."""
    seeds, steps = (1, 120) if quick else (3, 400)
    return {
        (cause, remedy): [train(cause, remedy, seed, steps) for seed in range(seeds)]
        for cause in CAUSES
        for remedy in REMEDIES
    }


def print_results(results: Results) -> None:
    """Print the medians over the seeds, and what the monitor says of one network."""
    for cause, title in CAUSES.items():
        print(f"{title}. Without a remedy, in the monitor's words:")
        print(results[cause, "none"][0].summary)
        for remedy in REMEDIES:
            outcomes = results[cause, remedy]
            silent, dead, accuracy = (
                statistics.median(values)
                for values in (
                    [outcome.silent[-1] for outcome in outcomes],
                    [outcome.dead[-1] for outcome in outcomes],
                    [outcome.accuracy for outcome in outcomes],
                )
            )
            diverged = sum(outcome.diverged for outcome in outcomes)
            note = f"  diverged: {diverged} of {len(outcomes)}" if diverged else ""
            print(
                f"  {remedy:22} silent {silent:4.0%}  dead {dead:4.0%}  accuracy {accuracy:4.0%}{note}"
            )
        print()


def _draw_silent(axes: Axes, results: Results, cause: str) -> None:
    for remedy in REMEDIES:
        outcomes = results[cause, remedy]
        records = range(len(outcomes[0].silent))
        steps = [WINDOW + RECORD_EVERY * record for record in records]
        shares = [100 * statistics.median(o.silent[record] for o in outcomes) for record in records]
        label = {"none": "no remedy", "learnable slopes": "learnable slopes: silent, not dead"}.get(
            remedy, remedy
        )
        # The first is wide, to be seen where another line lies on it.
        style = {
            "color": COLOURS[remedy],
            "linestyle": DASHES[remedy],
            "linewidth": 6 if remedy == "none" else 2.5,
        }
        axes.plot(steps, shares, label=label, **style)
        if any(outcome.diverged for outcome in outcomes):
            known = [(step, share) for step, share in zip(steps, shares) if math.isfinite(share)]
            end = known[-1] if known else (steps[0], 0.0)
            axes.plot(*end, "X", color=COLOURS[remedy], markersize=11)
            axes.annotate(
                "diverges",
                end,
                (40, 10),
                textcoords="offset points",
                color=COLOURS[remedy],
            )
    axes.set(
        title=CAUSES[cause],
        xlabel="training step",
        ylabel=f"% of units without a positive\ninput in {WINDOW} steps",
        ylim=(-4, 104),
        xlim=(0, None),
    )
    axes.grid(alpha=0.3)


def _draw_accuracy(axes: Axes, results: Results, cause: str) -> None:
    for place, remedy in enumerate(reversed(REMEDIES)):
        accuracies = [100 * outcome.accuracy for outcome in results[cause, remedy]]
        axes.barh(place, statistics.median(accuracies), 0.6, color=COLOURS[remedy], alpha=0.75)
        axes.plot(accuracies, [place] * len(accuracies), "o", color="black", markersize=4)
    axes.axvline(100 * CHANCE, color="black", linestyle=":", linewidth=1.5)
    axes.text(100 * CHANCE + 1, len(REMEDIES) - 0.55, "chance", fontsize=9)
    axes.set_yticks(range(len(REMEDIES)), list(reversed(REMEDIES)))
    axes.set(title="What it learned in the end", xlabel="accuracy on new points, %", xlim=(0, 103))
    axes.set_ylim(-0.6, len(REMEDIES) - 0.3)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)


def draw(results: Results) -> Figure:
    """A row for each cause: silent units while it trains, accuracy afterwards."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 2, width_ratios=(3, 2))
    for row, cause in zip(panels, CAUSES, strict=True):
        _draw_silent(row[0], results, cause)
        _draw_accuracy(row[1], results, cause)
    panels[0, 0].legend(loc="center right", fontsize=10)
    seeds = len(next(iter(results.values())))
    figure.suptitle(
        "Dead units: the remedy has to fit the cause"
        + (f"  (medians of {seeds} starts, each a dot)" if seeds > 1 else ""),
        fontsize=15,
    )
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story."""
    arguments = parse_arguments(__doc__, "dead_units", argv)
    torch.set_num_threads(1)  # tensors too small for more to pay
    results = run(arguments.quick)
    print_results(results)
    save(draw(results), arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

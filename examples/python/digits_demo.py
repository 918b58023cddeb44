"""Part 2: the same small network trained with ReLU, Leaky ReLU and PReLU, all by our operator.

The three differ only in the slope of the negative side: frozen at 0, frozen at 0.01, or learned.
Data: scikit-learn's 1797 real 8×8 images of handwritten digits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from digits_figure import save_figure
from report import Checks, new_table
from rich.console import Console
from rich.progress import Progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F
from worked_values import check_worked_values

import torch_ext

# Name -> (initial slope, learned?).
WAYS = {"ReLU": (0.0, False), "Leaky ReLU": (0.01, False), "PReLU": (0.25, True)}
# High on purpose, for all three alike, so that units die within a short training; at 0.1 some runs
# diverge.
LEARNING_RATE = 0.05


class DigitsNet(nn.Module):
    """Two convolutions and two dense layers, with one slope per channel after the first three."""

    def __init__(self, slope: float, learned: bool) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(1, 16, 3, padding=1), torch_ext.PReLU(16, init=slope)
        self.conv2, self.act2 = nn.Conv2d(16, 32, 3, padding=1), torch_ext.PReLU(32, init=slope)
        self.dense1, self.act3 = nn.Linear(32 * 2 * 2, 64), torch_ext.PReLU(64, init=slope)
        self.dense2 = nn.Linear(64, 10)
        for activation in self.activations():
            activation.weight.requires_grad_(learned)

    def activations(self) -> list[torch_ext.PReLU]:
        """Return the three activations, first to last."""
        return [self.act1, self.act2, self.act3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 8, 8) images to (N, 10) logits."""
        x = F.max_pool2d(self.act1(self.conv1(x)), 2)
        x = F.max_pool2d(self.act2(self.conv2(x)), 2)
        return self.dense2(self.act3(self.dense1(x.flatten(1))))


@dataclass
class Result:
    """What one way of training gave: one row per seed."""

    accuracy: list[list[float]] = field(
        default_factory=list
    )  # on the test images, after each epoch
    silent: list[list[list[bool]]] = field(
        default_factory=list
    )  # [seed][layer][channel], see silent_units
    slopes: list[list[torch.Tensor]] = field(default_factory=list)  # [seed][layer] -> (C,)

    def silent_share(self, layer: int) -> float:
        """Share of a layer's units with no positive input, over all seeds."""
        return float(np.mean([seed[layer] for seed in self.silent]))


def silent_units(net: DigitsNet, images: torch.Tensor) -> list[list[bool]]:
    """Per layer and channel: no image gives a positive input, anywhere in the channel.

    With slope 0 such a unit is dead: output and gradient are 0 for all images, so that it cannot
    recover. With any other slope it still passes a gradient.
    """
    silent: list[list[bool]] = []
    handles = [
        a.register_forward_pre_hook(
            lambda _, x: silent.append((x[0].movedim(1, 0).flatten(1) <= 0).all(1).tolist())
        )
        for a in net.activations()
    ]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    return silent


def train(way: str, seed: int, epochs: int, split: list[torch.Tensor], result: Result) -> None:
    """Train one network, append what came out; a seed gives all ways the same start and batches."""
    train_x, test_x, train_y, test_y = split
    torch.manual_seed(seed)
    net = DigitsNet(*WAYS[way])
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=0.9)
    accuracy = []
    for _ in range(epochs):
        for batch in torch.randperm(len(train_x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(train_x[batch]), train_y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy.append((net(test_x).argmax(1) == test_y).double().mean().item())
    result.accuracy.append(accuracy)
    result.silent.append(silent_units(net, train_x))
    result.slopes.append([a.weight.detach().clone() for a in net.activations()])


def print_results(results: dict[str, Result], checks: Checks) -> None:
    """Print the three ways as a table, and make the checks that follow from their definition."""
    table = new_table("Digits: final test accuracy and silent units")
    table.add_column("activation")
    for heading in (
        "accuracy\nmedian",
        "lowest\nseed",
        "highest\nseed",
        "silent\nlayer 1",
        "\nlayer 2",
        "\nlayer 3",
    ):
        table.add_column(heading, justify="right")
    table.add_column("slopes after training")
    for way, result in results.items():
        final = np.array(result.accuracy)[:, -1]
        slopes = torch.cat([s for seed in result.slopes for s in seed])
        low, high = slopes.min().item(), slopes.max().item()
        table.add_row(
            way,
            *(f"{v:.1%}" for v in (np.median(final), final.min(), final.max())),
            *(f"{result.silent_share(layer):.1%}" for layer in range(3)),
            f"{low:g}" if low == high else f"{low:.2f} … {high:.2f}",
        )
    checks.console.print(table)
    checks.console.print(
        "silent: units that no training image makes positive. With ReLU they are dead (slope 0\n"
        "passes no gradient, so that they cannot recover); with the other two they go on learning.",
        highlight=False,
    )
    for way, (slope, learned) in WAYS.items():
        values = torch.cat([s for seed in results[way].slopes for s in seed])
        if learned:
            moved = bool(values.isfinite().all()) and not bool((values == slope).all())
            checks.expect(moved, f"{way}: the slopes moved, and all are finite")
        else:
            checks.expect(
                torch.equal(values, torch.full_like(values, slope)),
                f"{way}: the slopes stayed frozen",
            )
        # Chance is 10 %, and a run that diverged stays there.
        accuracy = float(np.median([a[-1] for a in results[way].accuracy]))
        checks.expect(accuracy > 0.5, f"{way}: the network learned (median accuracy above 50%)")


def run(console: Console, output: Path, quick: bool) -> Checks:
    """Run part 2 and write `activations.png` to `output`."""
    checks = Checks(console)
    check_worked_values(checks)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16.0
    labels = torch.from_numpy(digits.target).long()
    order = train_test_split(
        np.arange(len(images)), test_size=0.25, random_state=0, stratify=digits.target
    )
    split = [part[torch.from_numpy(index)] for part in (images, labels) for index in order]
    seeds, epochs = (1, 8) if quick else (5, 20)
    console.print(
        f"{len(order[0])} training, {len(order[1])} test images, {seeds} seed(s), "
        f"{epochs} epochs, SGD at rate {LEARNING_RATE}:\n"
        "the same start, batches and split for all three."
    )
    results = {way: Result() for way in WAYS}
    threads = torch.get_num_threads()
    # One thread: these tensors are too small for more to pay, and on a busy machine more costs.
    torch.set_num_threads(1)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("training", total=len(WAYS) * seeds)
        for seed in range(seeds):
            for way, result in results.items():
                progress.update(task, description=f"training {way}, seed {seed}")
                train(way, seed, epochs, split, result)
                progress.advance(task)
    torch.set_num_threads(threads)
    print_results(results, checks)
    console.print(f"picture: {save_figure(results, output / 'activations.png')}")
    return checks

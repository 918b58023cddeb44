"""Part 4: norm and PReLU as one operator, in a network like MobileFaceNet, trained on the digits.

Three copies of one network get the same batches: with PyTorch's modules, after `replace_prelu`, and after
`fuse_norm_prelu`. They take turns at every step, so that whatever else the machine does slows all of them.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from report import Checks, new_table
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import torch_ext

BATCH, SIDE = 64, 24
LEARNING_RATE = 0.1
# The copies' sums are rounded differently, and training amplifies that from step to step.
TOLERANCE = 0.02
COLOURS = ("#868e96", "#1c7ed6", "#e8590c")


def conv_norm_prelu(inputs: int, outputs: int, size: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, PReLU."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.PReLU(outputs)]


class Bottleneck(nn.Module):
    """MobileNetV2's, as MobileFaceNet has it: wider, depthwise, and linear back, beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.residual = nn.Sequential(
            *conv_norm_prelu(channels, wide),
            *conv_norm_prelu(wide, wide, 3, groups=wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same shape."""
        return x + self.residual(x)


def network() -> nn.Module:
    """(N, 1, H, W) images to (N, 10) logits; 6 norms that a PReLU follows, 2 that none does."""
    return nn.Sequential(
        *conv_norm_prelu(1, 32, 3),
        Bottleneck(32),
        Bottleneck(32),
        nn.AvgPool2d(2),
        *conv_norm_prelu(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


@dataclass
class Way:
    """One of the three, and what was measured of it."""

    name: str
    model: nn.Module
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each step
    saved: int = 0  # bytes between forward and backward

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on one batch."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())

    @property
    def milliseconds(self) -> float:
        """Of a step; the first two pay for threads and memory."""
        return statistics.median(self.seconds[2:]) * 1e3


def bytes_held(forward: Callable[[], Tensor]) -> int:
    """Memory that stays allocated after a forward: almost all of it is kept for the backward."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = forward()
    del result
    events = profiler.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


def three_ways(images: Tensor) -> list[Way]:
    """Copies of one network; an optimizer may also be made before a network is changed."""
    torch.manual_seed(0)
    model = network()
    replaced, fused = copy.deepcopy(model), copy.deepcopy(model)
    torch_ext.replace_prelu(replaced)
    torch_ext.fuse_norm_prelu(fused, images)
    return [
        Way("PyTorch's modules", model),
        Way("replace_prelu", replaced),
        Way("fuse_norm_prelu", fused),
    ]


def print_results(ways: list[Way], checks: Checks) -> None:
    """Print the three as a table, and check what does not depend on the machine."""
    table = new_table("A network like MobileFaceNet on digits, one training step")
    for heading in ("modules", "first loss", "last loss", "ms", "times as fast", "MB saved"):
        table.add_column(heading, justify="left" if heading == "modules" else "right")
    first = ways[0]
    for way in ways:
        table.add_row(
            way.name,
            f"{way.losses[0]:.6f}",
            f"{way.losses[-1]:.6f}",
            f"{way.milliseconds:.1f}",
            f"{first.milliseconds / way.milliseconds:.2f}×",
            f"{way.saved / 1e6:.1f}",
        )
    checks.console.print(table)
    checks.console.print("saved: memory kept from the forward for the backward.", highlight=False)
    for way in ways[1:]:
        apart = max(abs(a - b) for a, b in zip(way.losses, first.losses, strict=True))
        checks.expect(apart < TOLERANCE, f"{way.name}: the losses of all steps are PyTorch's")
    learned = statistics.mean(first.losses[-3:]) < 0.95 * first.losses[0]
    checks.expect(learned or len(first.losses) < 10, "the network learns")
    checks.expect(ways[2].saved < 0.85 * first.saved, "fused, less is kept for the backward")


def save_figure(ways: list[Way], path: Path) -> Path:
    """Draw time and memory as bars; return the path written."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    names = [way.name for way in ways]
    for axes, title, values in (
        (panels[0], "One training step, ms", [way.milliseconds for way in ways]),
        (panels[1], "Kept for the backward, MB", [way.saved / 1e6 for way in ways]),
    ):
        bars = axes.barh(names, values, color=COLOURS)
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("The same network, losses and parameters")
    figure.savefig(path, dpi=100)
    return path


def run(console: Console, output: Path, quick: bool) -> Checks:
    """Run part 4 and write `norms.png` to `output`."""
    checks = Checks(console)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16.0
    images = F.interpolate(images, SIDE)  # the sizes at which such networks work
    labels = torch.from_numpy(digits.target).long()
    ways = three_ways(images[:2])
    batches = torch.randperm(len(images)).split(BATCH)[: 4 if quick else 20]
    for batch in track(batches, "training", console=console, transient=True):
        for way in ways:
            way.step(images[batch], labels[batch])
    for way in ways:
        way.saved = bytes_held(lambda way=way: way.model(images[batches[0]]))
    print_results(ways, checks)
    console.print(f"picture: {save_figure(ways, output / 'norms.png')}")
    return checks

"""What the three stories told with ActivationMonitor share: the command line, colours, spirals."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

# Told apart by people with any colour vision (after Okabe and Ito), and by dashes besides.
DARK, BLUE, GREEN, ORANGE, PURPLE = "#343a40", "#0072b2", "#009e73", "#e8590c", "#9c4f96"
CHANCE = 1 / 3  # accuracy of a guess, and the share of each spiral


def parse_arguments(doc: str, name: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Read --quick and --output FILE."""
    default = Path(__file__).resolve().parents[2] / "build" / "demo" / f"{name}.png"
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=default, help="the picture (%(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="a small run that only shows that all works"
    )
    return parser.parse_args(argv)


def save(figure: Figure, path: Path) -> None:
    """Write the picture and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"picture: {path}")


def spirals(seed: int, points: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (N, 2) on three noisy spirals within the unit circle, and which (N) each is on."""
    noise = torch.randn(points, generator=torch.Generator().manual_seed(seed))
    radius = torch.linspace(0.1, 1, points // 3).repeat(3)
    label = torch.arange(3).repeat_interleave(points // 3)
    angle = 5 * radius + label * 2 * math.pi / 3 + 0.15 * noise
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), label


def batches(
    steps: int, points: torch.Tensor, labels: torch.Tensor, size: int = 128
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same random batches for every network."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(0, len(points), (size,), generator=generator)
        yield points[chosen], labels[chosen]

"""Makes the ReLUs of a trained network learnable, goes on training, and exports the result.

    python examples/python/convert_relu_model.py [--quick] [--output FILE]

A small residual network of the usual kind is trained with ReLU. `parametrize_relu` turns each ReLU
into a PReLU with one slope per channel that starts at 0: the same function. A short training then
moves the slopes. For export, `restore_prelu` leaves a network of plain nn.PReLU: the file runs
where torch_ext is not installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from shapes import NAMES, pictures
from torch import nn
from torch.nn import functional as F
from training import accuracy, parameter_groups, progress

import torch_ext

BATCH = 32
WEIGHT_DECAY = 0.01


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, as in torchvision: one ReLU object, used twice."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        hidden = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


def residual_network() -> nn.Sequential:
    """(N, 1, H, W) images to (N, 4) logits."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        *(BasicBlock(16, 16, 1), BasicBlock(16, 32, 2), BasicBlock(32, 32, 2)),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, len(NAMES))),
    )


def train(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float
) -> None:
    """The usual loop, rates falling to 0; slopes, if there are any, without weight decay."""
    optimizer = torch.optim.AdamW(parameter_groups(model, rate, WEIGHT_DECAY))
    batches = [b for _ in range(epochs) for b in torch.randperm(len(images)).split(BATCH)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    model.train()
    for batch in progress(batches, "training"):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()


def slopes_by_layer(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name of each PReLU and a copy of its slopes (C)."""
    return {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.PReLU)
    }


def print_slopes(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """A row for each layer; how far its slopes moved."""
    print(f"\n{'layer':8}{'slopes':>7}{'before':>9}{'after: least':>15}{'mean':>8}{'largest':>9}")
    for name, slopes in after.items():
        print(
            f"{name:8}{len(slopes):7}{before[name].mean().item():9.2f}{slopes.min().item():15.2f}"
            f"{slopes.mean().item():8.2f}{slopes.max().item():9.2f}"
        )


def export(model: nn.Module, images: torch.Tensor, path: Path) -> bool:
    """Writes the network with plain nn.PReLU; whether what is read back computes the same."""
    model.eval()
    with torch.no_grad():
        expected = model(images)
    torch_ext.restore_prelu(model)
    count = torch.export.Dim("count", min=2)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: count},))
    torch.export.save(program, path)
    with torch.no_grad():
        outputs = torch.export.load(path).module()(images)
    return torch.allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    default = Path(__file__).resolve().parents[2] / "build" / "demo" / "converted.pt2"
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=default, help="the export (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a network; 0 if it stayed the same function, learned, and was exported."""
    arguments = parse_arguments(argv)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = pictures(1200 if arguments.quick else 4000, seed=0)
    unseen = pictures(1000, seed=1)

    model = residual_network()
    train(model, images, labels, epochs=2 if arguments.quick else 4, rate=0.01)
    print(f"with ReLU         accuracy {accuracy(model, *unseen):.1%} of unseen pictures\n")

    model.eval()
    with torch.no_grad():
        outputs = model(unseen[0])
        print(torch_ext.parametrize_relu(model, example_inputs=images[:2]))
        same = torch.equal(model(unseen[0]), outputs)
    print(f"\noutputs after the conversion: {'identical' if same else 'DIFFERENT'}")

    before = slopes_by_layer(model)
    train(model, images, labels, epochs=1 if arguments.quick else 4, rate=0.003)
    after = slopes_by_layer(model)
    print_slopes(before, after)
    learned = all(bool((after[name] != before[name]).any()) for name in after)
    print(f"\nwith PReLU        accuracy {accuracy(model, *unseen):.1%} of unseen pictures")
    exported = export(model, unseen[0], arguments.output)
    print(f"exported: {arguments.output}, computes {'the same' if exported else 'SOMETHING ELSE'}")
    return 0 if same and learned and exported else 1


if __name__ == "__main__":
    sys.exit(main())

"""What the training examples share: parameter groups, accuracy, a bar that shows progress."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

import torch
from torch import nn

import torch_ext

Item = TypeVar("Item")

SLOPE_RATE = 0.01


def parameter_groups(model: nn.Module, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer: weight decay for weights, none for slopes, biases and batch norm.

    Decay would pull a slope to 0, which is ReLU: a choice of function, not of size. Slopes have a
    rate of their own, for Adam steps by about its rate: 0.01 reaches any useful slope in 50 steps.
    """
    slopes = torch_ext.slope_parameters(model)
    held = {id(slope) for slope in slopes}
    others = [parameter for parameter in model.parameters() if id(parameter) not in held]
    return [
        {"params": [p for p in others if p.dim() > 1], "lr": rate, "weight_decay": weight_decay},
        {"params": [p for p in others if p.dim() <= 1], "lr": rate, "weight_decay": 0.0},
        {"params": slopes, "lr": SLOPE_RATE, "weight_decay": 0.0},
    ]


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose label the model finds, in eval mode; it is put back into training."""
    model.eval()
    right = (model(images).argmax(1) == labels).double().mean().item()
    model.train()
    return right


def progress(steps: Iterable[Item], label: str, width: int = 30) -> Iterator[Item]:
    """Passes the steps on, and shows a bar where somebody can see it: on a terminal."""
    total = len(steps) if isinstance(steps, Sized) else 0
    shown = total > 0 and sys.stderr.isatty()
    for done, step in enumerate(steps):
        if shown:
            bar = "#" * (width * done // total)
            print(f"\r{label} [{bar:{width}}] {done}/{total}", end="", file=sys.stderr, flush=True)
        yield step
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)

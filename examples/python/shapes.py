"""Data that needs no download: noisy pictures of four shapes, to be told apart."""

from __future__ import annotations

import torch

NAMES = ("disc", "square", "triangle", "cross")
SIDE = 20  # pixels
NOISE = 0.25  # standard deviation; a shape is 1 on 0


def pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, SIDE, SIDE) and their labels (N): anywhere, of any size and angle."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    labels = torch.randint(len(NAMES), (count,), generator=generator)
    radius, angle = between(4, 7), between(0, 2 * torch.pi)
    pixels = torch.arange(SIDE, dtype=torch.float32)
    x = (pixels.view(1, 1, -1) - between(7, SIDE - 8)) / radius
    y = (pixels.view(1, -1, 1) - between(7, SIDE - 8)) / radius
    u, v = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
    inside = torch.stack(
        [
            u**2 + v**2 < 0.8,
            torch.maximum(u.abs(), v.abs()) < 0.8,
            (v > -0.5) & (v + 1.7 * u.abs() < 1),
            (torch.minimum(u.abs(), v.abs()) < 0.3) & (torch.maximum(u.abs(), v.abs()) < 1),
        ]
    )
    images = inside[labels, torch.arange(count)].float()
    images += NOISE * torch.randn(images.shape, generator=generator)
    return images.unsqueeze(1), labels

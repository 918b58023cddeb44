"""One training step of an MTCNN network on crops of a photograph; every PReLU layer recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Crops:
    """Training data: images (N, 3, side, side) and the targets of MTCNN's losses."""

    images: torch.Tensor
    overlap: torch.Tensor  # (N,) intersection over union with the face
    offsets: torch.Tensor  # (N, 4) face box relative to the crop, in crop sizes
    landmarks: torch.Tensor  # (N, 10) five x, then five y, relative to the crop


@dataclass
class LayerRecord:
    """What one PReLU layer saw and gave in one training step (slope: before the step)."""

    slope: torch.Tensor
    input: torch.Tensor
    output: torch.Tensor
    grad_output: torch.Tensor = field(init=False)
    grad_input: torch.Tensor = field(init=False)
    grad_slope: torch.Tensor = field(init=False)


def sample_crops(
    photo: np.ndarray, face: np.ndarray, points: np.ndarray, side: int, count: int
) -> Crops:
    """Cut squares from the photograph, half near the face, half anywhere; fixed for one `side`."""
    rng = np.random.default_rng(side)
    height, width = photo.shape[:2]
    pixels = torch.from_numpy(photo.copy()).permute(2, 0, 1).float()[None]
    face_size = float(max(face[2] - face[0], face[3] - face[1]))
    centre = (face[:2] + face[2:]) / 2
    images, corners, sizes = [], [], []
    for i in range(count):
        if i % 2:
            size = rng.uniform(0.7, 1.4) * face_size
            corner = centre - size / 2 + rng.uniform(-0.25, 0.25, 2) * face_size
        else:
            size = rng.uniform(20.0, 200.0)
            corner = rng.uniform(0.0, 1.0, 2) * (width - size, height - size)
        size = int(min(size, width, height))
        left, top = np.clip(corner, 0, (width - size, height - size)).astype(int)
        crop = pixels[:, :, top : top + size, left : left + size]
        images.append((F.interpolate(crop, (side, side), mode="area") - 127.5) / 128.0)
        corners.append((left, top))
        sizes.append(size)

    corner, size = np.array(corners, dtype=np.float64), np.array(sizes, dtype=np.float64)[:, None]
    low = np.maximum(corner, face[:2])
    high = np.minimum(corner + size, face[2:])
    common = np.clip(high - low, 0, None).prod(1)
    overlap = common / (size[:, 0] ** 2 + (face[2:] - face[:2]).prod() - common)
    offsets = np.hstack([(face[:2] - corner) / size, (face[2:] - corner - size) / size])
    landmarks = (
        ((points[None] - corner[:, None]) / size[:, None]).transpose(0, 2, 1).reshape(count, 10)
    )
    targets = (torch.from_numpy(np.asarray(a)).float() for a in (overlap, offsets, landmarks))
    return Crops(torch.cat(images), *targets)


def loss_of(net: nn.Module, crops: Crops) -> torch.Tensor:
    """MTCNN's losses with the published weights: face or not, box offsets, landmarks (ONet)."""
    outputs = [output.flatten(1) for output in net(crops.images)]
    offsets, probabilities = outputs[0], outputs[-1]  # ONet has the landmarks in between
    face, background, part = crops.overlap > 0.65, crops.overlap < 0.3, crops.overlap > 0.4
    judged = face | background
    loss = F.nll_loss(probabilities[judged].clamp_min(1e-6).log(), face[judged].long())
    loss = loss + 0.5 * F.mse_loss(offsets[part], crops.offsets[part])
    if len(outputs) == 3:
        loss = loss + F.mse_loss(outputs[1][face], crops.landmarks[face])
    return loss


def train_step(net: nn.Module, crops: Crops, name: str) -> dict[str, LayerRecord]:
    """Forward, backward and one SGD step; a record for each PReLU layer, by name."""
    records: dict[str, LayerRecord] = {}

    def keep(layer: str) -> Callable[[nn.PReLU, tuple[torch.Tensor], torch.Tensor], None]:
        def hook(module: nn.PReLU, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            x = inputs[0]
            record = LayerRecord(
                module.weight.detach().clone(), x.detach().clone(), output.detach().clone()
            )
            records[layer] = record
            x.register_hook(lambda g: setattr(record, "grad_input", g.clone()))
            output.register_hook(lambda g: setattr(record, "grad_output", g.clone()))

        return hook

    layers = {f"{name}.{k}": m for k, m in net.named_modules() if isinstance(m, nn.PReLU)}
    handles = [module.register_forward_hook(keep(layer)) for layer, module in layers.items()]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    loss_of(net, crops).backward()
    for handle in handles:
        handle.remove()
    for layer, module in layers.items():
        records[layer].grad_slope = module.weight.grad.clone()
    optimizer.step()
    return records


def slope_gradient_error(record: LayerRecord) -> float:
    """Largest error of a layer's slope gradients as a share of the bound: 1 or less when within it.

    The bound: 16·u·Σ|x·g| + ½ ulp, u = 2⁻²⁴. A product of two float32 numbers is exact in float64,
    and math.fsum adds without error, so the reference is the exact sum, rounded once.
    """
    x = record.input.double().movedim(1, 0).flatten(1)
    g = record.grad_output.double().movedim(1, 0).flatten(1)
    worst = 0.0
    for channel, value in enumerate(record.grad_slope.tolist()):
        negative = x[channel] <= 0
        terms = x[channel][negative] * g[channel][negative]
        exact = math.fsum(terms.tolist())
        half_ulp = float(np.spacing(np.float32(abs(exact)))) / 2
        bound = 16 * 2.0**-24 * terms.abs().sum().item() + half_ulp
        worst = max(worst, abs(value - exact) / bound)
    return worst

"""Networks with PReLU, written from their papers, with random weights."""

import torch
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (divided by the stride) and has no bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class IResidual(nn.Module):
    """The residual unit of ArcFace: BN, conv, BN, PReLU, conv, BN; nothing follows the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs),
            conv3x3(inputs, outputs),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            conv3x3(outputs, outputs, stride),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return self.residual(x) + self.shortcut(x)


class IResNet(nn.Module):
    """The face embedding network of ArcFace (Deng et al., arXiv:1801.07698, section 3.1).

    A ResNet whose first convolution keeps the resolution, with `IResidual` units and the output
    "BN, fully connected, BN" (option E, without its dropout). One PReLU per unit and one in the
    stem. `units` is their number in each of the four stages: (2, 2, 2, 2) is IResNet-18,
    (3, 4, 14, 3) is IResNet-50. `side` is the images' in pixels, a multiple of 16.
    """

    def __init__(
        self, units: tuple[int, int, int, int], side: int = 112, embedding: int = 512
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv3x3(3, 64), nn.BatchNorm2d(64), nn.PReLU(64)]
        inputs = 64
        for count, outputs in zip(units, (64, 128, 256, 512), strict=True):
            for unit in range(count):
                layers.append(IResidual(inputs, outputs, stride=1 if unit else 2))
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Flatten(),
            nn.Linear(inputs * (side // 16) ** 2, embedding),
            nn.BatchNorm1d(embedding),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, side, side) images to (N, embedding)."""
        return self.head(self.features(x))


def conv_norm(
    inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> list[nn.Module]:
    """Convolution without bias, batch normalization and, unless it is a linear one, PReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return [*layers, nn.PReLU(outputs)] if act else layers


class Bottleneck(nn.Module):
    """MobileNetV2's: `factor` times as many channels, a depthwise 3x3, and a linear way back."""

    def __init__(self, inputs: int, outputs: int, factor: int, stride: int) -> None:
        super().__init__()
        wide = factor * inputs
        self.residual = nn.Sequential(
            *conv_norm(inputs, wide),
            *conv_norm(wide, wide, 3, stride, groups=wide),
            *conv_norm(wide, outputs, act=False),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return x + self.residual(x) if self.shortcut else self.residual(x)


class MobileFaceNet(nn.Sequential):
    """The face embedding network for phones (Chen et al., arXiv:1804.07573, table 1).

    (N, 3, side, side) images, side a multiple of 16, to (N, embedding). PReLU everywhere but in
    linear layers; a depthwise convolution as large as the last map takes the place of pooling.
    """

    def __init__(self, side: int = 112, embedding: int = 128) -> None:
        # Expansion, channels, number of bottlenecks, stride of the first.
        stages = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
        layers = [*conv_norm(3, 64, 3, stride=2), *conv_norm(64, 64, 3, groups=64)]
        inputs = 64
        for factor, outputs, count, stride in stages:
            for unit in range(count):
                layers.append(Bottleneck(inputs, outputs, factor, 1 if unit else stride))
                inputs = outputs
        last = side // 16
        layers += [
            *conv_norm(inputs, 512),
            nn.Conv2d(512, 512, last, groups=512, bias=False),
            nn.BatchNorm2d(512),
            *conv_norm(512, embedding, act=False),
            nn.Flatten(),
        ]
        super().__init__(*layers)


class FSRCNN(nn.Sequential):
    """Fast super-resolution (Dong et al., arXiv:1608.00367): (N, 1, H, W) to `scale` times H and W.

    Feature extraction with `d` filters, shrinking to `s`, `m` mapping layers, expanding, each with
    a PReLU; a transposed convolution enlarges. (d, s, m) is (56, 12, 4) in the paper's FSRCNN.
    """

    def __init__(self, scale: int = 4, d: int = 56, s: int = 12, m: int = 4) -> None:
        sizes = [(1, d, 5), (d, s, 1), *[(s, s, 3)] * m, (s, d, 1)]
        layers: list[nn.Module] = []
        for inputs, outputs, size in sizes:
            layers += [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.PReLU(outputs)]
        layers.append(nn.ConvTranspose2d(d, 1, 9, scale, padding=4, output_padding=scale - 1))
        super().__init__(*layers)


def slopes(model: nn.Module) -> list[Tensor]:
    """The slopes of all PReLU of a model."""
    return [module.weight for module in model.modules() if isinstance(module, nn.PReLU)]


@torch.no_grad()
def spread_slopes(model: nn.Module) -> None:
    """Draws new slopes from 0 ... 0.5 where all are at 0.25, the start: equal ones hide errors."""
    for slope in slopes(model):
        if (slope == 0.25).all():
            slope.uniform_(0.0, 0.5)

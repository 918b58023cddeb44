"""Networks with norms in front of PReLU, with forwards as libraries write them; small, random weights.

Written for the tests: after the structure of what they are named after, not after its code.
"""

import torch
from torch import nn
from torch.nn import functional as F


class FaceBlock(nn.Module):
    """IResNet's unit, by attributes: one pair, two norms that no PReLU follows, a sum."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        identity = x
        out = self.bn1(x)
        out = self.conv1(out)
        out = self.bn2(out)
        out = self.prelu(out)
        out = self.conv2(out)
        out = self.bn3(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return out


class FaceNetwork(nn.Module):
    """IResNet: the output is a norm's."""

    def __init__(self, units=(2, 2)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.prelu = nn.PReLU(8)
        blocks, inputs = [], 8
        for count, outputs in zip(units, (8, 16), strict=True):
            blocks += [FaceBlock(inputs, outputs, 2)]
            blocks += [FaceBlock(outputs, outputs, 1) for _ in range(count - 1)]
            inputs = outputs
        self.layers = nn.ModuleList(blocks)
        self.bn2 = nn.BatchNorm2d(inputs)
        self.dropout = nn.Dropout(0.0)
        self.fc = nn.Linear(inputs * 4, 12)
        self.features = nn.BatchNorm1d(12)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        for layer in self.layers:
            x = layer(x)
        x = self.dropout(self.bn2(x))
        return self.features(self.fc(torch.flatten(x, 1)))


FACE_PAIRS = ["bn1", "prelu", *(f"layers.{i}.{m}" for i in range(4) for m in ("bn2", "prelu"))]


class MobileBlock(nn.Module):
    """MobileFaceNet's: depthwise in the middle, a linear end, sometimes a shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        wide = 2 * inputs
        self.conv = ConvPReLU(inputs, wide, 1)
        self.conv_dw = ConvPReLU(wide, wide, 3, stride, groups=wide)
        self.project = nn.Sequential(nn.Conv2d(wide, outputs, 1), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.project(self.conv_dw(self.conv(x)))
        return x + y if self.residual else y


class ConvPReLU(nn.Module):
    def __init__(self, inputs, outputs, size, stride=1, groups=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)

    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x)
        x = self.prelu(x)
        return x


def mobile_network():
    blocks = [MobileBlock(8, 8, 1), MobileBlock(8, 16, 2), MobileBlock(16, 16, 1)]
    return nn.Sequential(ConvPReLU(3, 8, 3, 2), *blocks, ConvPReLU(16, 24, 1))


class ConfiguredBlock(nn.Module):
    """As pytorchcv's: attributes decide what is called, and the activation is made by a function."""

    def __init__(self, inputs, outputs, use_bn=True, activation=lambda n: nn.PReLU(n)):
        super().__init__()
        self.activate = activation is not None
        self.use_bn = use_bn
        self.use_pad = False
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        if self.use_bn:
            self.bn = nn.BatchNorm2d(num_features=outputs, eps=1e-3)
        if self.activate:
            self.activ = activation(outputs)

    def forward(self, x):
        if self.use_pad:
            x = F.pad(x, (1, 1, 1, 1))
        x = self.conv(x)
        if self.use_bn:
            x = self.bn(x)
        if self.activate:
            x = self.activ(x)
        return x


class Branches(nn.Module):
    """As DABNet's: two ways that meet in a norm; a norm and a PReLU of the concatenation."""

    def __init__(self):
        super().__init__()
        self.first = ConfiguredBlock(8, 8)
        self.second = ConfiguredBlock(8, 8, activation=None)
        self.norm = nn.BatchNorm2d(16)
        self.activ = nn.PReLU(16)

    def forward(self, x):
        return self.activ(self.norm(torch.cat((self.first(x), self.second(x)), dim=1)))


def configured_network():
    return nn.Sequential(ConfiguredBlock(3, 8), Branches(), ConfiguredBlock(16, 8, use_bn=False))


class NormDropoutPReLU(nn.Sequential):
    """As MONAI's: instance norm, a dropout of nothing, one slope."""

    def __init__(self, channels):
        super().__init__()
        self.add_module("N", nn.InstanceNorm3d(channels))
        self.add_module("D", nn.Dropout(0.0))
        self.add_module("A", nn.PReLU())


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), NormDropoutPReLU(4))
        self.deep = nn.Sequential(nn.Conv3d(4, 4, 3, 1, 1), NormDropoutPReLU(4))
        self.up = nn.Sequential(nn.ConvTranspose3d(8, 2, 2, 2), NormDropoutPReLU(2))
        self.last = nn.Conv3d(2, 2, 1)

    def forward(self, x):
        x = self.down(x)
        return self.last(self.up(torch.cat([x, self.deep(x)], 1)))


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a norm with a forward of its own and an activation inside."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.PReLU(channels)

    def forward(self, x):
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        return self.act(self.drop(x))


def norm_act_network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), NormAct(8), nn.Conv2d(8, 8, 3))


class BasicBlock(nn.Module):
    """As timm's: dropped blocks and anti-aliasing that are Identity; the second PReLU follows a sum."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.drop_block = nn.Identity()
        self.act1 = nn.PReLU()
        self.aa = nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.PReLU()

    def forward(self, x):
        shortcut = x
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.drop_block(x)
        x = self.act1(x)
        x = self.aa(x)
        x = self.conv2(x)
        x = self.bn2(x)
        x += shortcut
        return self.act2(x)


def residual_network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), BasicBlock(8), BasicBlock(8))

"""The networks of benchmarks/networks.py: what the papers say of them.

test_real_models.py puts torch_ext in them.
"""

import pytest
import torch
from paper_networks import networks
from reference import assert_same_bits
from torch import nn

# Small: images of 32x32 rather than 112x112.
CASES = {
    "IResNet-18": (lambda: networks.IResNet((2, 2, 2, 2), side=32), (3, 3, 32, 32), (3, 512), 9),
    "IResNet-50": (lambda: networks.IResNet((3, 4, 14, 3), side=32), (3, 3, 32, 32), (3, 512), 25),
    "MobileFaceNet": (lambda: networks.MobileFaceNet(side=32), (3, 3, 32, 32), (3, 128), 33),
    "FSRCNN": (networks.FSRCNN, (2, 1, 12, 20), (2, 1, 48, 80), 7),
    "FSRCNN x3": (lambda: networks.FSRCNN(scale=3), (2, 1, 12, 20), (2, 1, 36, 60), 7),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    """A model with slopes of its own, its input, the shape of its output, the number of PReLU."""
    build, shape, output_shape, count = request.param
    torch.manual_seed(0)
    model = build()
    networks.spread_slopes(model)
    return model, torch.randn(shape), output_shape, count


def weights(model):
    """Elements of the convolutions' and dense layers' weights, which papers count."""
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, layers))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_output_shape_and_number_of_prelus(case):
    model, x, output_shape, count = case
    assert model(x).shape == output_shape
    assert len(networks.slopes(model)) == count


def test_slopes_are_spread_but_trained_ones_are_left_alone(case):
    model, _, _, _ = case
    before = [slope.clone() for slope in networks.slopes(model)]
    assert all(len(slope.unique()) > 1 for slope in before)
    networks.spread_slopes(model)
    for slope, old in zip(networks.slopes(model), before, strict=True):
        assert_same_bits(slope, old)


def test_fsrcnn_has_as_many_weights_as_the_paper_says():
    assert weights(networks.FSRCNN()) == 12464


@pytest.mark.parametrize(
    ("units", "millions"),
    # Depths 34 and 100: Intel's Open Model Zoo, whose count leaves out what it folds away.
    [((3, 4, 14, 3), 43.59), ((3, 4, 6, 3), 34.13), ((3, 13, 30, 3), 65.13)],
    ids=["50", "34", "100"],
)
def test_iresnet_has_the_published_size(units, millions):
    with torch.device("meta"):
        model = networks.IResNet(units)
        assert model(torch.empty(2, 3, 112, 112)).shape == (2, 512)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.03)


def test_mobilefacenet_has_the_size_and_the_work_of_the_paper():
    """0.99 million parameters, 221 million multiply-adds, and the maps of table 1."""
    shapes, work = [], []
    with torch.device("meta"):
        model = networks.MobileFaceNet().eval()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(
                    lambda conv, _, y: work.append(y.numel() * conv.weight[0].numel())
                )
            if isinstance(layer, networks.Bottleneck):
                layer.register_forward_hook(lambda _, x, y: shapes.append(tuple(y.shape[1:])))
        assert model(torch.empty(1, 3, 112, 112)).shape == (1, 128)
    assert sum(work) / 1e6 == pytest.approx(221, abs=0.1)
    assert shapes == [(64, 28, 28)] * 5 + [(128, 14, 14)] * 7 + [(128, 7, 7)] * 3
    # A batch normalization's two vectors become one bias when it is folded into a convolution.
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    folded = parameters(model) - sum(norm.bias.numel() for norm in norms)
    assert folded / 1e6 == pytest.approx(0.99, abs=0.005)

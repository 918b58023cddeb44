"""The networks of benchmarks/networks.py: what the papers say of them, and with torch_ext in them."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from reference import assert_same_bits
from torch import nn

from torch_ext import replace_prelu

# By its path: benchmarks/ and tests/ have modules of the same names.
SPEC = importlib.util.spec_from_file_location(
    "networks", Path(__file__).parents[1] / "benchmarks" / "networks.py"
)
networks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(networks)

# Small: images of 32x32 rather than 112x112.
CASES = {
    "IResNet-18": (lambda: networks.IResNet((2, 2, 2, 2), side=32), (3, 3, 32, 32), (3, 512), 9),
    "IResNet-50": (lambda: networks.IResNet((3, 4, 14, 3), side=32), (3, 3, 32, 32), (3, 512), 25),
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


def gradients(model, x):
    output = model(x)
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output - target).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def weights(model):
    """Elements of the convolutions' and dense layers' weights, which papers count."""
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, layers))


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


def test_swapped_model_has_the_same_outputs_and_gradients(case):
    stock, x, _, count = case
    ours = copy.deepcopy(stock)
    report = replace_prelu(ours)
    assert len(report.swapped) == count
    assert report.skipped == []

    positive = []
    for module in stock.modules():
        if isinstance(module, nn.PReLU):
            module.register_forward_hook(lambda m, args, y: positive.append((args[0] > 0).float()))
    assert_same_bits(ours(x), stock(x))
    assert len(positive) == count
    assert all(0 < share.mean() < 1 for share in positive)

    expected = gradients(stock, x)
    slopes = {id(slope) for slope in networks.slopes(ours)}
    own = {name for name, parameter in ours.named_parameters() if id(parameter) in slopes}
    for name, gradient in gradients(ours, x).items():
        error = (gradient - expected[name]).norm()
        assert error <= (1e-5 if name in own else 1e-6) * expected[name].norm(), name
        assert name not in own or gradient.norm() > 0, name


def test_evaluated_outputs_have_the_same_bits(case):
    stock, x, _, _ = case
    ours = copy.deepcopy(stock)
    replace_prelu(ours)
    with torch.inference_mode():
        assert_same_bits(ours.eval()(x), stock.eval()(x))


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
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.03)

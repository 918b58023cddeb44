"""fuse_norm_prelu on models: every pair is found or named, outputs and gradients are right.

In float64 against the same model unchanged; in float32 against the same in float64, with PyTorch's own
float32 error as the measure. Models of timm, pytorchcv and MONAI are skipped without these packages.
"""

import copy

import pytest
import torch
from fused_networks import (
    FACE_PAIRS,
    FaceNetwork,
    Volume,
    configured_network,
    mobile_network,
    norm_act_network,
    residual_network,
)
from norm_pairs import assert_same, calls_of, outcome, randomized, sample
from paper_networks import networks
from test_real_models import monai_unet, packaged
from torch import nn

from torch_ext import fuse_norm_prelu, restore_prelu

pytestmark = pytest.mark.contract


def timm_resnet18():
    create = packaged("timm", "create_model")
    return create("resnet18", act_layer=packaged("timm.layers", "PReLU"), num_classes=3)


def pytorchcv(name):
    return lambda: packaged("pytorchcv.model_provider", "get_model")(name, num_classes=3)


PAIRS = "pairs"  # stands for: each norm that is swapped has a PReLU of its own

# How to build it, an input, how many pairs there are, and the reasons of what is skipped.
NO_PRELU, NO_NORM = "no PReLU got its result", "what it got is not the result of a batch or"
OWN = "NormAct has a forward of its own"
MODELS = {
    "IResNet": (FaceNetwork, (3, 3, 8, 8), 5, {NO_PRELU}),
    "IResNet-18 of a Sequential": (
        lambda: networks.IResNet((2, 2, 2, 2), side=16),
        (3, 3, 16, 16),
        9,
        {NO_PRELU},
    ),
    "MobileFaceNet": (mobile_network, (3, 3, 8, 8), 8, {NO_PRELU}),
    "MobileFaceNet of a Sequential": (
        lambda: networks.MobileFaceNet(side=32),
        (3, 3, 32, 32),
        33,
        {NO_PRELU},
    ),
    "blocks by attributes": (configured_network, (2, 3, 8, 8), 3, {NO_PRELU, NO_NORM}),
    "instance norm, dropout of nothing": (Volume, (2, 1, 8, 8, 8), 3, set()),
    "norm with an activation": (norm_act_network, (2, 3, 8, 8), 0, {OWN, NO_NORM}),
    "residual network": (residual_network, (2, 3, 8, 8), 2, {NO_PRELU, NO_NORM}),
    "MONAI UNet": (monai_unet, (2, 1, 16, 16, 16), 9, set()),
    "timm resnet18": (timm_resnet18, (2, 3, 64, 64), 9, {NO_PRELU, NO_NORM}),
    "pytorchcv ENet": (pytorchcv("enet_cityscapes"), (2, 3, 64, 64), PAIRS, None),
    "pytorchcv DABNet": (pytorchcv("dabnet_cityscapes"), (2, 3, 64, 64), PAIRS, None),
}


# Large ones, of what small ones above show.
LONG = ("IResNet-18 of a Sequential", "MobileFaceNet of a Sequential")
PARAMS = [
    pytest.param(case, id=name, marks=pytest.mark.full if name in LONG else ())
    for name, case in MODELS.items()
]


@pytest.fixture(params=PARAMS)
def case(request):
    build, shape, pairs, reasons = request.param
    torch.manual_seed(0)
    model = build().double()
    networks.spread_slopes(model)
    return model, sample(*shape), pairs, reasons


def is_norm(module):
    return isinstance(
        module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    )


def test_every_pair_is_found_or_named(case):
    model, x, pairs, reasons = case
    modules = dict(model.named_modules())
    report = fuse_norm_prelu(model, x)
    candidates = {n for n, m in modules.items() if is_norm(m) or isinstance(m, nn.PReLU)}
    assert {*report.swapped, *dict(report.skipped)} == candidates
    swapped = [is_norm(modules[name]) for name in report.swapped]
    if pairs == PAIRS:
        assert swapped.count(True) == swapped.count(False) > 0
    else:
        assert swapped.count(True) == swapped.count(False) == pairs
    if reasons is not None:
        found = {reason for _, reason in report.skipped}
        assert all(any(r.startswith(reason) for reason in reasons) for r in found)
        assert len(found) == len(reasons)
    made, _ = calls_of(lambda: model.eval()(x))
    assert made >= swapped.count(False)
    restore_prelu(model)
    assert all(type(m).__call__ is nn.Module.__call__ for m in modules.values())


def assert_same_as_tensors(actual, expected):
    """As assert_same, by the distance of whole tensors: hundreds of layers cancel single elements."""
    assert actual.keys() == expected.keys()
    assert any(value is not None and value.abs().max() > 1e-3 for value in expected.values())
    for name, value in expected.items():
        assert (actual[name] is None) is (value is None), name
        if value is not None:
            distance, size = (actual[name] - value).double().norm(), value.double().norm()
            assert distance <= 1e-11 + 1e-9 * size, (name, distance, size)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("by", ["example", "order"])
def test_outputs_gradients_and_statistics_in_float64(case, by, training):
    model, x, pairs, _ = case
    model.train(training)
    fused = copy.deepcopy(model)
    fuse_norm_prelu(fused, x if by == "example" else None)
    torch.manual_seed(1)
    expected = outcome(model, x, steps=1)
    torch.manual_seed(1)
    made, actual = calls_of(lambda: outcome(fused, x, steps=1))
    assert bool(made) is (pairs != 0)
    if pairs == PAIRS:
        assert_same_as_tensors(actual, expected)
    else:
        assert_same(actual, expected)


def test_in_float32_it_errs_no_more_than_pytorch(case):
    """By the distance of whole tensors, so that an element that changes sides counts as what it is."""
    exact, x, pairs, _ = case
    if pairs == PAIRS:
        exact.eval()  # an active dropout draws other numbers in another dtype
    plain = copy.deepcopy(exact).float()
    fused = copy.deepcopy(plain)
    fuse_norm_prelu(fused, x.float())
    expected = outcome(exact, x, steps=1)
    errors = []
    for model in (plain, fused):
        found = outcome(model, x.float(), steps=1)
        errors.append({n: distance(found[n], value) for n, value in expected.items()})
    for name, error in errors[1].items():
        scale = 0.0 if expected[name] is None else expected[name].double().norm().item()
        assert error <= 3 * errors[0][name] + 1e-5 * scale + 1e-6, name


def distance(actual, expected):
    return 0.0 if expected is None else (actual.double() - expected.double()).norm().item()


def test_the_names_of_a_face_network():
    model = randomized(FaceNetwork())
    assert fuse_norm_prelu(model, sample(3, 3, 8, 8)).swapped == FACE_PAIRS
    model = randomized(FaceNetwork())
    report = fuse_norm_prelu(model)
    assert {*FACE_PAIRS} <= {*report.swapped}
    assert ("features", "no PReLU comes after it") in report.skipped

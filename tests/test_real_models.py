"""replace_prelu and restore_prelu on models that people use.

IResNet, MobileFaceNet and FSRCNN are written from their papers (benchmarks/networks.py). MTCNN (with
its trained weights), MONAI's UNet and Real-ESRGAN's compact generator come from packages, and their
tests are skipped without them.
"""

import copy
import importlib
import io
import pickle

import pytest
import torch
from paper_networks import networks
from reference import assert_same_bits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torch_ext
from torch_ext import replace_prelu, restore_prelu

pytestmark = pytest.mark.contract


def packaged(module, attribute):
    """A class out of a package that may be missing, or may not fit this torch."""
    try:
        # By itself first: a package that fails leaves modules below it behind, and those would fail otherwise.
        importlib.import_module(module.partition(".")[0])
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{module}: {error}")


def mtcnn(stage):
    """With the trained weights that facenet-pytorch packages."""
    return lambda: packaged("facenet_pytorch.models.mtcnn", stage)()


def monai_unet():
    return packaged("monai.networks.nets", "UNet")(
        3, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2), num_res_units=2
    )


def compact():
    """SRVGGNetCompact."""
    cls = packaged("spandrel.architectures.Compact", "Compact")
    return cls(num_in_ch=3, num_out_ch=3, num_feat=16, num_conv=4, upscale=4)


# How to build it, the shape of an input, the number of PReLU.
MODELS = {
    "IResNet-18": (lambda: networks.IResNet((2, 2, 2, 2), side=32), (3, 3, 32, 32), 9),
    "MobileFaceNet": (lambda: networks.MobileFaceNet(side=32), (3, 3, 32, 32), 33),
    "FSRCNN": (networks.FSRCNN, (2, 1, 12, 20), 7),
    "MTCNN PNet": (mtcnn("PNet"), (2, 3, 24, 20), 3),
    "MTCNN RNet": (mtcnn("RNet"), (4, 3, 24, 24), 4),
    "MTCNN ONet": (mtcnn("ONet"), (4, 3, 48, 48), 5),
    "MONAI UNet 3-D": (monai_unet, (2, 1, 16, 16, 16), 9),
    "Real-ESRGAN compact": (compact, (2, 3, 12, 16), 5),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def case(request):
    """A stock model with slopes of its own, and its input."""
    build, shape, _ = request.param
    torch.manual_seed(0)
    model = build().requires_grad_()
    networks.spread_slopes(model)
    return model, torch.randn(shape)


@pytest.fixture
def swapped(case, request):
    """A copy of the same model with the fused operator."""
    model = copy.deepcopy(case[0])
    report = replace_prelu(model)
    assert len(report.swapped) == request.node.callspec.params["case"][2]
    assert report.skipped == []
    return model


def outputs_of(model, x):
    outputs = model(x)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def assert_same_outputs(model, expected, x):
    for ours, stock in zip(outputs_of(model, x), outputs_of(expected, x), strict=True):
        assert_same_bits(ours, stock)


def loss(model, x):
    generator = torch.Generator().manual_seed(1)
    return sum(
        (output - torch.randn(output.shape, generator=generator)).square().mean()
        for output in outputs_of(model, x)
    )


def fused(model):
    return [isinstance(m, torch_ext.PReLU) for m in model.modules() if isinstance(m, nn.PReLU)]


# ---- Outputs and gradients ---------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_outputs_keep_their_bits(case, swapped, training):
    stock, x = case
    stock.train(training)
    swapped.train(training)
    positive = []
    for module in stock.modules():
        if isinstance(module, nn.PReLU):
            module.register_forward_hook(lambda _, args, y: positive.append((args[0] > 0).float()))
    with torch.inference_mode(not training):
        assert_same_outputs(swapped, stock, x)
    assert all(fused(swapped)) and not any(fused(stock))
    assert len(positive) == len(fused(stock))
    assert all(0 < share.mean() < 1 for share in positive)


def terms_of_slopes(model):
    """What each slope's gradient is the sum of, as float64, once a backward has run: name -> list of tensors."""
    terms = {}

    def keep(name, input, output):
        input = input.detach().double()
        below = input <= 0
        output.register_hook(
            lambda g: terms.setdefault(name, []).append(torch.where(below, input * g, 0.0))
        )

    for name, module in model.named_modules():
        if isinstance(module, nn.PReLU):
            module.register_forward_hook(lambda _, args, y, name=name: keep(name, args[0], y))
    return terms


def test_gradients_keep_their_values(case, swapped):
    stock, x = case
    gradients = []
    terms = terms_of_slopes(stock)
    for model in (stock, swapped):
        input = x.clone().requires_grad_()
        loss(model, input).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        gradients[-1]["input"] = input.grad
    assert len(terms) == len(fused(stock))

    # A slope's gradient is judged by the exact sum of its terms, not by another rounded one: where terms cancel, two
    # right sums may differ by more than any share of their value. (That an input, a gradient differ by 1e-6 at most,
    # below, may change each term by 2e-6.)
    slopes = dict(stock.named_parameters())
    for name, parts in terms.items():
        weight = f"{name}.weight"
        apart = [d for d in range(parts[0].dim()) if d != 1 or slopes[weight].numel() == 1]
        exact = sum(part.sum(apart) for part in parts).reshape(slopes[weight].shape)
        size = sum(part.abs().sum(apart) for part in parts).reshape(slopes[weight].shape)
        error = (gradients[1].pop(weight) - exact).abs()
        assert (error <= (16 * 2**-24 + 2e-6) * size).all(), weight
        assert (exact.abs() > 1e-4 * size).any(), weight
    for name, ours in gradients[1].items():
        expected = gradients[0][name]
        assert (ours - expected).norm() <= 1e-6 * expected.norm(), name
        assert expected.norm() > 0 or name != "input", name


# ---- Checkpoints, copies, pickles --------------------------------------------------------------


def test_checkpoints_load_strictly_in_both_directions(case, swapped):
    stock, x = case
    assert list(swapped.state_dict()) == list(stock.state_dict())
    for source, target in ((stock, swapped), (swapped, stock)):
        with torch.no_grad():
            for slope in networks.slopes(source):
                slope.uniform_(-1, 1)
        buffer = io.BytesIO()
        torch.save(source.state_dict(), buffer)
        buffer.seek(0)
        target.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
        assert_same_outputs(target.eval(), source.eval(), x)


def test_copies_and_pickles_compute_the_same_swapped_and_restored(case, swapped):
    stock, x = case
    stock.eval(), swapped.eval()
    keys = list(stock.state_dict())
    for copied in (copy.deepcopy(swapped), pickle.loads(pickle.dumps(swapped))):
        assert all(fused(copied))
        assert_same_outputs(copied, stock, x)
        restore_prelu(copied)
        assert [type(m) for m in copied.modules()] == [type(m) for m in stock.modules()]
        assert_same_outputs(copied, stock, x)
        assert list(copied.state_dict()) == keys
    loaded = pickle.loads(pickle.dumps(stock))
    assert replace_prelu(loaded).swapped == replace_prelu(copy.deepcopy(stock)).swapped
    assert_same_outputs(loaded, stock, x)


# ---- Made before the swap ----------------------------------------------------------------------


def test_an_optimizer_and_an_average_made_before_the_swap_go_on(case):
    """In float64: the two trainings must stay together."""
    stock, x = case[0].double(), case[1].double()
    models = [stock, copy.deepcopy(stock)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9) for m in models]
    averages = [AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5)) for m in models]
    start = {name: value.detach().clone() for name, value in stock.named_parameters()}
    for step in range(3):
        if step == 1:  # the optimizer has its momentum by now
            replace_prelu(models[1])
            assert all(fused(models[1]))
        for model, optimizer, average in zip(models, optimizers, averages, strict=True):
            optimizer.zero_grad()
            loss(model, x).backward()
            optimizer.step()
            average.update_parameters(model)
    for expected, actual in ((models[0], models[1]), (averages[0].module, averages[1].module)):
        for name, value in expected.named_parameters():
            torch.testing.assert_close(actual.get_parameter(name), value, rtol=1e-9, atol=1e-12)
    slopes = [f"{name}.weight" for name, m in stock.named_modules() if isinstance(m, nn.PReLU)]
    assert all(not torch.equal(stock.get_parameter(name), start[name]) for name in slopes)
    replace_prelu(averages[1])
    assert_same_outputs(averages[1].eval(), averages[1].module, x)


# ---- Of single models --------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["PNet", "RNet", "ONet"])
def test_the_slopes_of_mtcnn_are_trained_and_many_are_negative(stage):
    slopes = torch.cat(networks.slopes(mtcnn(stage)()))
    assert 0.4 < (slopes < 0).float().mean() < 0.8
    assert not (slopes == 0.25).any()


def test_a_checkpoint_of_a_swapped_model_is_recognized_by_spandrel():
    model = compact().eval()
    networks.spread_slopes(model)
    replace_prelu(model)
    loader = packaged("spandrel", "ModelLoader")()
    loaded = loader.load_from_state_dict(model.state_dict()).model.eval()
    assert not any(fused(loaded))
    x = torch.randn(1, 3, 8, 8)
    assert_same_outputs(loaded, model, x)
    assert len(replace_prelu(loaded).swapped) == len(fused(model))
    assert_same_outputs(loaded, model, x)


def test_the_slopes_of_monai_s_unet_are_one_each_on_five_dimensions():
    model = monai_unet()
    assert {slope.numel() for slope in networks.slopes(model)} == {1}
    dims = set()
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            module.register_forward_hook(lambda _, args, y: dims.add(args[0].dim()))
    replace_prelu(model)
    model(torch.randn(1, 1, 8, 8, 8))
    assert dims == {5}


def test_a_deep_iresnet_is_reported_in_few_lines():
    with torch.device("meta"):
        model = networks.IResNet((3, 13, 30, 3))
    report = replace_prelu(model)
    assert len(report.swapped) == 50
    assert [line.split()[:4] for line in str(report).splitlines()[2:]] == [
        ["features.2", "swapped", "nn.PReLU", "->"],
        ["features.*.residual.*", "(49)", "swapped", "nn.PReLU"],
    ]

"""norm_prelu and NormPReLU: prelu(norm(x)) for any two modules, as one operator where that is the same."""

import copy
import pickle

import pytest
import torch
from norm_pairs import (
    NORMS,
    assert_same,
    calls_of,
    outcome,
    pair,
    randomized,
    sample,
)
from swaps import Doubled
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import torch_ext
from torch_ext import NormPReLU, norm_prelu

pytestmark = pytest.mark.contract

OPTIONS = {
    "plain": {},
    "momentum=None": {"momentum": None},
    "no statistics": {"track_running_stats": False},
    "affine=False": {"affine": False},
    "eps": {"eps": 0.1, "momentum": 0.7},
}


def layers(norm, prelu=None):
    """The same two modules as a Sequential of PyTorch's and as one layer."""
    plain = randomized(nn.Sequential(norm, prelu or nn.PReLU(8)))
    return plain, NormPReLU(*copy.deepcopy(plain))


def assert_layer(plain, layer, x, fused=1):
    expected, (made, actual) = outcome(plain, x), calls_of(lambda: outcome(layer, x))
    renamed = {"0": "norm", "1": "prelu"}
    expected = {
        ".".join([renamed.get(name.split(".")[0], name.split(".")[0]), *name.split(".")[1:]]): value
        for name, value in expected.items()
    }
    assert made == 2 * fused
    assert_same(actual, expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("norm, shape", NORMS.values(), ids=NORMS.keys())
def test_the_layer_is_the_two_modules(norm, shape, options, training):
    if norm.__name__.startswith("Instance"):
        options = {"affine": True, "track_running_stats": True} | options
    plain, layer = layers(norm(8, **options))
    assert_layer(plain.train(training), layer.train(training), sample(*shape))


@pytest.mark.parametrize("slopes", [1, 8])
@pytest.mark.parametrize("prelu", [nn.PReLU, torch_ext.PReLU])
def test_both_kinds_of_prelu_are_fused(prelu, slopes):
    plain, layer = layers(nn.BatchNorm2d(8), prelu(slopes))
    assert_layer(plain, layer, sample(2, 8, 4, 4))


def test_a_subclass_is_fused_once_replace_prelu_knows_that_it_is_prelu():
    class Own(nn.PReLU):
        def forward(self, x):
            return nn.functional.prelu(x, self.weight)

    plain, layer = layers(nn.BatchNorm2d(8), Own(8))
    assert_layer(plain, layer, sample(2, 8, 4, 4), fused=0)
    plain, layer = layers(nn.BatchNorm2d(8), Own(8))
    torch_ext.replace_prelu(layer)
    assert_layer(plain, layer, sample(2, 8, 4, 4))


def shifted(module, args, output):
    return output + 1


DISTURBED = {
    "forward hook of the norm": lambda m: m[0].register_forward_hook(shifted),
    "forward hook of the PReLU": lambda m: m[1].register_forward_hook(shifted),
    "pre-hook of the PReLU": lambda m: m[1].register_forward_pre_hook(lambda _, a: (a[0] + 1,)),
    "pre-hook of the norm": lambda m: m[0].register_forward_pre_hook(lambda _, a: (a[0] * 2,)),
    "backward hook of the norm": lambda m: m[0].register_full_backward_hook(
        lambda m, grads, _: (grads[0] * 3,)
    ),
    "backward hook of the PReLU": lambda m: m[1].register_full_backward_hook(
        lambda m, grads, _: (grads[0] * 3,)
    ),
    "backward pre-hook of the PReLU": lambda m: m[1].register_full_backward_pre_hook(
        lambda m, grads: (grads[0] * 3,)
    ),
    "parametrized norm": lambda m: parametrize.register_parametrization(m[0], "weight", Doubled()),
    "parametrized PReLU": lambda m: parametrize.register_parametrization(m[1], "weight", Doubled()),
    "weight_norm of the PReLU": lambda m: weight_norm(m[1], dim=None),
    "forward of the norm on the instance": lambda m: setattr(m[0], "forward", torch.sin),
    "forward of the PReLU on the instance": lambda m: setattr(m[1], "forward", torch.sin),
}


@pytest.mark.parametrize("disturb", DISTURBED.values(), ids=DISTURBED.keys())
def test_what_stands_between_the_two_is_heeded(disturb):
    modules = [pair(), pair()]
    for each in modules:
        disturb(each)
    plain, layer = modules[0], NormPReLU(*modules[1])
    assert_layer(plain, layer, sample(2, 8, 4, 4), fused=0)


def test_global_hooks_are_heeded_while_they_are_there():
    plain, layer = layers(nn.BatchNorm2d(8))
    x = sample(2, 8, 4, 4)
    with nn.modules.module.register_module_forward_hook(
        lambda module, _, output: output + 1 if isinstance(module, nn.BatchNorm2d) else None
    ):
        assert_layer(plain, layer, x, fused=0)
    assert_layer(plain, layer, x)


@pytest.mark.parametrize(
    "norm, x",
    [
        (nn.LayerNorm(4), sample(2, 8, 4, 4)),
        (nn.GroupNorm(2, 8), sample(2, 8, 4, 4)),
        (nn.Identity(), sample(2, 8, 4, 4)),
        (nn.InstanceNorm2d(8), sample(8, 4, 4)),
        (nn.InstanceNorm1d(8), sample(8, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_kernels_do_not_know_runs_apart(norm, x):
    prelu = nn.PReLU()
    modules = nn.Sequential(norm, prelu).double()
    expected = copy.deepcopy(modules)(x)
    made, actual = calls_of(lambda: norm_prelu(norm, prelu, x))
    assert made == 0
    torch.testing.assert_close(actual, expected)


def test_a_lazy_norm_becomes_one_and_is_fused_from_then_on():
    layer = NormPReLU(nn.LazyBatchNorm2d(), nn.PReLU(8)).double()
    x = sample(2, 8, 4, 4)
    assert [calls_of(lambda: layer(x))[0] for _ in range(2)] == [0, 1]


ERRORS = {
    "one value per channel": (nn.BatchNorm1d(8), nn.PReLU(8), (1, 8)),
    "one element of a sample": (nn.InstanceNorm2d(8), nn.PReLU(8), (2, 8, 1, 1)),
    "channels of the norm": (nn.BatchNorm2d(7), nn.PReLU(8), (2, 8, 4, 4)),
    "channels of the slopes": (nn.BatchNorm2d(8), nn.PReLU(7), (2, 8, 4, 4)),
    "dimensions": (nn.BatchNorm2d(8), nn.PReLU(8), (2, 8, 4)),
    "dtype of the slopes": (nn.BatchNorm2d(8), nn.PReLU(8).double(), (2, 8, 4, 4)),
    "dtype of the data": (nn.BatchNorm2d(8), nn.PReLU(8), torch.zeros(2, 8, 4, 4).bfloat16()),
    "dtype of the norm": (nn.BatchNorm2d(8).half(), nn.PReLU(8), (2, 8, 4, 4)),
}


@pytest.mark.parametrize("norm, prelu, shape", ERRORS.values(), ids=ERRORS.keys())
def test_errors_are_those_of_the_modules(norm, prelu, shape):
    x = shape if isinstance(shape, torch.Tensor) else torch.randn(shape)
    twin = copy.deepcopy(norm)
    with pytest.raises((RuntimeError, ValueError)) as expected:
        prelu(twin(x))
    with pytest.raises(type(expected.value)) as actual:
        norm_prelu(norm, prelu, x)
    assert str(actual.value) == str(expected.value)
    assert torch.equal(
        getattr(norm, "num_batches_tracked", None) or torch.tensor(0),
        getattr(twin, "num_batches_tracked", None) or torch.tensor(0),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("parameters", ["of the data", "float32"])
def test_sixteen_bits(dtype, parameters):
    norm, prelu = nn.BatchNorm2d(8), torch_ext.PReLU(8)
    if parameters == "of the data":
        norm, prelu = norm.to(dtype), prelu.to(dtype)
    x = torch.randn(2, 8, 4, 4, dtype=dtype)
    wide, slopes = copy.deepcopy(norm).double(), copy.deepcopy(prelu).double()
    made, y = calls_of(lambda: norm_prelu(norm, prelu, x))
    assert made == 1
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), slopes(wide(x.double())), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_autocast_gives_the_pairs_dtype(training):
    plain, layer = layers(nn.BatchNorm2d(8))
    plain.float().train(training), layer.float().train(training)
    x = torch.randn(2, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = plain(x), layer(x)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


def test_inference_mode_is_fused_too():
    plain, layer = layers(nn.BatchNorm2d(8))
    x = sample(2, 8, 4, 4)
    with torch.inference_mode():
        x = x.clone()
        made, actual = calls_of(lambda: layer.eval()(x))
        torch.testing.assert_close(actual, plain.eval()(x))
    assert made == 1


def test_sync_batch_norm_takes_the_norms_place():
    layer = NormPReLU(nn.BatchNorm2d(8), nn.PReLU(8))
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer).eval()
    assert type(layer) is NormPReLU
    assert type(layer.norm) is nn.SyncBatchNorm
    x = torch.randn(2, 8, 4, 4)
    made, y = calls_of(lambda: layer(x))
    assert made == 0
    torch.testing.assert_close(y, layer.prelu(layer.norm(x)))
    assert (y < 0).any()


def test_the_layers_state_and_copies():
    _, layer = layers(nn.BatchNorm2d(8))
    assert {name.split(".")[0] for name in layer.state_dict()} == {"norm", "prelu"}
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        made, y = calls_of(lambda twin=twin: twin.eval()(sample(2, 8, 4, 4)))
        assert made == 1
        torch.testing.assert_close(y, layer.eval()(sample(2, 8, 4, 4)))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_compiled_and_exported_it_is_the_composition(training):
    plain, layer = layers(nn.BatchNorm2d(8))
    layer.train(training), plain.train(training)
    x = sample(2, 8, 4, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    made, y = calls_of(lambda: compiled(x))
    assert made == 0
    torch.testing.assert_close(y, plain(x))
    if not training:
        exported = torch.export.export(layer, (x,)).run_decompositions({})
        targets = [str(node.target) for node in exported.graph.nodes]
        assert any("batch_norm" in target for target in targets)
        torch.testing.assert_close(exported.module()(x), plain(x))


def test_transforms_see_the_composition():
    _, layer = layers(nn.BatchNorm2d(8))
    layer.eval()
    x = sample(3, 2, 8, 4, 4)
    made, y = calls_of(lambda: torch.vmap(layer)(x))
    assert made == 0
    torch.testing.assert_close(y, torch.stack([layer(each) for each in x]))
    traced = torch.jit.trace(layer, x[0])
    torch.testing.assert_close(traced(x[1]), y[1])


def test_statistics_that_are_frozen_parameters_run_apart():
    layer = NormPReLU(nn.BatchNorm2d(8).eval(), nn.PReLU(8))
    for name in ("running_mean", "running_var"):
        value = getattr(layer.norm, name) + 0.5
        delattr(layer.norm, name)
        setattr(layer.norm, name, nn.Parameter(value, requires_grad=False))
    x = torch.randn(2, 8, 4, 4)
    model = nn.Sequential(layer.norm, layer.prelu)
    expected = model(x)
    assert calls_of(lambda: torch.equal(layer(x), expected)) == (0, True)
    torch_ext.fuse_norm_prelu(model)
    assert calls_of(lambda: torch.equal(model(x), expected)) == (0, True)


def test_torchscript_runs_the_two_modules():
    layer, x = NormPReLU(nn.BatchNorm2d(8), torch_ext.PReLU(8)).eval(), torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))
    traced = torch.jit.trace(nn.PReLU(8), x)
    assert norm_prelu(layer.norm, traced, x).shape == x.shape

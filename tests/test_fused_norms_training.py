"""Changed norms and what training puts around modules: hooks, checkpointing, replicas, conversions."""

import functools

import pytest
import torch
from norm_pairs import (
    assert_same,
    assert_trains_like,
    calls_of,
    changed,
    outcome,
    pair,
    sample,
)
from swaps import Doubled
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import torch_ext

pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings("ignore:.*quantiz.*", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

X = sample(2, 8, 4, 4)


# ---- Hooks and parametrizations, before and after the change ----------------------------------------


def add_one(module, args, output):
    assert type(output) is torch.Tensor
    return output + 1


def add_one_before(module, args):
    assert type(args[0]) is torch.Tensor
    return (args[0] + 1,)


def tripled(module, grads, *_):
    return (grads[0] * 3,)


def parametrized(module):
    parametrize.register_parametrization(module, "weight", Doubled())


HOOKS = {
    "forward": lambda module: module.register_forward_hook(add_one),
    "forward pre": lambda module: module.register_forward_pre_hook(add_one_before),
    "backward": lambda module: module.register_full_backward_hook(tripled),
    "backward pre": lambda module: module.register_full_backward_pre_hook(tripled),
    "parametrization": parametrized,
    "weight_norm": functools.partial(weight_norm, dim=None),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", [0, 1], ids=["norm", "PReLU"])
@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS.keys())
def test_hooks_and_parametrizations_run_as_before(hook, place, when):
    model, fused = pair(), pair()
    hook(model[place])
    if when == "before":
        hook(fused[place])
    torch_ext.fuse_norm_prelu(fused)
    if when == "after":
        hook(fused[place])
    assert_trains_like(model, fused, X, fused_in_a_step=0)
    torch_ext.restore_prelu(fused)
    for mine, others in zip(fused, model, strict=True):
        mine, others = type(mine).__mro__, type(others).__mro__
        assert mine[-2:] == others[-2:]
        assert [cls.__name__ for cls in mine] == [cls.__name__ for cls in others]
    assert_trains_like(model, fused, X, fused_in_a_step=0)


def test_a_hook_that_went_again_lets_the_pair_be_fused():
    model, fused = pair(), changed(pair())
    handle = fused[0].register_forward_hook(add_one)
    made, _ = calls_of(lambda: fused(X))
    assert made == 0
    handle.remove()
    fused.load_state_dict(model.state_dict())
    assert_trains_like(model, fused, X)


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
    ],
    ids=lambda f: f.__name__,
)
def test_global_hooks_see_ordinary_tensors(register):
    model, fused = pair(), changed(pair())
    seen = []

    def note(module, *values):
        seen.append([type(module).__name__, *(type(value[0]) for value in values)])

    with register(note):
        expected, mine = outcome(model, X), len(seen)
        made, actual = calls_of(lambda: outcome(fused, X))
    assert made == 0
    assert_same(actual, expected)
    assert seen[:mine] == seen[mine:] != []
    made, _ = calls_of(lambda: fused(X))
    assert made == 1


def test_the_monitor_sees_the_norms_output():
    model, fused = pair(), changed(pair())
    with torch_ext.ActivationMonitor(fused) as monitor:
        made, _ = calls_of(lambda: fused(X).sum().backward())
    assert made == 0
    [layer] = monitor.report().layers
    expected = (model[0](X) <= 0).double().mean((0, 2, 3))
    torch.testing.assert_close(layer.non_positive_by_channel.double(), expected)
    assert 0 < expected.mean() < 1
    made, _ = calls_of(lambda: fused(X))
    assert made == 1


# ---- Wrappers and conversions ------------------------------------------------------------------------


def test_conversion_to_sync_batch_norm_after_the_change():
    model, fused = pair(), changed(pair())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fused).eval()
    assert type(converted[0]) is nn.SyncBatchNorm
    made, y = calls_of(lambda: converted(X))
    assert made == 0
    torch.testing.assert_close(y, model.eval()(X))
    torch_ext.restore_prelu(converted)
    assert [type(each) for each in converted] == [nn.SyncBatchNorm, nn.PReLU]


def replica_of(model):
    """As nn.parallel.replicate makes them: the classes, attributes, and tensors that are no Parameters."""
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter * 1.0)
        for name, buffer in module._buffers.items():
            replica._buffers[name] = None
            setattr(replica, name, buffer.clone())
    return replicas[model]


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_replicas_are_fused(training):
    model, fused = pair().train(training), changed(pair().train(training))
    made, y = calls_of(lambda: replica_of(fused)(X))
    assert made == 1
    expected = replica_of(model)(X)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward(), expected.square().sum().backward()
    for mine, others in zip(fused.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, others.grad)
    assert model[0].weight.grad.abs().max() > 0


def test_a_frozen_norm_in_a_model_that_trains():
    def frozen(model):
        model[0].eval().requires_grad_(False)
        return model

    assert_trains_like(frozen(pair()), frozen(changed(pair())), X)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_casting_the_model_after_the_change(dtype):
    model, fused = pair().to(dtype), changed(pair()).to(dtype)
    made, y = calls_of(lambda: fused(X.to(dtype)))
    assert made == 1
    torch.testing.assert_close(y, model(X.to(dtype)), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shape", [(8, 4, 4), (8, 5)], ids=str)
def test_unbatched_inputs_run_apart(shape):
    cls = nn.InstanceNorm2d if len(shape) == 3 else nn.InstanceNorm1d
    model = nn.Sequential(cls(8, affine=True), nn.PReLU()).double()
    assert_trains_like(model, changed(model), sample(*shape), fused_in_a_step=0)


@pytest.mark.parametrize("changed_first", [True, False])
def test_override_aten(changed_first):
    model, fused = pair(), pair()
    with torch_ext.override_aten():
        torch_ext.fuse_norm_prelu(fused)
        assert_trains_like(model, fused, X)
    assert_trains_like(model, fused, X)


def test_models_prepared_for_quantization_run_apart():
    def prepared(model):
        model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
        return torch.ao.quantization.prepare_qat(model.train())

    model, fused = prepared(pair().float()), changed(prepared(pair().float()))
    x = X.float()
    made, y = calls_of(lambda: fused(x))
    expected = model(x)
    assert any(module._forward_hooks for module in fused) == (made == 0)
    torch.testing.assert_close(y, expected)

"""Changed norms and what training puts around modules: hooks, checkpointing, replicas, conversions."""

import copy
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
    randomized,
    sample,
)
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import torch_ext

pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings("ignore:.*quantiz.*", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

X = sample(2, 8, 4, 4)


# ---- Hooks and parametrizations, before and after the change ----------------------------------------


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


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


# ---- Checkpointing -----------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """Parts of a Sequential, each of them checkpointed."""

    def __init__(self, reentrant, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.reentrant = reentrant

    def forward(self, x):
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=self.reentrant)
        return x


def conv():
    return nn.Conv2d(8, 8, 3, padding=1)


PARTS = {
    "the pair": lambda: [nn.Sequential(nn.BatchNorm2d(8), nn.PReLU(8))],
    "pair and more": lambda: [nn.Sequential(conv(), nn.BatchNorm2d(8), nn.PReLU(8), conv())],
    "the pair at the end": lambda: [nn.Sequential(conv(), nn.BatchNorm2d(8), nn.PReLU(8))],
    "cut between the two": lambda: [nn.Sequential(conv(), nn.BatchNorm2d(8)), nn.PReLU(8), conv()],
    "each alone": lambda: [conv(), nn.BatchNorm2d(8), nn.PReLU(8)],
    "the norm outside": lambda: [conv(), nn.Sequential(nn.PReLU(8), conv(), nn.BatchNorm2d(8))],
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_checkpointing_updates_statistics_as_pytorch_does(parts, reentrant, training):
    torch.manual_seed(0)
    model = randomized(Checkpointed(reentrant, *parts())).train(training)
    fused = copy.deepcopy(model)
    torch_ext.fuse_norm_prelu(fused)
    expected, actual = outcome(model, X), outcome(fused, X)
    assert_same(actual, expected)
    if training:
        [count] = [value for name, value in expected.items() if "num_batches" in name]
        assert count >= 2 + 2 * reentrant  # two steps, each with a recomputation


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_a_norm_whose_result_is_not_used_when_the_recomputation_stops(reentrant):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv, self.prelu = nn.BatchNorm2d(8), conv(), nn.PReLU(8)

        def part(self, x):
            z = self.norm(x)
            y = self.conv(x)
            return self.prelu(y) if z is None else y

        def forward(self, x):
            return self.prelu(checkpoint(self.part, x * 2, use_reentrant=reentrant))

    torch.manual_seed(0)
    model = randomized(Unused())
    fused = copy.deepcopy(model)
    torch_ext.fuse_norm_prelu(fused)
    assert_same(outcome(fused, X), outcome(model, X))


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_a_norms_result_given_to_a_checkpoint(reentrant):
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.prelu = nn.BatchNorm2d(8), nn.PReLU(8)

        def forward(self, x):
            return checkpoint(self.prelu, self.norm(x), use_reentrant=reentrant)

    model = randomized(Given())
    fused = copy.deepcopy(model)
    torch_ext.fuse_norm_prelu(fused)
    if reentrant:
        with pytest.raises(RuntimeError, match="filter_fn"):
            fused(X)
        fused = copy.deepcopy(model)
        report = torch_ext.fuse_norm_prelu(fused, filter_fn=lambda _, name: name != "norm")
        assert report.swapped == []
    assert_same(outcome(fused, X), outcome(model, X))


def test_checkpoint_sequential_and_saved_tensors_on_the_cpu():
    model = nn.Sequential(*pair(), conv(), *pair(), conv()).double()
    fused = changed(model)

    class Segments(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            x = checkpoint_sequential(self.inner, 2, x, use_reentrant=False)
            with torch.autograd.graph.save_on_cpu():
                return self.inner(x)

    assert_same(outcome(Segments(fused), X), outcome(Segments(model), X))


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


# ---- Compilers and transforms ------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_compiled_whole_it_is_pytorchs_norm(training):
    model, fused = pair().train(training), changed(pair().train(training))
    graphs = []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    assert_trains_like(model, compiled._orig_mod, X)
    model.load_state_dict(fused.state_dict())
    expected, (made, actual) = outcome(model, X), calls_of(lambda: outcome(compiled, X))
    assert made == 0
    assert_same(
        {name.removeprefix("_orig_mod."): value for name, value in actual.items()}, expected
    )
    [graph] = graphs
    assert any("batch_norm" in target for target in graph)


def test_a_part_that_is_compiled_gets_the_result_of_a_norm_that_is_not():
    def make():
        return randomized(nn.Sequential(nn.BatchNorm2d(8), nn.Sequential(conv(), nn.PReLU(8))))

    model, fused = make(), changed(make())
    fused[1].compile(backend="eager")
    assert_same(outcome(fused, X), outcome(model, X))
    model, fused = pair(), changed(pair())
    fused[1].compile(backend="eager", fullgraph=True)
    assert_same(outcome(fused, X), outcome(model, X))
    model, fused = pair(), changed(pair())
    fused[0].compile(backend="eager", fullgraph=True)
    assert_same(outcome(fused, X), outcome(model, X))


def test_a_compiled_function_gets_the_result_of_a_norm():
    model, fused = pair(), changed(pair())
    expected = model[0](X).sin()
    torch.testing.assert_close(torch.compile(torch.sin, backend="eager")(fused[0](X)), expected)

    @torch.compile(backend="eager")
    def function(z):
        return z.sin() * 1

    fused.load_state_dict(pair().state_dict())
    actual = function(fused[0](X))
    torch.testing.assert_close(actual, expected)
    actual.sum().backward(), expected.sum().backward()
    torch.testing.assert_close(fused[0].weight.grad, model[0].weight.grad)


def test_exported_it_is_pytorchs_norm():
    model, fused = pair().eval(), changed(pair().eval())
    for strict in (True, False):
        program = torch.export.export(fused, (X,), strict=strict)
        targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
        assert any("batch_norm" in target for target in targets)
        torch.testing.assert_close(program.module()(X), model(X))


def test_traced_and_scripted_it_is_pytorchs_norm():
    model, fused = pair().eval(), changed(pair().eval())
    for compiled in (torch.jit.trace(fused, X), torch.jit.script(fused)):
        assert "aten::batch_norm" in str(compiled.inlined_graph)
        torch.testing.assert_close(compiled(X), model(X))


def test_traced_by_fx_it_is_two_calls():
    graph = torch.fx.symbolic_trace(changed(pair()))
    assert [node.op for node in graph.graph.nodes].count("call_module") == 2
    made, _ = calls_of(lambda: graph(X))
    assert made == 1


def test_transforms_of_torch_func():
    model, fused = pair().eval(), changed(pair().eval())
    stacked = sample(3, 2, 8, 4, 4)
    made, y = calls_of(lambda: torch.vmap(fused)(stacked))
    assert made == 0
    torch.testing.assert_close(y, torch.vmap(model)(stacked))

    def loss(module):
        return lambda values, x: torch.func.functional_call(module, values, (x,)).square().sum()

    for function in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        actual = function(loss(fused))(dict(fused.named_parameters()), X)
        expected = function(loss(model))(dict(model.named_parameters()), X)
        assert_same(actual, expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        tangents = [torch.autograd.forward_ad.unpack_dual(m(dual)).tangent for m in (fused, model)]
    torch.testing.assert_close(*tangents)
    assert tangents[0].abs().max() > 0


def test_a_result_from_outside_of_a_transform():
    model, fused = pair(), changed(pair())

    def both(module):
        z = module[0](X)
        found = torch.func.grad(lambda w: (z * w).sum())(torch.ones_like(X))
        (found.sum() + z.sum()).backward()
        return found

    torch.testing.assert_close(both(fused), both(model))
    torch.testing.assert_close(fused[0].bias.grad, model[0].bias.grad)


def test_functional_call_is_fused():
    model, fused = pair(), changed(pair())
    values = {name: p.detach() * 2 for name, p in model.named_parameters()}
    for value in values.values():
        value.requires_grad_()
    made, y = calls_of(lambda: torch.func.functional_call(fused, values, (X,)))
    assert made == 1
    expected = torch.func.functional_call(model, values, (X,))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), [*values.values()]),
        torch.autograd.grad(expected.square().sum(), [*values.values()]),
    )


def test_double_backward_through_a_pair():
    def second(model):
        x = X.clone().requires_grad_()
        [grad] = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    expected = second(pair())
    torch.testing.assert_close(second(changed(pair())), expected)
    assert expected.abs().max() > 0

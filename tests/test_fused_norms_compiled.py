"""Changed norms under torch.compile, export, TorchScript, torch.fx and torch.func: there they are PyTorch's."""

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

pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]

X = sample(2, 8, 4, 4)


def conv():
    return nn.Conv2d(8, 8, 3, padding=1)


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


def test_a_part_that_is_compiled_without_breaks_refuses_the_result_in_words():
    model, fused = pair(), changed(pair())
    double = torch.compile(lambda z: fused[1](z) * 2, fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match="compile the norm with it"):
        double(fused[0](X))
    torch.testing.assert_close(double(fused[0](X) + 0), model(X) * 2)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_gets_the_result_of_a_norm(backend):
    model, fused = pair(), changed(pair())
    expected = model[0](X).sin()
    torch.testing.assert_close(torch.compile(torch.sin, backend=backend)(fused[0](X)), expected)

    @torch.compile(backend=backend)
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

"""Swaps in models of which TorchScript, torch.fx or torch.compile made something."""

import warnings

import pytest
import torch
from reference import assert_same_bits
from swaps import PRELUS, Activation, Verbatim, calls, images, network, parametrized_model
from torch import fx, nn

from torch_ext import replace_prelu, restore_prelu

pytestmark = pytest.mark.contract


def script(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated upstream, but in use
        return torch.jit.script(model)


def trace(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, images())


@pytest.mark.parametrize("compile", [script, trace])
def test_script_modules_are_skipped_with_a_warning(compile):
    model = nn.Sequential(nn.PReLU(), compile(nn.Sequential(nn.PReLU(), nn.ReLU())))
    with pytest.warns(UserWarning, match=r"ScriptModules keep running aten::prelu: 1\.0\."):
        report = replace_prelu(model)
    assert report.swapped == ["0"]
    [(name, reason)] = report.skipped
    assert name == "1.0"
    assert "ScriptModule" in reason


def test_a_scripted_model_is_skipped_as_a_whole():
    with pytest.warns(UserWarning, match=r"\(root\)"):
        report = replace_prelu(script(nn.PReLU()))
    assert [name for name, _ in report.skipped] == [""]


@pytest.mark.filterwarnings("error")
def test_script_modules_without_prelu_are_no_concern():
    report = replace_prelu(nn.Sequential(nn.PReLU(), script(nn.ReLU()), script(nn.Module())))
    assert (report.swapped, report.skipped) == (["0"], [])


def test_a_swapped_model_can_be_scripted_but_not_restored_then():
    model = nn.Sequential(nn.PReLU(3), Activation(3), Verbatim(3))
    replace_prelu(model)
    scripted = script(model)
    assert_same_bits(scripted(images()), model(images()))
    with pytest.warns(UserWarning, match="ScriptModules keep running torch_ext::prelu: 0, 1, 2"):
        assert [name for name, _ in restore_prelu(scripted).skipped] == ["0", "1", "2"]


def test_a_swapped_model_compiles_without_graph_breaks():
    operators = []

    def backend(graph, _):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    model = nn.Sequential(nn.PReLU(3), Activation(3), parametrized_model()[0])
    replace_prelu(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_same_bits(compiled(images()), model(images()))
    assert sum("torch_ext.prelu" in operator for operator in operators) == 3


def test_a_model_compiled_before_the_swap_follows_it_after_a_reset():
    model = network()
    compiled = torch.compile(model, backend="eager")
    expected = compiled(images())
    assert replace_prelu(compiled).swapped == [f"_orig_mod.{name}" for name in PRELUS]
    torch.compiler.reset()
    assert calls(model) == ["fused"] * 3
    assert_same_bits(compiled(images()), expected)
    assert restore_prelu(compiled).swapped == [f"_orig_mod.{name}" for name in PRELUS]
    torch.compiler.reset()
    assert_same_bits(compiled(images()), expected)


def test_the_modules_that_an_fx_graph_calls_are_swapped():
    model = network()
    graph_module = fx.symbolic_trace(model)
    expected = graph_module(images())
    report = replace_prelu(graph_module)
    assert (report.swapped, report.skipped) == (PRELUS, [])
    assert calls(graph_module) == ["fused"] * 3
    assert_same_bits(graph_module(images()), expected)
    graph_module.recompile()
    assert calls(graph_module) == ["fused"] * 3
    assert restore_prelu(graph_module).swapped == PRELUS
    assert calls(graph_module) == ["stock"] * 3

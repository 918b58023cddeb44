"""Swaps and code that calls PReLU without a module: torch.fx, torch.export, functional uses."""

import pytest
import torch
import torch.nn.functional as F
from reference import assert_same_bits
from swaps import Activation, calls, images, network
from torch import fx, nn
from torch.nn.utils import parametrize

import torch_ext
from torch_ext import replace_prelu, restore_prelu, slope_parameters

pytestmark = pytest.mark.contract


def nodes(graph_module):
    return [(node.op, str(node.target), node.name) for node in graph_module.graph.nodes]


# ---- torch.fx ----------------------------------------------------------------------------------


class Shallow(fx.Tracer):
    """Looks into every module."""

    def is_leaf_module(self, m, module_qualified_name):
        return False


class Deep(fx.Tracer):
    """Knows further leaves, by asking torch.fx as feature extractors do, and no layer of PyTorch."""

    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, nn.Flatten) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize("tracer", (fx.Tracer, Deep))
def test_traced_by_fx_a_swapped_model_has_the_nodes_that_it_had(tracer):
    model = network()
    stock = fx.GraphModule(model, tracer().trace(model))
    expected = stock(images())
    assert ("call_module", "2.1", "_2_1") in nodes(stock)
    replace_prelu(model)
    traced = fx.GraphModule(model, tracer().trace(model))
    assert nodes(traced) == nodes(stock)
    assert calls(traced) == ["fused"] * 3
    assert_same_bits(traced(images()), expected)
    assert slope_parameters(traced) == slope_parameters(model)
    assert restore_prelu(traced).swapped == ["1", "2.1", "5"]
    assert calls(traced) == ["stock"] * 3


def test_a_tracer_that_looks_into_pytorchs_layer_looks_into_ours():
    model = nn.Sequential(nn.PReLU(3))
    stock = fx.GraphModule(model, Shallow().trace(model))
    replace_prelu(model)
    traced = fx.GraphModule(model, Shallow().trace(model))
    assert [op for op, _, _ in nodes(traced)] == [op for op, _, _ in nodes(stock)]
    assert ("call_function", "torch_ext.prelu") in [node[:2] for node in nodes(traced)]
    assert_same_bits(traced(images()), stock(images()))


@pytest.mark.parametrize("make", (torch_ext.PReLU, lambda: nn.Sequential(Activation(3))))
def test_where_fx_looks_into_pytorchs_layer_it_looks_into_ours(make):
    """The root, and subclasses of other packages."""
    model = make()
    replace_prelu(model)
    traced = fx.symbolic_trace(model)
    assert "call_module" not in [op for op, _, _ in nodes(traced)]
    assert calls(traced) == ["fused"]


def test_a_parametrized_layer_is_one_call_for_fx():
    model = nn.Sequential(nn.PReLU(3))
    parametrize.register_parametrization(model[0], "weight", nn.Identity())
    stock = nodes(fx.symbolic_trace(model))
    replace_prelu(model)
    assert nodes(fx.symbolic_trace(model)) == stock


# ---- Graphs that hold the operator -------------------------------------------------------------


def exported(model):
    return torch.export.export(model, (images(),)).module()


def looked_into(model):
    return fx.GraphModule(model, Shallow().trace(model))


@pytest.mark.parametrize("fused", (False, True), ids=("PyTorch's", "ours"))
@pytest.mark.parametrize("graph", (exported, looked_into))
def test_slopes_of_a_graph_are_found(graph, fused):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.PReLU())
    if fused:
        replace_prelu(model)
    found = slope_parameters(graph(model))
    assert [slopes.tolist() for slopes in found] == [[0.25] * 4, [0.25]]
    assert {slopes.data_ptr() for slopes in found} == {m.weight.data_ptr() for m in model[1:]}


@pytest.mark.parametrize("graph", (exported, looked_into))
def test_what_cannot_be_swapped_or_restored_in_a_graph_is_listed(graph):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4))
    [(name, reason)] = replace_prelu(graph(model)).skipped
    assert name == "" and reason.startswith("functional use of ")
    assert "prelu" in reason and "override_aten() covers it" in reason
    assert restore_prelu(graph(model)).skipped == []
    replace_prelu(model)
    [(name, reason)] = restore_prelu(nn.ModuleDict({"inner": graph(model)})).skipped
    assert name == "inner" and reason.startswith("functional use of torch.ops.torch_ext.prelu")
    assert reason.endswith("not restored")
    assert replace_prelu(graph(model)).skipped == []


# ---- Functional uses ---------------------------------------------------------------------------


def helper(x, weight):
    return F.prelu(x, weight)


def use_f(self, x):
    return F.prelu(self.prelu(x), self.slopes)


def use_torch(self, x):
    return torch.prelu(self.prelu(x), self.slopes)


def use_path(self, x):
    return torch.nn.functional.prelu(x, self.slopes) + self.prelu(x)


def use_aten(self, x):
    return torch.ops.aten.prelu.default(x, self.slopes) + self.prelu(x)


def use_helper(self, x):
    return helper(self.prelu(x), self.slopes)


def use_inner(self, x):
    def inner(value):
        return F.prelu(value, self.slopes)

    return inner(self.prelu(x))


@torch.no_grad()
def use_decorated(self, x):
    return F.prelu(self.prelu(x), self.slopes)


USES = {
    use_f: "F.prelu",
    use_torch: "torch.prelu",
    use_path: "torch.nn.functional.prelu",
    use_aten: "torch.ops.aten.prelu.default",
    use_helper: "F.prelu",
    use_inner: "F.prelu",
    use_decorated: "F.prelu",
}


class Caller(nn.Module):
    """With a module that has the name of the function."""

    def __init__(self):
        super().__init__()
        self.prelu = nn.PReLU(3)
        self.slopes = nn.Parameter(torch.full((3,), 0.5))


@pytest.mark.parametrize(
    "forward, name", USES.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_functional_uses_are_listed_with_the_remedy(forward, name):
    model = nn.Sequential(nn.Identity(), type("Own", (Caller,), {"forward": forward})())
    expected = model(images())
    report = replace_prelu(model)
    assert report.swapped == ["1.prelu"]
    what = f"functional use of {name} in 1: not swapped; torch_ext.override_aten() covers it"
    assert report.skipped == [("1", what)]
    assert "fused" in calls(model)
    with torch_ext.override_aten():
        assert_same_bits(model(images()), expected)
    assert restore_prelu(model).skipped == []


def test_functional_uses_of_ours_are_listed_when_restoring():
    def forward(self, x):
        return torch_ext.prelu(self.prelu(x), self.slopes)

    model = type("Own", (Caller,), {"forward": forward})()
    report = replace_prelu(model)
    assert (report.swapped, report.skipped) == (["prelu"], [])
    report = restore_prelu(model)
    assert report.swapped == ["prelu"]
    what = "functional use of torch_ext.prelu in the model: not restored"
    assert report.skipped == [("", what)]


def test_a_module_of_that_name_and_a_function_that_is_not_called_are_no_uses():
    def forward(self, x):
        return self.prelu(x).relu() + torch.relu(x)

    model = type("Own", (Caller,), {"forward": forward})()
    assert replace_prelu(model).skipped == []
    assert replace_prelu(network()).skipped == []

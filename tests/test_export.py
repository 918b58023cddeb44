"""torch.export and make_fx keep the operator whole, for any sizes, and what it computes."""

import pytest
import torch
from cases import finite_slopes, random_values
from reference import assert_both_branches, assert_same_bits
from saved_models import cases, exact_network, images, run_in_fresh_python
from torch import nn

import torch_ext

pytestmark = [
    pytest.mark.contract,
    # torch 2.11's own, from its own use
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),
]

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward
Dim = torch.export.Dim


@pytest.fixture(params=(True, False), ids=("strict", "non_strict"))
def strict(request):
    return request.param


class Function(nn.Module):
    """PReLU of two arguments, between operations that a compiler would like to fuse with it."""

    def forward(self, input, weight):
        return torch_ext.prelu(input * 2, weight) + 1


def calls(program):
    """The operators of ours in a graph, in order."""
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.aten.prelu.default not in targets
    return [target for target in targets if "torch_ext" in str(target)]


def assert_runs_like(program, network, gradients=False):
    module = program.module()
    for one, other in zip(cases(module, gradients), cases(network, gradients)):
        assert one.keys() == other.keys()
        for name, expected in other.items():
            assert expected.norm() > 0
            assert_same_bits(one[name], expected)


# ---- What is in the graph, and for which sizes -------------------------------------------------

# From 6: PyTorch treats a size of 1, which two convolutions leave of 5, as a case of its own.
ANY_SIZE = {0: Dim("batch", min=1), 2: Dim("height", min=6), 3: Dim("width", min=6)}


def test_a_network_runs_with_other_batches_and_image_sizes(strict):
    """Each layer is one call of the operator, also after decomposition."""
    network = exact_network().eval()
    program = torch.export.export(network, (images(2),), dynamic_shapes=(ANY_SIZE,), strict=strict)
    for form in (program, program.run_decompositions()):
        assert calls(form) == [prelu.default, prelu.default]
        assert form.state_dict.keys() == network.state_dict().keys()
        assert_runs_like(form, network)


def test_an_exported_network_trains(strict):
    network = exact_network().train()
    program = torch.export.export(network, (images(2),), dynamic_shapes=(ANY_SIZE,), strict=strict)
    assert calls(program) == [prelu.default, prelu.default]
    assert_runs_like(program, network, gradients=True)


class Selected(nn.Module):
    """Of rows and channels that only the data tell: sizes that nobody knows while tracing."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, input, rows, channels, weight):
        weight = weight[channels]
        torch._check(weight.shape[0] != 1)  # one slope would be shared: another graph
        input = input[rows][:, channels]
        torch._check(input.shape[1] == weight.shape[0])
        return self.function(input, weight)


def test_sizes_that_depend_on_data(strict):
    def arguments(count):
        """`count` of 6 channels are selected, and 10 rows for each of them."""
        input, weight = random_values((60, 6), torch.float32), finite_slopes((6,), torch.float32)
        return input, torch.arange(60) < 10 * count, torch.arange(6) < count, weight

    model = Selected(torch_ext.prelu)
    program = torch.export.export(model, arguments(4), strict=strict)
    assert calls(program) == [prelu.default]
    for count in (2, 3, 6):
        output = program.module()(*arguments(count))
        assert output.shape == (10 * count, count)
        assert_both_branches(arguments(count)[0], output)
        assert_same_bits(output, model(*arguments(count)))


# ---- Modes and dtypes --------------------------------------------------------------------------


class Autocast(nn.Module):
    def forward(self, input, weight):
        with torch.autocast("cpu", torch.bfloat16):
            return torch_ext.prelu(input, weight)


def test_autocast_inside_an_exported_model(strict):
    args = (random_values((4, 3, 5), torch.float32), torch.tensor([0.1, -0.3, 1.7]))
    expected = Autocast()(*args)
    assert expected.dtype == torch.bfloat16
    program = torch.export.export(Autocast(), args, strict=strict)
    for form in (program, program.run_decompositions()):
        assert_same_bits(form.module()(*args), expected)


def test_errors_while_exporting_are_those_of_eager(strict):
    with pytest.raises(Exception, match="parameter numbers = 4 and channel size = 3"):
        torch.export.export(Function(), (torch.ones(2, 3), torch.ones(4)), strict=strict)


# ---- Saving ------------------------------------------------------------------------------------


def test_a_fresh_process_needs_import_torch_ext_and_says_so(tmp_path):
    network = exact_network()
    program = torch.export.export(network, (images(2),), dynamic_shapes=(ANY_SIZE,))
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    message = run_in_fresh_python("export", path, cases(network), tmp_path)
    # torch.export.load raises a general error; the reason stands in what it logs before.
    assert "failed to resolve torch.ops.torch_ext.prelu.default to an operator" in message
    assert "Please import the custom op to register it before deserializing" in message


def test_a_decomposed_program_survives_saving(tmp_path):
    network = exact_network()
    program = torch.export.export(network, (images(2),), dynamic_shapes=(ANY_SIZE,))
    torch.export.save(program.run_decompositions(), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert calls(loaded) == [prelu.default, prelu.default]
    assert_runs_like(loaded, network)


def test_exporting_what_was_exported_changes_nothing(strict):
    network = exact_network()
    program = torch.export.export(network, (images(2),), dynamic_shapes=(ANY_SIZE,))
    again = torch.export.export(
        program.module(), (images(2),), dynamic_shapes=(ANY_SIZE,), strict=strict
    )
    assert calls(again) == [prelu.default, prelu.default]
    assert_runs_like(again, network)


# ---- Other tracers -----------------------------------------------------------------------------


def test_make_fx_traces_forward_and_backward(device):
    input = random_values((3, 4, 5), torch.float32, device)
    weight = finite_slopes((4,), torch.float32, device)

    def step(input, weight):
        input, weight = input.detach().requires_grad_(), weight.detach().requires_grad_()
        output = prelu(input, weight)
        gradients = torch.autograd.grad(output, (input, weight), torch.ones_like(output))
        return (output.detach(), *gradients)

    trace = torch.fx.experimental.proxy_tensor.make_fx(step, tracing_mode="symbolic")
    traced = trace(input, weight)
    assert calls(traced) == [prelu.default, prelu_backward.default]
    assert_both_branches(input, *step(input, weight))
    for one, other in zip(traced(input, weight), step(input, weight)):
        assert_same_bits(one, other)


def test_symbolic_trace_of_a_swapped_network():
    network = exact_network()
    traced = torch.fx.symbolic_trace(network)
    # Modules, as PyTorch's are.
    modules = [traced.get_submodule(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    assert sum(type(module) is torch_ext.PReLU for module in modules) == 2
    for case in cases(network):
        assert_same_bits(traced(case["input"]), case["output"])

"""TorchScript, in Python and in C++. Deprecated upstream, but C++ programs still load such files."""

import pytest
import torch
from cases import finite_slopes, random_values
from reference import assert_both_branches, assert_same_bits
from saved_models import (
    cases,
    error_in_cpp,
    exact_network,
    images,
    run_in_cpp,
    run_in_fresh_python,
)
from torch import nn

import torch_ext

pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings(r"ignore:.torch\.jit\.\w+. is deprecated"),
]

# TorchScript specialises a graph in its first calls, so the third may run other code than the first.
CALLS = 3


def traced(network):
    return torch.jit.trace(network, images(2))


@pytest.fixture(params=(torch.jit.script, traced), ids=("script", "trace"))
def compile(request):
    return request.param


def calls(graph, operator="torch_ext::prelu"):
    return [node.kind() for node in graph.findAllNodes(operator)]


def assert_runs_like(compiled, network):
    for _ in range(CALLS):
        for case in cases(network):
            assert_same_bits(compiled(case["input"]), case["output"])


# ---- In one process ----------------------------------------------------------------------------


def test_a_network_computes_what_it_did_in_eager(compile):
    network = exact_network()
    assert_runs_like(compile(network), network)


def test_the_graph_runs_our_operator_and_not_stocks(compile):
    graph = compile(exact_network()).inlined_graph
    assert calls(graph)
    assert not calls(graph, "aten::prelu")


def test_a_loaded_network_gives_the_gradients_of_eager(compile, tmp_path):
    network = exact_network()
    compile(network).save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    expected_state = network.state_dict()
    assert loaded.state_dict().keys() == expected_state.keys()
    for _ in range(CALLS):
        for one, other in zip(cases(loaded, gradients=True), cases(network, gradients=True)):
            assert one.keys() == other.keys()
            for name, expected in other.items():
                assert expected.norm() > 0
                assert_same_bits(one[name], expected)


@pytest.mark.parametrize("layer", (torch_ext.PReLU, nn.PReLU), ids=("made", "swapped"))
def test_a_single_layer_scripts(layer):
    module = layer(3)
    torch_ext.replace_prelu(module)
    input = random_values((4, 3, 5), torch.float32)
    scripted = torch.jit.script(module)
    assert calls(scripted.inlined_graph)
    assert_same_bits(scripted(input), module(input))


def test_a_swapped_subclass_scripts():
    class Named(nn.PReLU):
        pass

    module = Named(3)
    torch_ext.replace_prelu(module)
    scripted = torch.jit.script(module)
    assert calls(scripted.inlined_graph)
    input = random_values((4, 3, 5), torch.float32)
    assert_same_bits(scripted(input), module(input))


def call_by_name(input, weight):
    return torch.ops.torch_ext.prelu(input, weight)


def call_from_a_function(input, weight):
    return torch_ext.prelu(input * 2, weight) + 1


@pytest.mark.parametrize("function", (torch_ext.prelu, call_by_name, call_from_a_function))
def test_functions_script_and_differentiate_twice(function):
    scripted = torch.jit.script(function)
    input = random_values((4, 3, 5), torch.float64).requires_grad_()
    weight = finite_slopes((3,), torch.float64).requires_grad_()

    def derivatives(f):
        first = torch.autograd.grad(
            f(input, weight).square().sum(), (input, weight), create_graph=True
        )
        second = torch.autograd.grad(first[0].square().sum() + first[1].sum(), (input, weight))
        return (*first, *second)

    assert_both_branches(input)
    for _ in range(CALLS):
        for one, other in zip(derivatives(scripted), derivatives(function)):
            assert other.norm() > 0
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def both_gradients(grad_output, input, weight):
    return torch.ops.torch_ext.prelu_backward(grad_output, input, weight, [True, True])


def one_gradient(grad_output, input, weight):
    # (Also of PyTorch's own operators, TorchScript returns no gradient that was not asked for.)
    return torch.ops.torch_ext.prelu_backward(grad_output, input, weight, [True, False])[:1]


@pytest.mark.parametrize("function", (both_gradients, one_gradient))
def test_prelu_backward_scripts_with_its_mask(function):
    input, grad_output = (random_values((4, 3, 5), torch.float32, seed=seed) for seed in (1, 2))
    weight = finite_slopes((3,), torch.float32)
    scripted = torch.jit.script(function)
    for _ in range(CALLS):
        for one, other in zip(
            scripted(grad_output, input, weight), function(grad_output, input, weight)
        ):
            assert other.norm() > 0
            assert_same_bits(one, other)


def test_a_float32_slope_with_16_bit_data(mixed_dtypes):
    dtype, weight_dtype = mixed_dtypes
    module = torch_ext.PReLU(3, init=0.3, dtype=weight_dtype)
    input = random_values((4, 3, 5), dtype)
    assert_same_bits(torch.jit.script(module)(input), module(input))


def test_autocast_around_a_compiled_network(compile):
    network = exact_network()
    compiled = compile(network)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(CALLS):
            assert compiled(images(3)).dtype == torch.bfloat16
            torch.testing.assert_close(compiled(images(3)), network(images(3)))
    assert_runs_like(compiled, network)


def test_errors_are_those_of_eager():
    scripted = torch.jit.script(torch_ext.PReLU(3))
    with pytest.raises(RuntimeError, match="parameter numbers = 3 and channel size = 4"):
        scripted(torch.ones(2, 4))


def test_freezing_and_optimizing_for_inference_keep_the_results(compile):
    network = exact_network().eval()
    frozen = torch.jit.freeze(compile(network))
    assert not list(frozen.parameters())
    for compiled in (frozen, torch.jit.optimize_for_inference(frozen)):
        assert calls(compiled.graph)
        with torch.no_grad():
            assert_runs_like(compiled, network)


# ---- In another process ------------------------------------------------------------------------


def saved(compile, folder):
    """A file with the compiled network, its cases, and the folder."""
    network = exact_network()
    compile(network).save(folder / "model.pt")
    return folder / "model.pt", cases(network, gradients=True), folder


def test_a_fresh_process_needs_import_torch_ext_and_says_so(tmp_path):
    message = run_in_fresh_python("torchscript", *saved(torch.jit.script, tmp_path))
    assert "Unknown builtin op: torch_ext::prelu" in message


def test_a_cpp_program_runs_it_and_differentiates_it(compile, tmp_path):
    run_in_cpp("torchscript", *saved(compile, tmp_path))


@pytest.mark.parametrize("name", ("output", "grad_input", "grad_swapped.weight"))
def test_the_cpp_program_notices_a_difference(name, tmp_path):
    path, made, folder = saved(traced, tmp_path)
    made[-1][name].view(-1)[-1] += 0.25
    assert f"{name} differs from Python's" in error_in_cpp("torchscript", path, made, folder)


def test_a_cpp_program_without_the_library_says_which_operator_is_missing(tmp_path):
    message = error_in_cpp("torchscript", *saved(torch.jit.script, tmp_path), with_torch_ext=False)
    assert "Unknown builtin op: torch_ext::prelu" in message

"""torch_ext.override_aten: aten::prelu on our kernels, for unchanged models; stock again afterwards."""

import io

import pytest
import torch
import torch.nn.functional as F
from cases import CASE_BY_NAME, finite_slopes, forward_backward, random_values
from exact_network import batch, network
from profiled import (
    OURS,
    OURS_AND_BACKWARD,
    STOCK,
    STOCK_AND_BACKWARD,
    kernels,
    stock_before_and_after,  # noqa: F401  (a fixture)
)
from reference import assert_both_branches, assert_grad_weight_within_bound, assert_same_bits
from torch import nn

import torch_ext

pytestmark = [
    pytest.mark.contract,
    pytest.mark.usefixtures("on_device", "stock_before_and_after"),
    pytest.mark.filterwarnings(r"ignore:.torch\.jit\.\w+. is deprecated"),
]

MISMATCH = "Mismatch of parameter numbers and input channel size"


def data(dtype=torch.float32, seed=0):
    """Input, slopes and grad_output."""
    input, grad_output = (random_values((4, 3, 5), dtype, seed=seed + i) for i in (0, 1))
    assert_both_branches(input)
    return input, finite_slopes((3,), dtype), grad_output


def step(operator=F.prelu):
    input, weight, grad_output = data()
    return lambda: forward_backward(operator, input, weight, grad_output)


# ---- What it covers ----------------------------------------------------------------------------


def tensor_method(input, weight):
    return input.prelu(weight)


def module(input, weight):
    layer = nn.PReLU(weight.numel())
    return torch.func.functional_call(layer, {"weight": weight}, (input,))


def by_name(input, weight):
    return torch.ops.aten.prelu(input, weight)


@pytest.mark.parametrize("call", (F.prelu, torch.prelu, tensor_method, module, by_name))
def test_every_way_to_aten_prelu_runs_our_kernels_forward_and_backward(call):
    with torch_ext.override_aten():
        assert kernels(step(call)) == OURS_AND_BACKWARD
    assert kernels(step(call)) == STOCK_AND_BACKWARD


@pytest.mark.parametrize(
    "name", ("image", "image_channels_last", "sliced", "shared_weight", "rows", "scalar")
)
def test_results_are_those_of_stock(name, dtype):
    case = CASE_BY_NAME[name]
    input = case.layout(random_values(case.shape, dtype, seed=case.seed))
    grad_output = random_values(case.shape, dtype, seed=1)
    weight = finite_slopes(case.slopes, dtype)
    stock = forward_backward(F.prelu, input, weight, grad_output)
    with torch_ext.override_aten():
        overridden = forward_backward(F.prelu, input, weight, grad_output)
    ours = forward_backward(torch_ext.prelu, input, weight, grad_output)
    for one, other in zip(overridden, ours):
        assert_same_bits(one, other)
    for one, other in zip(overridden[:2], stock[:2]):
        assert_same_bits(one, other)
    if input.numel() >= 16:
        assert_grad_weight_within_bound(overridden[2], grad_output, input, weight)


def test_a_backward_belongs_to_its_forward():
    input, weight, _ = data()
    leaves = input.requires_grad_(), weight.requires_grad_()
    with torch_ext.override_aten():
        inside = F.prelu(*leaves)
    outside = F.prelu(*leaves)
    assert kernels(inside.sum().backward) == {"torch_ext::prelu_backward"}
    with torch_ext.override_aten():
        assert kernels(outside.sum().backward) == {"aten::_prelu_kernel_backward"}


@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
def test_inference_runs_our_kernel(mode):
    input, weight, _ = data()
    with mode(), torch_ext.override_aten():
        for given in (input, input.clone()):  # in inference_mode, the clone is an inference tensor
            assert kernels(lambda given=given: F.prelu(given, weight)) == OURS
    with mode():
        assert kernels(lambda: F.prelu(input.clone(), weight)) == STOCK


def saved_and_loaded(compiled):
    buffer = io.BytesIO()
    torch.jit.save(compiled, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.cpu_only("TorchScript fuses operators on a GPU")
@pytest.mark.parametrize("loaded", (False, True), ids=("made", "loaded"))
@pytest.mark.parametrize("how", ("script", "trace"))
def test_scriptmodules_run_our_kernels(how, loaded):
    model = network(nn.PReLU)
    input, factors = batch()
    compiled = torch.jit.script(model) if how == "script" else torch.jit.trace(model, input)
    compiled = saved_and_loaded(compiled) if loaded else compiled

    def train():
        compiled.zero_grad()
        output = compiled(input)
        (output * factors).sum().backward()
        return output, *(parameter.grad.clone() for parameter in compiled.parameters())

    stock = train()
    for _ in range(3):  # TorchScript may run other code after its first calls
        with torch_ext.override_aten():
            assert kernels(train) == OURS_AND_BACKWARD
            for one, other in zip(train(), stock, strict=True):
                assert other.norm() > 0
                assert_same_bits(one, other)
        assert kernels(train) == STOCK_AND_BACKWARD
    assert "aten::prelu" in str(compiled.inlined_graph)


def test_a_module_traced_or_scripted_inside_still_says_aten_prelu():
    input, weight, _ = data()
    with torch_ext.override_aten():
        graphs = [
            torch.jit.trace(F.prelu, (input, weight)).graph,
            torch.jit.script(nn.PReLU(3)).inlined_graph,
        ]
    for graph in graphs:
        assert "aten::prelu" in str(graph)
        assert "torch_ext" not in str(graph)


# ---- Argument rules ----------------------------------------------------------------------------


def error(call, *arguments):
    with pytest.raises(Exception) as caught:
        call(*arguments)
    return caught.type, str(caught.value).split("\n\n")[0]


BAD_ARGUMENTS = {
    "mixed": (torch.ones(2, 3).half(), torch.ones(3), "Got Half and Float"),
    "promoting": (torch.ones(2, 3), torch.ones(3).double(), "Got Float and Double"),
    "mismatch": (torch.ones(2, 3), torch.ones(4), MISMATCH),
    "zero_dim": (torch.tensor(1.0), torch.ones(2), "Not allow zero-dim input tensor."),
    "weight_ndim": (torch.ones(2, 3), torch.ones(1, 3), "but got: ndim = 2"),
    "integers": (torch.ones(2, 3).long(), torch.ones(3).long(), "not implemented for 'Long'"),
    "complex": (torch.ones(2, 3) * 1j, torch.ones(3) * 1j, "not implemented for 'Complex"),
    "devices": (torch.ones(2, 3), torch.ones(3, device="meta"), ""),
    "sparse": (torch.ones(2, 3).to_sparse(), torch.ones(3), ""),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_errors_are_stocks_word_for_word(name):
    input, weight, text = BAD_ARGUMENTS[name]
    stock = error(F.prelu, input, weight)
    assert text in stock[1]
    with torch_ext.override_aten():
        assert error(F.prelu, input, weight) == stock
    assert error(F.prelu, input, weight) == stock


def test_our_own_operator_keeps_its_mixed_dtypes(mixed_dtypes):
    dtype, weight_dtype = mixed_dtypes
    input, weight, grad_output = data(dtype)
    weight = weight.to(weight_dtype)
    expected = forward_backward(torch_ext.prelu, input, weight, grad_output)
    with torch_ext.override_aten():
        actual = forward_backward(torch_ext.prelu, input, weight, grad_output)
        with pytest.raises(RuntimeError, match="Type promoting not supported"):
            F.prelu(input, weight)
    for one, other in zip(actual, expected):
        assert_same_bits(one, other)


@pytest.mark.cpu_only("quantized and MKL-DNN tensors are the CPU's")
@pytest.mark.filterwarnings("ignore")  # torch's own, about quantized and nested tensors
@pytest.mark.parametrize("call", (F.prelu, torch_ext.prelu))
def test_other_layouts_reach_stock_and_do_not_run_in_circles(call):
    image, slopes = torch.randn(2, 3, 4), torch.randn(3)
    mkldnn = image.to_mkldnn()
    refused = (
        torch.quantize_per_tensor(image, 0.1, 0, torch.quint8),
        torch.nested.nested_tensor([image[0], image[1, :2]], layout=torch.jagged),
    )
    expected = F.prelu(mkldnn, slopes).to_dense()
    refusals = [error(F.prelu, input, slopes[:1]) for input in refused]
    with torch_ext.override_aten():
        assert_same_bits(call(mkldnn, slopes).to_dense(), expected)
        assert [error(call, input, slopes[:1]) for input in refused] == refusals


def test_meta_tensors_stay_stocks():
    input, weight = torch.empty(2, 3, device="meta").long(), torch.empty(3, device="meta").long()
    expected = F.prelu(input, weight)
    with torch_ext.override_aten():
        assert F.prelu(input, weight).shape == expected.shape

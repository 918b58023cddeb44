"""Exported, a norm in front of a PReLU is PyTorch's norm and the PReLU, however it was written."""

import io

import pytest
import torch
from norm_pairs import randomized, sample
from torch import nn

import torch_ext

pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are using the legacy", "ignore:Converting a tensor"),
]


class Called(nn.Module):
    """By the functions."""

    def __init__(self, norm, prelu):
        super().__init__()
        self.norm, self.prelu = norm, prelu

    def forward(self, x):
        n, slope = self.norm, self.prelu.weight
        statistics = (n.running_mean, n.running_var, n.weight, n.bias)
        if isinstance(n, nn.BatchNorm2d):
            return torch_ext.batch_norm_prelu(x, slope, *statistics, eps=n.eps)
        return torch_ext.instance_norm_prelu(x, slope, *statistics, eps=n.eps)


def changed(norm, prelu):
    model = nn.Sequential(norm, prelu)
    torch_ext.fuse_norm_prelu(model)
    return model


WAYS = {"changed": changed, "layer": torch_ext.NormPReLU, "called": Called}
NORMS = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}


@pytest.fixture(params=NORMS)
def kind(request):
    return request.param


@pytest.fixture(params=WAYS)
def model(request, kind):
    torch.manual_seed(0)
    norm = NORMS[kind](8, affine=True)
    made = randomized(WAYS[request.param](norm, torch_ext.PReLU(8))).float().eval()
    if kind == "batch":
        norm.running_var.uniform_(0.5, 2)
        norm.running_mean.normal_()
    return made


X = sample(2, 8, 5, 6).float()


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
def test_a_program_has_pytorchs_norm(model, kind, strict):
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: batch},), strict=strict)
    for form in (program, program.run_decompositions()):
        targets = [str(n.target) for n in form.graph.nodes if n.op == "call_function"]
        assert [t for t in targets if "torch_ext" in t] == ["torch_ext.prelu.default"]
        assert any("norm" in target for target in targets)
        for x in (X, torch.cat([X, X + 1, X])):
            torch.testing.assert_close(form.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_onnx_has_its_standard_norm_and_prelu(model, kind, dynamo):
    onnx, onnxruntime = map(pytest.importorskip, ("onnx", "onnxruntime"))
    pytest.importorskip("onnxscript")
    if dynamo:
        content = torch.onnx.export(
            model, (X,), dynamo=True, verbose=False, input_names=["x"]
        ).model_proto.SerializeToString()
    else:
        buffer = io.BytesIO()
        torch.onnx.export(model, (X,), buffer, dynamo=False, input_names=["x"])
        content = buffer.getvalue()
    nodes = onnx.load_from_string(content).graph.node
    assert {node.domain for node in nodes} == {""}
    types = [node.op_type for node in nodes]
    assert types.count("PRelu") == 1
    standard = {"batch": "BatchNormalization", "instance": "InstanceNormalization"}[kind]
    assert standard in types, types
    session = onnxruntime.InferenceSession(content)
    [y] = session.run(None, {"x": X.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(X), rtol=1e-4, atol=1e-5)

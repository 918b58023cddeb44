"""Export to ONNX: the standard PRelu and nothing of ours, with the operator's numbers."""

import io

import pytest
import torch
from cases import integer_values, random_values
from reference import assert_both_branches, forward
from torch import nn

import torch_ext

pytestmark = pytest.mark.contract

REASONS = {
    "onnx": "holds and checks the exported graph",
    "onnxscript": "torch.onnx.export(dynamo=True) and the translation are written in it",
    "onnxruntime": "runs the exported graph",
}


class Parallel(nn.Module):
    """Several layers on the same input: one export instead of many."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, input):
        return tuple(layer(input) for layer in self.layers)


class Functional(nn.Module):
    """Slopes as a second input, not as a parameter."""

    def forward(self, input, weight):
        return torch_ext.prelu(input, weight)


@pytest.fixture
def export():
    """torch.onnx.export. Calling what it returns runs onnxruntime on tensors."""
    for package, use in REASONS.items():
        pytest.importorskip(package, reason=f"{package} {use}")

    def export(model, *args, **options):
        return torch.onnx.export(
            model.eval(),
            args,
            dynamo=True,
            verbose=False,
            **options,
        )

    return export


def layer(slopes, dtype=torch.float32):
    """A torch_ext.PReLU with slopes of this shape, of both signs; other values for each shape, or
    the exporter would merge equal layers."""
    module = torch_ext.PReLU()
    seed = 1 + sum(slopes)
    module.weight = nn.Parameter(random_values(slopes, dtype, seed=seed, zeros=False))
    return module


def operators(program):
    """The graph's operators in order, after a check that all of them are standard ones."""
    graph = program.model.graph
    assert {node.domain for node in graph} == {""}
    assert set(program.model.opset_imports) == {""}
    assert not program.model.functions
    return [node.op_type for node in graph]


def assert_equal(actual, expected):
    """Equal values, shapes and dtypes. Zeros may differ in sign: ONNX does not multiply them."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def assert_runs_like_the_reference(program, x, weight):
    [output] = program(x)
    expected = forward(x, weight)
    assert_equal(output, expected)
    assert_both_branches(x, expected)


@pytest.mark.parametrize("rank", range(6))
def test_each_call_becomes_one_prelu_with_the_same_values(rank, export):
    layers = [layer(slopes) for slopes in ((), (1,), (3,)) if slopes != (3,) or rank > 1]
    x = random_values((6, 3, 4, 5, 2)[:rank], torch.float32)
    program = export(Parallel(layers), x)
    assert operators(program) == ["PRelu"] * len(layers)
    for output, module in zip(program(x), layers, strict=True):
        expected = forward(x, module.weight)
        assert_equal(output, expected)
        assert_both_branches(x, expected)


def test_slopes_follow_the_channels_where_all_sizes_are_equal(export):
    module = layer((4,))
    x = random_values((4, 4, 4, 4), torch.float32)
    assert_runs_like_the_reference(export(module, x), x, module.weight)


@pytest.mark.parametrize("slopes", [(1,), (3,)], ids=str)
def test_dynamic_sizes_stay_dynamic(slopes, export):
    module = layer(slopes)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height")}
    program = export(
        module, random_values((2, 3, 4, 5), torch.float32), dynamic_shapes=({**sizes},)
    )
    assert operators(program) == ["PRelu"]
    for batch, height in ((2, 4), (7, 4), (1, 9)):
        x = random_values((batch, 3, height, 5), torch.float32, seed=batch)
        assert_runs_like_the_reference(program, x, module.weight)


@pytest.mark.parametrize("slopes", [(1,), (3,)], ids=str)
def test_a_float32_slope_is_not_rounded_to_16_bits(slopes, mixed_dtypes, export):
    input_dtype, weight_dtype = mixed_dtypes
    module = layer(slopes, weight_dtype)
    x = random_values((16, 3, 9, 5), input_dtype)
    program = export(module, x)
    assert operators(program) == ["Cast", "PRelu", "Cast"]
    assert_runs_like_the_reference(program, x, module.weight)

    rounded_slope = forward(x, module.weight.to(input_dtype))
    assert not torch.equal(rounded_slope, forward(x, module.weight))


def test_float16_runs(export):
    module = layer((3,), torch.float16)
    x = random_values((16, 3, 9, 5), torch.float16)
    assert_runs_like_the_reference(export(module, x), x, module.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtypes_that_onnxruntime_has_no_kernel_for_are_exported(dtype, export):
    onnx = pytest.importorskip("onnx", reason=REASONS["onnx"])
    module = layer((3,), dtype)
    x = random_values((2, 3, 4, 5), dtype)
    program = export(module, x)
    assert operators(program) == ["PRelu"]
    onnx.checker.check_model(program.model_proto, full_check=True)


def test_float64_is_right_in_the_reference_implementation_of_onnx(export):
    onnx_reference = pytest.importorskip("onnx.reference", reason=REASONS["onnx"])
    module = layer((3,), torch.float64)
    x = random_values((2, 3, 4, 5), torch.float64)
    program = export(module, x, input_names=["x"])
    [output] = onnx_reference.ReferenceEvaluator(program.model_proto).run(None, {"x": x.numpy()})
    assert_equal(torch.from_numpy(output), forward(x, module.weight))


def test_slopes_may_be_an_input(export):
    x = random_values((2, 3, 4, 5), torch.float32)
    program = export(Functional(), x, random_values((3,), torch.float32))
    assert set(operators(program)) <= {"Constant", "Unsqueeze", "PRelu"}
    other = random_values((3,), torch.float32, seed=2)
    [output] = program(x, other)
    assert_equal(output, forward(x, other))


@pytest.mark.parametrize("opset", [18, 23])
def test_the_opset_that_was_asked_for(opset, export):
    x = random_values((2, 3, 4, 5), torch.float32)
    program = export(layer((3,)), x, opset_version=opset)
    assert program.model.opset_imports == {"": opset}
    assert operators(program) == ["PRelu"]


def test_a_swapped_network_runs_from_a_file_without_torch(export, tmp_path):
    onnx = pytest.importorskip("onnx", reason=REASONS["onnx"])
    onnxruntime = pytest.importorskip("onnxruntime", reason=REASONS["onnxruntime"])
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 4, 3), nn.PReLU(), nn.Flatten()
    )
    for index, parameter in enumerate(model.parameters()):
        # Every sum is exact, so that the order in which a convolution adds does not matter.
        parameter.data = integer_values(parameter.shape, torch.float32, seed=index)
        parameter.data /= 16 if parameter.dim() == 1 else 1
    x, more = (integer_values((batch, 3, 8, 8), torch.float32, seed=batch) for batch in (2, 5))
    expected = model(more).detach()  # stock's
    torch_ext.replace_prelu(model)

    program = export(
        model, x, input_names=["image"], dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    assert operators(program).count("PRelu") == 2
    path = tmp_path / "model.onnx"
    program.save(path)
    onnx.checker.check_model(path, full_check=True)
    [output] = onnxruntime.InferenceSession(path).run(None, {"image": more.numpy()})
    assert_equal(torch.from_numpy(output), expected)


def test_the_table_gives_the_same(export):
    x = random_values((2, 3, 4, 5), torch.float32)
    table = torch_ext.onnx.translation_table()
    without, with_table = (
        export(layer((3,)), x),
        export(layer((3,)), x, custom_translation_table=table),
    )
    assert operators(with_table) == operators(without) == ["PRelu"]
    assert_equal(with_table(x)[0], without(x)[0])


# ---- The older exporter ------------------------------------------------------------------------


@pytest.fixture
def export_torchscript():
    """torch.onnx.export(dynamo=False): the graph, and a function that runs it."""
    onnx, onnxruntime = map(pytest.importorskip, ("onnx", "onnxruntime"))

    def export(model, x):
        buffer = io.BytesIO()
        torch.onnx.export(model.eval(), (x,), buffer, dynamo=False, input_names=["x"])
        content = buffer.getvalue()
        graph = onnx.load_from_string(content).graph

        def run():
            session = onnxruntime.InferenceSession(content)
            return [torch.from_numpy(y) for y in session.run(None, {"x": x.numpy()})]

        assert {node.domain for node in graph.node} == {""}
        return graph.node, run

    return export


@pytest.mark.filterwarnings("ignore:You are using the legacy", "ignore:Converting a tensor")
@pytest.mark.parametrize("rank", range(6))
def test_the_older_exporter_writes_one_prelu_for_each_call(rank, export_torchscript):
    layers = [layer(slopes) for slopes in ((), (1,), (3,)) if slopes != (3,) or rank > 1]
    x = random_values((6, 3, 4, 5, 2)[:rank], torch.float32)
    nodes, run = export_torchscript(Parallel(layers), x)
    assert [node.op_type for node in nodes].count("PRelu") == len(layers)
    for output, module in zip(run(), layers, strict=True):
        assert_equal(output, forward(x, module.weight))
        assert_both_branches(x, output)


@pytest.mark.filterwarnings("ignore:You are using the legacy")
def test_the_older_exporter_rounds_no_float32_slope(mixed_dtypes, export_torchscript):
    input_dtype, weight_dtype = mixed_dtypes
    module = layer((3,), weight_dtype)
    x = random_values((16, 3, 9, 5), input_dtype)
    nodes, run = export_torchscript(module, x)
    casts = [node.attribute[0].i for node in nodes if node.op_type == "Cast"]
    assert casts == [1, {torch.float16: 10, torch.bfloat16: 16}[input_dtype]]
    assert [node.op_type for node in nodes].count("PRelu") == 1
    if input_dtype == torch.float16:  # NumPy has no other
        assert_equal(run()[0], forward(x, module.weight))

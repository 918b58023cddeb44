"""What the policy does to Inductor's graphs, and that results stay the operators'."""

import os
import re
import subprocess
import sys

import pytest
import torch
from cases import channels_last, finite_slopes, integer_values, random_values
from reference import assert_both_branches, assert_same_bits
from torch import nn
from torch._inductor.compile_fx import compile_fx
from torch._inductor.utils import run_and_get_code

import torch_ext
from torch_ext.inductor import POLICIES

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


SMALL = 4096  # elements, in these tests


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.setattr(torch_ext.inductor, "small_backward", lambda device: SMALL)
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch_ext.inductor.set_compile("auto")
    torch._dynamo.reset()


class Inductor:
    """Inductor up to the graphs that it would generate code for, which are run as they are."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph_module, example_inputs):
        return compile_fx(graph_module, example_inputs, inner_compile=self._keep)

    def _keep(self, graph_module, example_inputs, **options):
        self.graphs.append(graph_module.graph)

        def run(arguments):
            return graph_module(*arguments)

        run._boxed_call = True
        return run

    def count(self, operator):
        return sum(
            len(graph.find_nodes(op="call_function", target=operator.default))
            for graph in self.graphs
        )

    @property
    def whole(self):
        """How many forwards and backwards were left whole."""
        return self.count(prelu), self.count(prelu_backward)


def _gradients(function, tensors, grad_output):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*tensors)
    return output, *torch.autograd.grad(output, tensors, grad_output)


def _train(module, input, dynamic=None):
    """Compiles a training step; returns what became of the operators in it."""
    inductor = Inductor()
    compiled = torch.compile(module, backend=inductor, fullgraph=True, dynamic=dynamic)
    input = input.detach().requires_grad_()
    compiled(input).sum().backward()
    return inductor.whole


def _infer(module, input):
    inductor = Inductor()
    with torch.inference_mode():
        torch.compile(module, backend=inductor, fullgraph=True)(input)
    return inductor.whole


# ---- The policy --------------------------------------------------------------------------------

IMAGES, ROWS = (4, 16, 14, 14), (64, 80)  # more than SMALL elements


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.prelu = torch_ext.PReLU(16)

    def forward(self, input):
        return self.prelu(input + self.norm(self.conv(input)))


def _after(*layers, slopes=16):
    return lambda: nn.Sequential(*layers, torch_ext.PReLU(slopes))


MODELS = {
    # name: (model, shape of the input, backwards that stay whole)
    "alone": (_after(), IMAGES, 1),
    "one_slope": (_after(slopes=1), IMAGES, 1),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(16, 16, 3), torch_ext.PReLU(16), nn.Conv2d(16, 16, 3), torch_ext.PReLU(16)
        ),
        IMAGES,
        2,
    ),
    "linear_with_bias": (_after(nn.Linear(80, 80), slopes=80), ROWS, 1),
    "pool_between": (
        lambda: nn.Sequential(
            nn.Conv2d(16, 16, 3), torch_ext.PReLU(16), nn.MaxPool2d(2), nn.Conv2d(16, 8, 3)
        ),
        IMAGES,
        1,
    ),
    "elementwise_before": (lambda: nn.Sequential(nn.Tanh(), torch_ext.PReLU(16)), IMAGES, 1),
    "norm_behind": (lambda: nn.Sequential(torch_ext.PReLU(16), nn.BatchNorm2d(16)), IMAGES, 1),
    "batch_norm": (_after(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)), IMAGES, 0),
    "layer_norm": (_after(nn.Linear(80, 80), nn.LayerNorm(80), slopes=80), ROWS, 0),
    "batch_norm_and_skip": (Residual, IMAGES, 0),
    "small": (_after(nn.Linear(8, 8), slopes=8), (SMALL // 8, 8), 0),
    "not_quite_small": (_after(nn.Linear(8, 8), slopes=8), (SMALL // 8 + 1, 8), 1),
}


@pytest.mark.parametrize("build, shape, whole", MODELS.values(), ids=MODELS)
def test_backwards_stay_whole_unless_their_gradient_is_summed_next_door(
    build, shape, whole, device
):
    module, input = build().to(device), random_values(shape, torch.float32, device)
    backwards = sum(isinstance(layer, nn.PReLU) for layer in module.modules())
    assert _train(module, input) == (0, whole)
    torch_ext.inductor.set_compile("opaque")
    assert _train(module, input) == (backwards, backwards)
    torch_ext.inductor.set_compile("decompose")
    assert _train(module, input) == (0, 0)


def test_what_is_small_grows_with_the_threads_up_to_the_caches(threads, monkeypatch):
    monkeypatch.undo()
    sizes = {}
    for count in (1, 2, 64):
        threads(count)
        sizes[count] = torch_ext.inductor.small_backward(torch.device("cpu"))
    assert sizes == {1: 2**18, 2: 2**19, 64: 2**22}


def test_a_frozen_slope_leaves_nothing_to_sum(device):
    module = torch_ext.PReLU(16).to(device).requires_grad_(False)
    assert _train(module, random_values(IMAGES, torch.float32, device)) == (0, 0)


def test_inference_is_taken_apart(device):
    module = nn.Sequential(nn.Conv2d(16, 16, 3), torch_ext.PReLU(16)).to(device).eval()
    input = random_values(IMAGES, torch.float32, device)
    assert _infer(module, input) == (0, 0)
    torch_ext.inductor.set_compile("opaque")
    assert _infer(module, input) == (1, 0)


def test_symbolic_sizes_count_as_large(device):
    module = torch_ext.PReLU(4).to(device)
    assert _train(module, random_values((3, 4, 5), torch.float32, device), dynamic=True) == (0, 1)


def test_taken_apart_a_model_has_the_nodes_of_stock(device):
    """Then it cannot be slower. (Views cost nothing, and a few are placed otherwise.)"""

    def nodes(layer):
        module = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), layer).to(device)
        inductor = Inductor()
        compiled = torch.compile(module, backend=inductor, fullgraph=True)
        compiled(random_values(IMAGES, torch.float32, device).requires_grad_()).sum().backward()
        assert len(inductor.graphs) == 2  # forward and backward
        return [
            sorted(
                str(node.target)
                for node in graph.nodes
                if node.op == "call_function" and "view" not in str(node.target)
            )
            for graph in inductor.graphs
        ]

    ours, stock = nodes(torch_ext.PReLU(16)), nodes(nn.PReLU(16))
    assert ours == stock
    assert any("where" in target for target in ours[0])


# ---- Results -----------------------------------------------------------------------------------

SHAPES = {
    "image": ((3, 6, 5, 7), (6,)),
    "rows": ((11, 7), (7,)),
    "sequence": ((3, 5, 7), (5,)),
    "volume": ((2, 3, 4, 3, 2), (3,)),
    "one_slope": ((3, 6, 5), (1,)),
    "slope_0d": ((3, 6, 5), ()),
    "vector": ((40,), (1,)),
    "vector_slope_0d": ((40,), ()),
    "scalar": ((), (1,)),
    "scalar_slope_0d": ((), ()),
    "one_channel": ((5, 1, 8), (1,)),
    "empty": ((0, 3, 4), (3,)),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape, slopes", SHAPES.values(), ids=SHAPES)
def test_every_policy_has_the_results_of_eager(policy, shape, slopes, dtypes, device):
    """To the bit: the values are integers, whose sums are exact in any order."""
    dtype, weight_dtype = dtypes
    torch_ext.inductor.set_compile(policy)
    input, grad_output = (integer_values(shape, dtype, device, seed=seed) for seed in (1, 2))
    weight = integer_values(slopes, weight_dtype, device, seed=3) / 4
    inductor = Inductor()
    compiled = torch.compile(lambda *args: prelu(*args), backend=inductor, fullgraph=True)
    actual = _gradients(compiled, (input, weight), grad_output)
    expected = _gradients(prelu, (input, weight), grad_output)
    if input.numel() > 1:
        assert_both_branches(input, *expected)
    assert inductor.whole == ((1, 1) if policy == "opaque" else (0, 0))
    for one, other in zip(actual, expected):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert_same_bits(one, other)


def test_special_values_pass_through_formulas_that_were_taken_apart(device):
    """Infinite and NaN gradients of positive inputs, which the slope's gradient must not see."""
    inf, nan = float("inf"), float("nan")
    input = torch.tensor([[1.0, -2.0, 0.0, -0.0, inf, -inf, nan, 3.0]], device=device).T
    grad_output = torch.tensor([[inf, 2.0, 3.0, -3.0, nan, 1.0, 1.0, nan]], device=device).T
    for slope in (0.25, 0.0, -1.5, inf, nan):
        weight = torch.tensor([slope], device=device)
        torch_ext.inductor.set_compile("decompose")
        for rows in (slice(None), slice(0, 4), slice(4, 5)):
            torch._dynamo.reset()
            compiled = torch.compile(lambda *args: prelu(*args), backend=Inductor(), fullgraph=True)
            tensors, grad = (input[rows], weight), grad_output[rows]
            actual = _gradients(compiled, tensors, grad)
            for one, other in zip(actual, _gradients(prelu, tensors, grad)):
                assert_same_bits(one, other)


def test_16_bit_sums_do_not_pass_through_16_bits(mixed_dtypes, device):
    dtype, _ = mixed_dtypes
    torch_ext.inductor.set_compile("decompose")
    input = torch.full((4096, 2), -255.0, dtype=dtype, device=device)
    weight = torch.full((2,), 0.25, device=device)
    compiled = torch.compile(lambda *args: prelu(*args), backend=Inductor(), fullgraph=True)
    *_, grad_weight = _gradients(compiled, (input, weight), torch.full_like(input, 255.0))
    assert grad_weight.tolist() == [-255.0 * 255.0 * 4096] * 2


@pytest.mark.parametrize("policy", POLICIES)
def test_generated_code_has_the_results_of_eager(policy, device):
    """All the way: code is generated, compiled and run."""
    torch_ext.inductor.set_compile(policy)
    input = channels_last(integer_values((3, 32, 9, 7), torch.float32, device, seed=1))
    weight = finite_slopes((32,), torch.float32, device)
    grad_output = integer_values(input.shape, torch.float32, device, seed=2)
    compiled = torch.compile(lambda *args: prelu(*args), fullgraph=True)
    actual = _gradients(compiled, (input, weight), grad_output)
    expected = _gradients(prelu, (input, weight), grad_output)
    assert_both_branches(input, *expected)
    for one, other in zip(actual, expected):
        assert_same_bits(one, other)
        assert one.stride() == other.stride()


PRODUCERS = {
    # what comes before the operator, and how many tensors Inductor's code makes for it
    "transposed_view": (lambda x: x.transpose(1, 3), 0),
    "sliced_view": (lambda x: x[:, :, 1:], 0),
    "elementwise_of_a_transposed_view": (lambda x: x.transpose(1, 3) * 2, 1),
    "elementwise_of_channels_last": (lambda x: channels_last(x) * 2, 1),
}


@pytest.mark.parametrize("producer, made", PRODUCERS.values(), ids=PRODUCERS)
def test_no_copy_is_made_for_an_operator_left_whole(producer, made, device):
    torch_ext.inductor.set_compile("opaque")
    input = channels_last(random_values((4, 16, 14, 16), torch.float32, device))
    weight = finite_slopes((16,), torch.float32, device)

    def function(input, weight):
        return prelu(producer(input), weight)

    with torch.no_grad():
        actual, code = run_and_get_code(torch.compile(function, fullgraph=True), input, weight)
    expected = function(input, weight)
    assert_both_branches(input, expected)
    assert_same_bits(actual, expected)
    (text,) = code
    assert "torch_ext.prelu" in text
    assert len(re.findall(r"= empty_strided_\w+\(", text)) == made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_reduce_overhead_replays_a_training_step():
    module = nn.Sequential(torch_ext.PReLU(16), torch_ext.PReLU(16)).cuda()
    compiled = torch.compile(module, mode="reduce-overhead", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for seed in range(5):
        input = random_values(IMAGES, torch.float32, "cuda", seed=seed).requires_grad_()
        (actual,) = torch.autograd.grad(compiled(input).sum(), input)
        (expected,) = torch.autograd.grad(module(input).sum(), input)
        assert_same_bits(actual, expected)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0


# ---- The switch --------------------------------------------------------------------------------


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="policy must be one of .*'opaque'.* not 'never'"):
        torch_ext.inductor.set_compile("never")
    assert torch_ext.inductor.compile_policy() == "auto"


def test_the_policy_is_part_of_what_compiled_code_is_filed_under():
    uuids = set()
    for policy in POLICIES:
        torch_ext.inductor.set_compile(policy)
        uuids.add(torch._inductor.config.joint_custom_pre_pass.uuid())
    assert len(uuids) == len(POLICIES) and None not in uuids


def test_a_pass_that_was_there_before_still_runs():
    from torch._inductor.custom_graph_pass import CustomGraphPass

    from torch_ext._inductor_pass import with_prelu_pass

    class Theirs(CustomGraphPass):
        ran = 0

        def __call__(self, graph):
            Theirs.ran += 1

        def uuid(self):
            return "theirs"

    both = with_prelu_pass(Theirs())
    assert with_prelu_pass(both) is both  # nothing is done twice
    with torch._inductor.config.patch(joint_custom_pre_pass=both):
        assert _infer(torch_ext.PReLU(), torch.ones(5)) == (0, 0)
    assert Theirs.ran == 1
    assert both.uuid() not in (None, with_prelu_pass(None).uuid())
    assert with_prelu_pass(lambda graph: None).uuid() is None  # as Inductor: do not cache


FRESH = """
import torch, torch_ext
assert "torch._inductor" not in __import__("sys").modules
print(torch_ext.inductor.compile_policy())
from torch._inductor.utils import run_and_get_code
layer = torch.compile(torch_ext.PReLU())
with torch.no_grad():
    _, code = run_and_get_code(layer, torch.randn(10000))
print("torch_ext.prelu" in "".join(code))
"""


def test_the_environment_variable_and_the_first_import_of_inductor(tmp_path):
    """In a fresh process, where Inductor comes after us."""
    for value, expected in (("", ["auto", "False"]), ("opaque", ["opaque", "True"])):
        done = subprocess.run(
            [sys.executable, "-c", FRESH],
            env=os.environ | {"TORCH_EXT_COMPILE": value, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == expected, done.stderr[-2000:]
    done = subprocess.run(
        [sys.executable, "-c", "import torch_ext"],
        env=os.environ | {"TORCH_EXT_COMPILE": "never"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "TORCH_EXT_COMPILE must be one of" in done.stderr

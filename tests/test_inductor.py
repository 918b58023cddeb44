"""What the policy does to Inductor's graphs, and how it is chosen."""

from functools import partial

import pytest
import torch
from cases import random_values
from inductor_graphs import SMALL, Inductor, _as_it_was  # noqa: F401  (a fixture)
from installed import run_python
from reference import assert_both_branches
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import torch_ext
from torch_ext.inductor import POLICIES

pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
    ),
]

prelu = torch.ops.torch_ext.prelu


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
    torch_ext.inductor.set_compile("decompose")

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


@pytest.mark.parametrize("kept", (True, False))
def test_selective_checkpointing_still_finds_a_result_by_its_operator(kept, device):
    """Taken apart, what is kept is the result alone, none of the nodes on the way to it."""
    choice = CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.MUST_RECOMPUTE

    def policy(context, operator, *args, **kwargs):
        return choice if operator == prelu.default else CheckpointPolicy.PREFER_RECOMPUTE

    def region(input, weight):
        return prelu(input.sin(), weight).cos()

    def checkpointed(input, weight):
        contexts = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(region, input, weight, use_reentrant=False, context_fn=contexts)

    inductor = Inductor()
    compiled = torch.compile(checkpointed, backend=inductor, fullgraph=True)
    leaves = [
        random_values((4, 3, 5), torch.float64, device).requires_grad_(),
        random_values((3,), torch.float64, device, seed=1).requires_grad_(),
    ]
    actual = torch.autograd.grad(compiled(*leaves).sum(), leaves)
    expected = torch.autograd.grad(region(*leaves).sum(), leaves)
    assert_both_branches(leaves[0].sin(), *expected)
    for one, other in zip(actual, expected):
        torch.testing.assert_close(one, other)
    forward, _ = inductor.graphs
    [output] = forward.find_nodes(op="output")
    saved = [node for node in output.args[0][1:] if node.op == "call_function"]
    assert [node.target for node in saved] == [torch.ops.aten.where.self] * kept


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


def test_the_number_of_threads_is_not_for_it_would_be_part_of_every_graphs_key(threads):
    uuids = set()
    for count in (1, 2):
        threads(count)
        uuids.add(torch._inductor.config.joint_custom_pre_pass.uuid())
    assert len(uuids) == 1


def test_a_pass_that_was_there_before_still_runs():
    from torch._inductor.custom_graph_pass import CustomGraphPass

    from torch_ext._inductor_pass import PreluPass, with_pass

    class Theirs(CustomGraphPass):
        ran = 0

        def __call__(self, graph):
            Theirs.ran += 1

        def uuid(self):
            return "theirs"

    both = with_pass(PreluPass, Theirs())
    for again in (both, [both, Theirs()], (Theirs(), both)):
        assert with_pass(PreluPass, again) is again  # nothing is done twice, nothing lost
    with torch._inductor.config.patch(joint_custom_pre_pass=both):
        assert _infer(torch_ext.PReLU(), torch.ones(5)) == (0, 0)
    assert Theirs.ran == 1
    assert both.uuid() not in (None, with_pass(PreluPass, None).uuid())
    assert with_pass(PreluPass, lambda graph: None).uuid() is None  # as Inductor: do not cache


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
    variables = {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",  # not worth it for one kernel
    }
    for value, expected in (("", ["auto", "False"]), ("opaque", ["opaque", "True"])):
        done = run_python(FRESH, TORCH_EXT_COMPILE=value, **variables)
        assert done.stdout.split() == expected

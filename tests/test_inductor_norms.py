"""What the policy does with norms in front of PReLU: one operator in Inductor's graphs, or two."""

import pytest
import torch
from inductor_graphs import Inductor, _as_it_was  # noqa: F401  (a fixture)
from norm_pairs import assert_same, outcome, randomized, sample
from torch import nn

import torch_ext

pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
    ),
]

ops = torch.ops.torch_ext
SMALL = 2048  # elements, in these tests
IMAGES = (4, 16, 8, 8)  # more


@pytest.fixture(autouse=True)
def _small(_as_it_was, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch_ext.inductor, "SMALL_NORM", SMALL)


def whole(inductor):
    """How many pairs are one operator: forwards, of given statistics, backwards."""
    operators = (ops._norm_prelu, ops._norm_prelu_eval, ops._norm_prelu_backward)
    return tuple(map(inductor.count, operators))


def compiled_counts(model, x, grad=True):
    inductor = Inductor()
    compiled = torch.compile(model, backend=inductor, fullgraph=True)
    x = x.clone().requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        y = compiled(x)
    if grad:
        y.square().sum().backward()
    return whole(inductor)


def pair(norm=None):
    return nn.Sequential(norm or nn.BatchNorm2d(16), torch_ext.PReLU(16))


def conv():
    return nn.Conv2d(16, 16, 3, padding=1)


class Uses(nn.Module):
    """A pair whose norm's result, or input, has another use."""

    def __init__(self, use):
        super().__init__()
        self.norm, self.prelu, self.use = nn.BatchNorm2d(16), torch_ext.PReLU(16), use

    def forward(self, x):
        return self.use(self.norm, self.prelu, x)


def something_between(norm, prelu, x):
    z = norm(x)
    other = x + 1
    return prelu(z) + other


def gradients_between(norm, prelu, x):
    with torch.no_grad():
        z = norm(x)
    return prelu(z)


ONE = (1, 0, 1)
APART = (0, 0, 0)
TRAINED = {
    # name: (model, what becomes of it in training)
    "two_modules": (lambda: pair(), ONE),
    "between_convolutions": (lambda: nn.Sequential(conv(), *pair(), conv()), ONE),
    "one_module": (lambda: torch_ext.NormPReLU(nn.BatchNorm2d(16), nn.PReLU(16)), APART),
    "one_module_with_ours": (
        lambda: torch_ext.NormPReLU(nn.BatchNorm2d(16), torch_ext.PReLU(16)),
        ONE,
    ),
    "nothing_between": (
        lambda: nn.Sequential(
            nn.BatchNorm2d(16), nn.Identity(), nn.Dropout(0.0), torch_ext.PReLU()
        ),
        ONE,
    ),
    "dropout_between": (
        lambda: nn.Sequential(nn.BatchNorm2d(16), nn.Dropout(0.5), torch_ext.PReLU()),
        APART,
    ),
    "instance_norm": (lambda: pair(nn.InstanceNorm2d(16, affine=True)), ONE),
    "tracked_instance_norm": (lambda: pair(nn.InstanceNorm2d(16, track_running_stats=True)), ONE),
    "no_statistics": (lambda: pair(nn.BatchNorm2d(16, track_running_stats=False)), ONE),
    "frozen_norm": (lambda: pair(nn.BatchNorm2d(16).eval()), (0, 1, 1)),
    "computed_by_a_loop": (lambda: nn.Sequential(nn.Tanh(), *pair()), APART),
    "used_twice": (lambda: Uses(lambda norm, prelu, x: prelu(z := norm(x)) + z), APART),
    "something_between": (lambda: Uses(something_between), APART),
    "gradients_switched_between": (lambda: Uses(gradients_between), APART),
    "pytorchs_prelu": (lambda: nn.Sequential(nn.BatchNorm2d(16), nn.PReLU(16)), APART),
    "layer_norm": (lambda: pair(nn.LayerNorm(8)), APART),
}


@pytest.mark.parametrize("build, expected", TRAINED.values(), ids=TRAINED)
def test_in_training_a_pair_is_one_operator_if_its_input_is_in_memory(build, expected):
    assert compiled_counts(build(), torch.randn(IMAGES)) == expected


def test_small_tensors_and_inference_are_taken_apart():
    assert compiled_counts(pair(), torch.randn(2, 16, 8, 8)) == APART
    x = torch.randn(IMAGES)
    assert compiled_counts(pair().eval(), x, grad=False) == APART
    assert compiled_counts(pair(), x, grad=False) == (1, 0, 0)
    assert compiled_counts(pair(nn.InstanceNorm2d(16)).eval(), x, grad=False) == (1, 0, 0)


def function(training):
    slope, mean, var = torch.full((16,), 0.25), torch.zeros(16), torch.ones(16)
    return lambda x: torch_ext.batch_norm_prelu(x, slope, mean, var, training=training)


def test_a_call_of_the_function_is_treated_alike():
    x = torch.randn(IMAGES)
    assert compiled_counts(function(True), x) == ONE
    assert compiled_counts(function(False), x) == (0, 1, 1)
    assert compiled_counts(function(False), x, grad=False) == APART
    assert compiled_counts(lambda x: function(True)(x.tanh()), x) == APART
    assert compiled_counts(lambda x: torch_ext.instance_norm_prelu(x, torch.ones(1)), x) == ONE


def test_the_other_policies():
    x = torch.randn(IMAGES)
    torch_ext.inductor.set_compile("decompose")
    assert compiled_counts(function(True), x) == APART
    assert compiled_counts(pair(), x) == APART
    torch_ext.inductor.set_compile("opaque")
    torch._dynamo.reset()
    assert compiled_counts(function(False), x, grad=False) == (0, 1, 0)
    assert compiled_counts(pair(), x) == APART  # nobody asked for one operator


@pytest.mark.parametrize("policy", torch_ext.inductor.POLICIES)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_outputs_gradients_and_statistics_are_pytorchs(policy, norm, training):
    def make():
        torch.manual_seed(0)
        pairs = nn.Sequential(norm(8, affine=True, track_running_stats=True), nn.PReLU(8))
        return randomized(nn.Sequential(nn.Conv2d(8, 8, 3), pairs)).train(training)

    model, fused, x = make(), make(), sample(4, 8, 12, 12)
    torch_ext.fuse_norm_prelu(fused)
    torch_ext.inductor.set_compile(policy)
    inductor = Inductor()
    compiled = torch.compile(fused, backend=inductor, fullgraph=True)
    actual = {n.removeprefix("_orig_mod."): v for n, v in outcome(compiled, x).items()}
    assert_same(actual, outcome(model, x))
    assert any(whole(inductor)) == (policy == "auto")


def test_any_batch_is_compiled_once():
    model, x = nn.Sequential(conv(), *pair()), torch.randn(IMAGES)
    inductor = Inductor()
    compiled = torch.compile(model, backend=inductor, fullgraph=True)
    torch._dynamo.mark_dynamic(x, 0)
    for batch in (x, torch.randn(9, *IMAGES[1:])):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        y = compiled(batch)
        y.sum().backward()
        model.load_state_dict(before)
        torch.testing.assert_close(y, model(batch), rtol=1e-4, atol=1e-5)
    assert len(inductor.graphs) == 2  # one forward, one backward
    assert whole(inductor) == ONE


@pytest.mark.parametrize("inside", [True, False], ids=["all", "norm_outside"])
def test_autocast_gives_the_dtype_of_two_calls(inside):
    norm, prelu = nn.BatchNorm2d(16), torch_ext.PReLU(16)

    def all_inside(x):
        with torch.autocast("cpu", torch.bfloat16):
            return prelu(norm(x))

    def norm_outside(x):
        z = norm(x)
        with torch.autocast("cpu", torch.bfloat16):
            return prelu(z)

    run = all_inside if inside else norm_outside
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(IMAGES, dtype=dtype)
        y = torch.compile(run, backend=Inductor(), fullgraph=True)(x)
        assert y.dtype == run(x).dtype
        torch.testing.assert_close(y, run(x), rtol=2e-2, atol=2e-2)


def test_the_policy_is_part_of_the_key_and_both_passes_are_told_apart():
    uuids = set()
    for policy in torch_ext.inductor.POLICIES:
        torch_ext.inductor.set_compile(policy)
        uuids.add(torch._inductor.config.pre_grad_custom_pass.uuid())
        uuids.add(torch._inductor.config.joint_custom_pre_pass.uuid())
    assert len(uuids) == 2 * len(torch_ext.inductor.POLICIES)

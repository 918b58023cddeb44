"""parametrize_relu and slope_parameters: which function a model starts with, what becomes learnable,
and what is left alone and why."""

import copy

import pytest
import torch
from reference import assert_both_branches, assert_same_bits
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

import torch_ext
from torch_ext import parametrize_relu, slope_parameters

pytestmark = pytest.mark.contract


class Shifted(nn.ReLU):
    """A subclass that computes something else."""

    def forward(self, input):
        return super().forward(input - 1)


class Named(nn.LeakyReLU):
    """A subclass with another constructor and the inherited forward."""

    def __init__(self):
        super().__init__(0.3)


class Functional(nn.Module):
    """Every functional form, and one that is a module."""

    def __init__(self):
        super().__init__()
        self.module = nn.ReLU()
        self.function = F.relu

    def forward(self, x):
        x = self.module(self.function(x) + torch.relu(x - 1))
        return torch.relu_(F.leaky_relu(x - 1).relu() - F.leaky_relu_(x - 2).relu_())


class Branching(nn.Module):
    """What torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x) if x.sum() > 0 else self.relu(-x)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.ReLU()
        self.second = nn.LeakyReLU()

    def forward(self, a, b=None):
        return self.first(a) if b is None else self.first(a).sum() + self.second(input=b).sum()


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 2 * weight


def images(seed=0):
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def network():
    """Both rectifiers, per channel and after a linear layer, nested, with batch statistics."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 5, 3), nn.LeakyReLU(0.2), nn.Dropout()),
        nn.Flatten(),
        nn.Linear(80, 6),
        nn.LeakyReLU(-0.5),
        nn.Linear(6, 6),
    )


RELUS = ["2", "3.1", "6"]


def slopes_of(model):
    return {
        name: module.weight.tolist()
        for name, module in model.named_modules()
        if isinstance(module, torch_ext.PReLU)
    }


def reasons(report):
    """The skipped ones by name; each has one reason."""
    assert len(dict(report.skipped)) == len(report.skipped)
    return dict(report.skipped)


# ---- The function at the start -----------------------------------------------------------------


def test_every_rectifier_becomes_a_prelu_with_the_slope_it_had():
    model = network()
    report = parametrize_relu(model, images())
    assert (report.swapped, report.skipped) == (RELUS, [])
    assert all(type(model.get_submodule(name)) is torch_ext.PReLU for name in RELUS)
    assert [model.get_submodule(name).num_parameters for name in RELUS] == [4, 5, 6]
    expected = {"2": [0.0] * 4, "3.1": [0.2] * 5, "6": [-0.5] * 6}
    assert slopes_of(model) == {
        name: torch.tensor(slopes).tolist() for name, slopes in expected.items()
    }


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_model_computes_the_same_at_first(per_channel):
    stock, model = network().eval(), network().eval()
    parametrize_relu(model, images(), per_channel=per_channel)
    assert {len(slopes) for slopes in slopes_of(model).values()} == (
        {4, 5, 6} if per_channel else {1}
    )
    before_relu = stock[:2](images())
    assert_both_branches(before_relu, before_relu)
    assert torch.equal(model[:3](images()), stock[:3](images()))
    assert torch.equal(model(images()), stock(images()))


@pytest.mark.parametrize("negative_slope", [0.01, 0.2, -0.3, 1.7])
def test_leaky_relu_keeps_its_bits_in_every_dtype(dtype, negative_slope):
    input = (3 * torch.randn(64, 5, 33, dtype=torch.float64)).to(dtype)
    stock, model = nn.LeakyReLU(negative_slope), nn.LeakyReLU(negative_slope)
    parametrize_relu(model, input)
    assert model.weight.shape == (5,)
    assert_both_branches(input, model(input))
    assert_same_bits(model(input), stock(input))


def test_relu_keeps_its_values_in_every_dtype(dtype):
    input = (3 * torch.randn(64, 5, 33, dtype=torch.float64)).to(dtype)
    model = nn.ReLU()
    parametrize_relu(model, input)
    assert_both_branches(input, model(input))
    assert torch.equal(model(input), input.relu())


def test_slopes_are_float32_except_where_the_data_are_float64(dtype):
    width = torch.float64 if dtype == torch.float64 else torch.float32
    for arguments in ((images().to(dtype),), ()):
        model = network().to(dtype).eval()
        parametrize_relu(model, *arguments, per_channel=bool(arguments))
        assert {weight.dtype for weight in slope_parameters(model)} == {width}
        assert model(images().to(dtype)).dtype == dtype


def test_gradients_of_the_rest_stay_and_slopes_learn():
    stock, model = network().eval(), network().eval()
    parametrize_relu(model, images())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = model(images()).square().mean()
    loss.backward()
    stock(images()).square().mean().backward()
    for name, parameter in stock.named_parameters():
        assert parameter.grad.norm() > 0
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad)
    before = [weight.detach().clone() for weight in slope_parameters(model)]
    assert all(weight.grad.norm() > 0 for weight in slope_parameters(model))
    optimizer.step()
    assert all(
        not torch.equal(old, new) for old, new in zip(before, slope_parameters(model), strict=True)
    )
    assert model(images()).square().mean() < loss


def test_slopes_are_made_where_the_input_is():
    model = network().to("meta")
    parametrize_relu(model, images().to("meta"))
    assert {weight.device.type for weight in slope_parameters(model)} == {"meta"}


def test_without_an_example_slopes_are_made_where_the_model_is():
    model = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2, device="meta"), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())),
    )
    parametrize_relu(model, per_channel=False)
    assert model[0][1].weight.device.type == "meta"
    assert model[1][1][0].weight.device.type == "cpu"


# ---- One slope, or one per channel -------------------------------------------------------------


def test_one_slope_per_module_needs_no_example():
    model = network()
    assert parametrize_relu(model, per_channel=False).swapped == RELUS
    assert [len(slopes) for slopes in slopes_of(model).values()] == [1, 1, 1]


@pytest.mark.parametrize("shape", [(), (7,)])
def test_an_input_without_channels_has_one_slope(shape):
    model = nn.LeakyReLU()
    parametrize_relu(model, torch.randn(shape))
    assert model.weight.shape == (1,)
    model(torch.randn(shape))


def test_a_module_used_twice_has_one_slope_vector():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 4, 1), relu)
    report = parametrize_relu(model, images())
    assert (report.swapped, report.skipped) == (["1"], [])
    assert model[1] is model[3] is relu
    assert [weight.shape for weight in slope_parameters(model)] == [(4,)]
    model(images()).sum().backward()
    assert relu.weight.grad.norm() > 0


def test_a_module_used_with_different_channel_counts_is_left_alone():
    def shared():
        relu = nn.ReLU()
        return nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 10, 1), relu)

    model = shared()
    report = parametrize_relu(model, images())
    assert report.swapped == []
    assert "called with 4 and 10 channels" in reasons(report)["1"]
    assert type(model[1]) is nn.ReLU
    model = shared()
    assert parametrize_relu(model, images(), per_channel=False).swapped == ["1"]


def test_a_module_used_with_float64_and_another_dtype_is_left_alone():
    class Casting(nn.Sequential):
        def forward(self, x):
            return self[0](x) + self[0](x.double())

    report = parametrize_relu(Casting(nn.ReLU()), images())
    assert report.swapped == []
    assert "torch.float32 and torch.float64" in reasons(report)["0"]


def test_a_module_used_on_integers_is_left_alone():
    report = parametrize_relu(nn.ReLU(), torch.arange(-3, 3))
    assert report.swapped == []
    assert "torch.int64" in reasons(report)[""]


# ---- The example -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "example, reached",
    [
        (images(), ["first"]),
        ((images(),), ["first"]),
        ((images(), images()), ["first", "second"]),
        ({"a": images(), "b": images()}, ["first", "second"]),
    ],
    ids=["tensor", "tuple", "two", "dict"],
)
def test_the_example_is_a_tensor_a_tuple_or_a_dict(example, reached):
    model = TwoInputs()
    report = parametrize_relu(model, example)
    assert report.swapped == reached
    assert [len(slopes) for slopes in slopes_of(model).values()] == [3] * len(reached)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_module_that_the_example_does_not_reach_is_left_alone(per_channel):
    report = parametrize_relu(TwoInputs(), images(), per_channel=per_channel)
    assert report.swapped == ["first"]
    assert reasons(report)["second"] == "not reached by example_inputs"


class Counting(nn.Module):
    """Buffers that change in eval mode too: one in place, one by assignment."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", None)

    def forward(self, x):
        self.calls.add_(1)
        self.last = x.detach().mean()
        return x


def test_training_flags_and_buffers_stay():
    model = nn.Sequential(network(), Counting())
    model[0][3].eval()
    seen = []
    model[0][1].register_forward_hook(
        lambda module, *_: seen.append((module.training, torch.is_grad_enabled()))
    )
    flags = [module.training for module in model.modules()]
    assert {True, False} == set(flags)
    buffers = {name: (tensor, tensor.clone()) for name, tensor in model.named_buffers()}
    assert {"0.1.running_mean", "1.calls"} < set(buffers)
    assert parametrize_relu(model, images()).swapped == [f"0.{name}" for name in RELUS]
    assert seen == [(False, False)]
    assert [module.training for module in model.modules()] == flags
    assert {name for name, _ in model.named_buffers()} == set(buffers)
    for name, tensor in model.named_buffers():
        assert tensor is buffers[name][0]
        assert torch.equal(tensor, buffers[name][1])
    assert model[1].last is None


@pytest.mark.parametrize("pack", [lambda x: x, lambda x: (x,), lambda x: {"input": x}])
def test_the_example_itself_is_not_overwritten(pack):
    input = images()
    assert parametrize_relu(nn.Sequential(nn.ReLU(inplace=True)), pack(input)).swapped == ["0"]
    assert torch.equal(input, images())


def test_an_error_of_the_model_leaves_it_as_it_was():
    model = network()
    keys = list(model.state_dict())
    with pytest.raises(RuntimeError, match="expected input"):
        parametrize_relu(model, torch.randn(2, 7, 8, 8))
    assert type(model[2]) is nn.ReLU
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((network(),), {}, ValueError, "per_channel=True needs example_inputs"),
        (("model",), {"per_channel": False}, TypeError, "model must be a torch.nn.Module"),
        ((network(), [images()]), {}, TypeError, "example_inputs must be .* got list"),
        ((network(), images()), {"filter_fn": 3}, TypeError, "filter_fn must be callable"),
    ],
    ids=["no_example", "model", "example", "filter_fn"],
)
def test_wrong_arguments_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        parametrize_relu(*arguments, **options)


# ---- What stays --------------------------------------------------------------------------------


def test_modules_stay_the_same_objects_with_their_hooks():
    model = network()
    model[2].note = "kept"
    modules = dict(model.named_modules())
    seen = []
    model[2].register_forward_pre_hook(lambda *_: seen.append("before"))
    model[2].register_forward_hook(lambda *_: seen.append("after"))
    parametrize_relu(model, images())
    assert dict(model.named_modules()) == modules
    assert model[2].note == "kept"
    seen.clear()
    model(images())
    assert seen == ["before", "after"]


def test_the_attributes_are_those_of_a_prelu():
    model = nn.Sequential(nn.LeakyReLU(0.2, inplace=True))
    parametrize_relu(model, images())
    assert set(vars(model[0])) == set(vars(torch_ext.PReLU(3)))
    assert repr(model[0]) == repr(torch_ext.PReLU(3))
    trained = torch.nn.init.ones_(model[0].weight)
    model[0].reset_parameters()
    assert trained.tolist() == torch.tensor([0.2] * 3).tolist()


def test_the_state_dict_gains_the_slopes_and_loads():
    model, other = network(), network()
    before = set(model.state_dict())
    for one in (model, other):
        parametrize_relu(one, images())
    assert set(model.state_dict()) - before == {f"{name}.weight" for name in RELUS}
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([-1.0, 0.0, 0.5, 2.0]))
    other.load_state_dict(model.state_dict(), strict=True)
    assert slopes_of(other) == slopes_of(model)


def test_a_copy_learns_by_itself():
    model = network().eval()
    parametrize_relu(model, images())
    copied = copy.deepcopy(model)
    assert_same_bits(copied(images()), model(images()))
    with torch.no_grad():
        copied[2].weight.fill_(0.5)
    assert slopes_of(model)["2"] == [0.0] * 4
    assert not torch.equal(copied(images()), model(images()))


def test_the_model_itself_may_be_the_rectifier():
    model = nn.LeakyReLU(0.25)
    report = parametrize_relu(model, images())
    assert (report.swapped, report.skipped) == ([""], [])
    assert type(model) is torch_ext.PReLU
    assert model.weight.tolist() == [0.25] * 3


def test_a_second_call_finds_nothing_to_do():
    model = network()
    parametrize_relu(model, images())
    weights = slope_parameters(model)
    again = parametrize_relu(model, images())
    assert (again.swapped, again.skipped) == ([], [])
    assert all(a is b for a, b in zip(slope_parameters(model), weights, strict=True))


def test_a_compiled_model_is_converted_too():
    model = network().eval()
    compiled = torch.compile(model, backend="eager")
    expected = compiled(images())
    report = parametrize_relu(compiled, images())
    assert report.swapped == [f"_orig_mod.{name}" for name in RELUS]
    torch.compiler.reset()
    assert torch.equal(compiled(images()), expected)
    with torch.no_grad():
        model[2].weight.fill_(0.5)
    assert not torch.equal(compiled(images()), expected)
    torch.compiler.reset()


# ---- What is left alone, and what is lost ------------------------------------------------------


def test_a_dropped_inplace_is_reported():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.LeakyReLU(), nn.LeakyReLU(inplace=True))
    report = parametrize_relu(model, images())
    assert report.swapped == ["0", "1", "2"]
    assert set(reasons(report)) == {"0", "2"}
    assert "inplace=True: dropped" in str(report)
    input = images()
    model(input)
    assert torch.equal(input, images())


def test_filter_fn_is_asked_about_rectifiers_only():
    asked = []

    def choose(module, name):
        asked.append((name, type(module)))
        return name != "2"

    model = network()
    report = parametrize_relu(model, images(), filter_fn=choose)
    assert asked == [("2", nn.ReLU), ("3.1", nn.LeakyReLU), ("6", nn.LeakyReLU)]
    assert report.swapped == ["3.1", "6"]
    assert reasons(report) == {"2": "refused by filter_fn"}
    assert type(model[2]) is nn.ReLU


def test_subclasses_are_converted_if_they_inherit_forward():
    model = nn.Sequential(Named(), Shifted(), nn.ReLU6())
    expected = model(images())
    report = parametrize_relu(model, images())
    assert report.swapped == ["0"]
    assert reasons(report) == {"1": "Shifted has a forward of its own"}
    assert type(model[2]) is nn.ReLU6
    assert torch.equal(model(images()), expected)


def test_a_forward_replaced_on_the_instance_is_left_alone():
    model = nn.ReLU()
    model.forward = torch.sigmoid
    report = parametrize_relu(model, images())
    assert report.swapped == []
    assert "replaced on the instance" in reasons(report)[""]


@pytest.mark.parametrize("compiler", ["script", "trace"])
def test_compiled_modules_are_left_alone(compiler):
    inner = nn.Sequential()
    inner.add_module("relu", nn.ReLU(inplace=True))
    inner.add_module("leaky", nn.LeakyReLU())
    script = torch.jit.script(inner) if compiler == "script" else torch.jit.trace(inner, images())
    model = nn.Sequential(script, nn.ReLU())
    report = parametrize_relu(model, images())
    assert report.swapped == ["1"]
    assert set(reasons(report)) == {"0.relu", "0.leaky"}
    assert all("ScriptModule" in reason for reason in reasons(report).values())


def test_the_activation_of_a_transformer_layer_with_a_fast_path_is_left_alone():
    model = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True)
    report = parametrize_relu(model, torch.randn(2, 3, 8), per_channel=False)
    assert report.swapped == []
    assert "fast path" in reasons(report)["activation"]


def test_functional_uses_are_reported_with_the_module_around_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Functional(), nn.ReLU()))
    report = parametrize_relu(model, images())
    assert report.swapped == ["1.0.module", "1.1"]
    assert {name for name, _ in report.skipped} == {"1.0"}
    forms = ["F.relu", "torch.relu", "F.leaky_relu", "F.leaky_relu_"]
    forms += ["torch.relu_", "Tensor.relu", "Tensor.relu_"]
    assert sorted(reason for _, reason in report.skipped) == sorted(
        f"functional use of {form} in 1.0: not converted" for form in forms
    )


def test_a_model_that_cannot_be_traced_is_converted_and_the_report_says_so():
    model = Branching()
    report = parametrize_relu(model, images())
    assert report.swapped == ["relu"]
    assert "torch.fx cannot trace the model" in reasons(report)[""]


def test_looking_for_functional_uses_leaves_nothing_in_the_model():
    class Keeping(nn.Module):
        def forward(self, x):
            self.kept = x
            self.count = getattr(self, "count", 0) + 1
            return x.relu()

    model = nn.Sequential(Keeping(), nn.LeakyReLU())
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    report = parametrize_relu(model, per_channel=False)
    assert reasons(report) == {"0": "functional use of Tensor.relu in 0: not converted"}
    assert not hasattr(model[0], "kept")
    assert not hasattr(model[0], "count")
    assert seen == []
    parametrize_relu(model, images())


# ---- The slopes --------------------------------------------------------------------------------


def test_slope_parameters_lists_each_slope_once_in_order():
    shared = nn.PReLU(2)
    model = nn.Sequential(torch_ext.PReLU(3), nn.Linear(2, 2), shared, nn.Sequential(shared))
    model.append(nn.PReLU())
    model[4].weight = model[0].weight
    model.append(nn.PReLU().requires_grad_(False))
    expected = [model[0].weight, shared.weight, model[5].weight]
    listed = slope_parameters(model)
    assert all(a is b for a, b in zip(listed, expected, strict=True))
    assert slope_parameters(nn.Linear(2, 2)) == []


def test_slope_parameters_lists_what_a_slope_is_computed_from():
    parametrized, pruned = nn.PReLU(3), torch_ext.PReLU(4)
    parametrize.register_parametrization(parametrized, "weight", Doubled())
    prune.l1_unstructured(pruned, "weight", 1)
    model = nn.Sequential(parametrized, pruned)
    listed = slope_parameters(model)
    expected = [parametrized.parametrizations.weight.original, pruned.weight_orig]
    assert all(a is b for a, b in zip(listed, expected, strict=True))


def test_slopes_form_an_optimizer_group_without_weight_decay():
    model = network()
    parametrize_relu(model, images())
    slopes = slope_parameters(model)
    listed = set(slopes)
    others = [parameter for parameter in model.parameters() if parameter not in listed]
    assert len(others) == len(list(network().parameters()))
    optimizer = torch.optim.AdamW(
        [{"params": others}, {"params": slopes, "weight_decay": 0.0}], weight_decay=0.5
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = slopes_of(model), model[0].weight.detach().clone()
    optimizer.step()
    assert slopes_of(model) == before[0]
    assert not torch.equal(model[0].weight, before[1])


def test_slope_parameters_refuses_what_is_no_model():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got list"):
        slope_parameters([nn.PReLU()])

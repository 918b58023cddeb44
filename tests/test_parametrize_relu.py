"""parametrize_relu: which function a model starts with, what becomes learnable and what stays."""

import copy

import pytest
import torch
from rectifiers import RELUS, images, network, slopes_of
from reference import assert_both_branches, assert_same_bits
from torch import nn

import torch_ext
from torch_ext import parametrize_relu, slope_parameters

pytestmark = pytest.mark.contract


# ---- The function at the start -------------------------------------------------------------------


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


# ---- What stays ----------------------------------------------------------------------------------


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

"""The example_inputs of parametrize_relu, what they say of the slopes, and other arguments."""

import pytest
import torch
from rectifiers import RELUS, images, network, reasons, slopes_of
from torch import nn

from torch_ext import parametrize_relu, slope_parameters

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("on_device")]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.ReLU()
        self.second = nn.LeakyReLU()

    def forward(self, a, b=None):
        return self.first(a) if b is None else self.first(a).sum() + self.second(input=b).sum()


# ---- One slope, or one per channel ---------------------------------------------------------------


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


# ---- The example ---------------------------------------------------------------------------------


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


def test_lazy_modules_are_converted_with_what_they_are_shown():
    model = nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyLinear(5), nn.ReLU()
    )
    assert parametrize_relu(model, images()).swapped == ["2", "4"]
    assert [len(slopes) for slopes in slopes_of(model).values()] == [4, 4]
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert model(images()).shape == (2, 4, 6, 5)


def test_a_model_made_in_inference_mode_can_be_converted():
    with torch.inference_mode():
        model = network().eval()
        expected = model(images())
    assert parametrize_relu(model, images()).swapped == RELUS
    with torch.inference_mode():
        assert torch.equal(model(images()), expected)


class DataParallel(nn.Module):
    """What nn.DataParallel does: it calls copies of the module it holds, on several devices."""

    def __init__(self, module, devices):
        super().__init__()
        self.module = module
        self.devices = devices

    def forward(self, x):
        replicas = [self.module._replicate_for_data_parallel() for _ in self.devices]
        return [replica(x.to(device)) for replica, device in zip(replicas, self.devices)]


def test_copies_on_other_devices_get_their_slopes_from_the_module():
    module = nn.ReLU()
    model = nn.Sequential(nn.BatchNorm2d(3), DataParallel(module, [torch.device("meta"), "cpu"]))
    model.cpu()
    assert parametrize_relu(model, images().cpu()).swapped == ["1.module"]
    assert module.weight.shape == (3,)
    assert module.weight.device.type == "cpu"


@pytest.mark.parametrize("pack", [lambda x: x, lambda x: (x,), lambda x: {"input": x}])
def test_the_example_itself_is_not_overwritten(pack):
    input = images()
    assert parametrize_relu(nn.Sequential(nn.ReLU(inplace=True)), pack(input)).swapped == ["0"]
    assert torch.equal(input, images())


def test_statistics_that_a_forward_updates_in_spite_of_eval_mode_stay():
    class Updating(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.act = nn.BatchNorm2d(3), nn.ReLU()

        def forward(self, x):
            mean, var = self.norm.running_mean, self.norm.running_var
            return self.act(nn.functional.batch_norm(x, mean, var, training=True))

    model, x = Updating(), images()[:, :1].repeat(1, 3, 1, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parametrize_relu(model, x)
    assert before and all(torch.equal(model.state_dict()[name], t) for name, t in before.items())


def test_what_is_nested_in_the_example_and_the_random_state_stay():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, given):
            return self.act(given["parts"][0]) + torch.rand(())

    x, state = images(), torch.get_rng_state()
    before = x.clone()
    parametrize_relu(Nested(), ({"parts": [x]},))
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)


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

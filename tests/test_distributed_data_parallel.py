"""DistributedDataParallel: each process has a part of the batch; together they train as one."""

import pytest
import torch
from exact_network import checked_batch, loss, network, optimizer, train_alone
from processes import device, own_part
from reference import assert_same_bits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torch_ext

pytestmark = pytest.mark.contract

pytest_plugins = "process_fixtures"


def train(model, input, factors, steps=1):
    """The same as train_alone, of this process's part. DDP takes the mean over the processes."""
    sgd = optimizer(model)
    parts = torch.distributed.get_world_size()
    for _ in range(steps):
        sgd.zero_grad()
        (loss(model(own_part(input)), own_part(factors)) * parts).backward()
        sgd.step()
    return model


def assert_trained_alike(model, alone):
    """Gradients of the last step and parameters after it."""
    expected = dict(alone.named_parameters())
    assert {name for name, _ in model.named_parameters()} == expected.keys()
    for name, parameter in model.named_parameters():
        if expected[name].grad is None:
            assert parameter.grad is None, name
        else:
            assert expected[name].grad.abs().max() > 0, "the comparison is vacuous"
            assert_same_bits(parameter.grad, expected[name].grad)
        assert_same_bits(parameter, expected[name])


def check_gradients():
    input, factors = checked_batch(device())
    alone = train_alone(network(nn.PReLU).to(device()), input, factors)
    wrapped = DistributedDataParallel(network().to(device()))
    assert_trained_alike(train(wrapped, input, factors).module, alone)


def test_gradients_are_those_of_stock_in_one_process(processes):
    processes.run(check_gradients)


def check_swap():
    """DDP notes parameters and hooks when it wraps; a swap afterwards changes neither."""
    input, factors = checked_batch(device())
    wrapped = DistributedDataParallel(network(nn.PReLU).to(device()))
    train(wrapped, input, factors)
    slopes = wrapped.module[1].weight
    report = torch_ext.replace_prelu(wrapped)
    assert report.swapped == ["module.1", "module.3"] and not report.skipped
    assert wrapped.module[1].weight is slopes
    wrapped.module.load_state_dict(network().state_dict())
    alone = train_alone(network(nn.PReLU).to(device()), input, factors)
    assert_trained_alike(train(wrapped, input, factors).module, alone)
    torch_ext.restore_prelu(wrapped)
    assert type(wrapped.module[1]) is nn.PReLU
    wrapped.module.load_state_dict(network().state_dict())
    assert_trained_alike(train(wrapped, input, factors).module, alone)


def test_a_wrapped_model_is_swapped_and_restored(two_processes):
    two_processes.run(check_swap)


def check_new_slopes():
    wrapped = DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).to(device()))
    model = nn.Sequential(wrapped, nn.ReLU())
    report = torch_ext.parametrize_relu(model, torch.randn(2, 4, device=device()))
    assert report.swapped == ["1"]
    [(name, reason)] = report.skipped
    assert name == "0.module.1"
    assert reason.startswith(
        "inside DistributedDataParallel, which would not synchronise its slope"
    )


def test_a_wrapped_model_gets_no_slopes_that_nothing_synchronises(two_processes):
    two_processes.run(check_new_slopes)


def check_frozen():
    input, factors = checked_batch(device())
    models = [network().to(device()) for _ in range(2)]
    for model in models:
        model[1].requires_grad_(False)
    wrapped = DistributedDataParallel(models[0])
    assert_trained_alike(
        train(wrapped, input, factors).module, train_alone(models[1], input, factors)
    )


def test_frozen_slopes_take_no_part(two_processes):
    two_processes.run(check_frozen)


def check_mixed_precision():
    """A 16-bit model with float32 slopes: slopes' gradients are reduced in float32."""
    input, factors = checked_batch(device())

    def mixed():
        model = network().to(device(), torch.bfloat16)
        model[1].float(), model[3].float()
        return model

    # What is summed over a process's samples is rounded to 16 bits there: so it is here.
    input, factors = input.bfloat16(), factors.bfloat16()
    parts = torch.distributed.get_world_size()
    alone = [mixed() for _ in range(parts)]
    for model, x, g in zip(alone, input.chunk(parts), factors.chunk(parts)):
        (loss(model(x), g) * parts).backward()
    wrapped = DistributedDataParallel(mixed())
    (loss(wrapped(own_part(input)), own_part(factors)) * parts).backward()
    for layer in (1, 3):
        gradient = wrapped.module[layer].weight.grad
        assert gradient.dtype == torch.float32
        assert_same_bits(gradient, sum(model[layer].weight.grad for model in alone) / parts)
        assert gradient.bfloat16().float().ne(gradient).any(), "16 bits would have done"


def test_float32_slopes_of_a_16_bit_model_are_reduced_in_float32(two_processes):
    two_processes.run(check_mixed_precision)


def check_several_steps():
    input, factors = checked_batch(device())
    wrapped = DistributedDataParallel(network().to(device(), torch.float64))
    train(wrapped, input.double(), factors.double(), steps=4)
    alone = network().to(device(), torch.float64)
    train_alone(alone, input.double(), factors.double(), steps=4)
    for parameter, expected in zip(wrapped.module.parameters(), alone.parameters()):
        torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-12)
    everywhere = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, wrapped.module[1].weight.tolist())
    assert all(slopes == everywhere[0] for slopes in everywhere)


def test_processes_stay_in_step(two_processes):
    two_processes.run(check_several_steps)

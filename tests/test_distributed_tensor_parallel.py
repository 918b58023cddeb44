"""Tensor parallelism: channels and their slopes are split over processes, alone and under FSDP2."""

import pytest
from exact_network import SAMPLES, batch, features, loss, optimizer, train_alone
from processes import device, mesh
from reference import assert_both_branches, assert_same_bits
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import torch_ext

pytestmark = pytest.mark.contract

pytest_plugins = "process_fixtures"


def shard_slopes(name, module, over):
    slopes = distribute_tensor(module.weight, over, [Shard(0)])
    module.register_parameter("weight", nn.Parameter(slopes))


def parallel(model, over, partition=shard_slopes):
    """Outputs of the first layer stay split by channel until the last layer sums over them."""
    plan = {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()}
    parallelize_module(model, over, plan)
    distribute_module(model[1], over, partition)
    return model


def data():
    input, factors = (tensor.to(device()) for tensor in batch((SAMPLES, 12), outputs=4))
    assert_both_branches(features().to(device())[0](input))
    return input, factors


def assert_trained_alike(model, alone):
    expected = dict(alone.named_parameters())
    assert {name for name, _ in model.named_parameters()} == expected.keys()
    for name, parameter in model.named_parameters():
        assert expected[name].grad.abs().max() > 0, "the comparison is vacuous"
        assert_same_bits(parameter.grad.full_tensor(), expected[name].grad)
        assert_same_bits(parameter.full_tensor(), expected[name])


def check_tensor_parallel():
    input, factors = data()
    alone = train_alone(features(nn.PReLU).to(device()), input, factors)
    model = parallel(features().to(device()), mesh())
    sgd = optimizer(model)
    with CommDebugMode() as communication:
        output = model(input)
    # The sum of the last layer, and nothing for ours.
    assert communication.get_total_counts() == 1
    assert_same_bits(output, features(nn.PReLU).to(device())(input))
    loss(output, factors).backward()
    sgd.step()
    assert model[1].weight.placements == model[1].weight.grad.placements == (Shard(0),)
    assert_trained_alike(model, alone)


def test_channels_and_their_slopes_are_split(processes):
    processes.run(check_tensor_parallel)


def check_one_slope():
    input, factors = data()

    def one_slope(prelu):
        model = features(prelu).to(device())
        model[1] = prelu(device=device())
        return model

    alone = train_alone(one_slope(nn.PReLU), input, factors)
    model = parallel(one_slope(torch_ext.PReLU), mesh(), None)
    sgd = optimizer(model)
    loss(model(input), factors).backward()
    sgd.step()
    assert_trained_alike(model, alone)


def test_one_slope_is_replicated_and_its_gradient_summed_over_channels(two_processes):
    two_processes.run(check_one_slope)


def check_with_fsdp():
    input, factors = data()
    alone = train_alone(features(nn.PReLU).to(device()), input, factors)
    over = mesh(2, 2, names=("data", "tensor"))
    model = parallel(features().to(device()), over["tensor"])
    for layer in model:
        fully_shard(layer, mesh=over["data"])
    fully_shard(model, mesh=over["data"])
    sgd = optimizer(model)
    rank = over["data"].get_local_rank()
    (loss(model(input.chunk(2)[rank]), factors.chunk(2)[rank]) * 2).backward()
    sgd.step()
    assert_trained_alike(model, alone)


def test_fsdp_over_one_dimension_of_the_mesh_and_channels_over_the_other(four_processes):
    four_processes.run(check_with_fsdp)

"""FSDP2: parameters are sharded at rest; the operator meets whole tensors and trains as alone."""

import pytest
import torch
from exact_network import checked_batch, loss, network, optimizer, train_alone
from processes import device, mesh, own_part
from recorder import Recorder
from reference import assert_same_bits
from swaps import Doubled
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

import torch_ext

pytestmark = pytest.mark.contract

pytest_plugins = "process_fixtures"

OURS = torch.ops.torch_ext.prelu.default


def sharded(model, policy=None, slopes_policy=None):
    """Each PReLU by itself (an all-gather of its own), the rest together."""
    for layer in model:
        if isinstance(layer, nn.PReLU):
            fully_shard(layer, mesh=mesh(), mp_policy=slopes_policy or MixedPrecisionPolicy())
    return fully_shard(model, mesh=mesh(), mp_policy=policy or MixedPrecisionPolicy())


def train(model, input, factors, sgd=None):
    """One step of this process's part. FSDP takes the mean over the processes."""
    sgd = sgd or optimizer(model)
    sgd.zero_grad()
    parts = torch.distributed.get_world_size()
    (loss(model(own_part(input)), own_part(factors)) * parts).backward()
    sgd.step()
    return model


def assert_trained_alike(model, alone):
    """Gradients and parameters after one step."""
    expected = dict(alone.named_parameters())
    assert {name for name, _ in model.named_parameters()} == expected.keys()
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        assert expected[name].grad.abs().max() > 0, "the comparison is vacuous"
        assert_same_bits(parameter.grad.full_tensor(), expected[name].grad)
        assert_same_bits(parameter.full_tensor(), expected[name])


def check_training():
    input, factors = checked_batch(device())
    alone = train_alone(network(nn.PReLU).to(device()), input, factors)
    assert_trained_alike(train(sharded(network().to(device())), input, factors), alone)


def test_a_step_is_that_of_one_process_with_one_slope_and_with_many(processes):
    processes.run(check_training)


def check_swap():
    """fully_shard gives each module a class of its own, which the swap must extend."""
    input, factors = checked_batch(device())
    model = sharded(network(nn.PReLU).to(device()))
    slopes = model[1].weight
    report = torch_ext.replace_prelu(model)
    assert report.swapped == ["1", "3"] and not report.skipped
    assert isinstance(model[1], torch_ext.PReLU) and model[1].weight is slopes
    with Recorder() as recorder:
        alone = train_alone(network(nn.PReLU).to(device()), input, factors)
        assert OURS not in recorder.seen
        assert_trained_alike(train(model, input, factors), alone)
        assert OURS in recorder.seen
    assert torch_ext.restore_prelu(model).swapped == ["1", "3"]
    assert not isinstance(model[1], torch_ext.PReLU)


class Named(nn.PReLU):
    """A subclass of a user's."""


def check_restored():
    """Layers that were ours before they were sharded: made so, swapped, and swapped subclasses."""
    input, factors = checked_batch(device())
    model = network(nn.PReLU).to(device())
    model[1].__class__ = Named
    torch_ext.replace_prelu(model[1])
    model[3].__class__ = torch_ext.PReLU
    model = sharded(model)
    slopes = model[1].weight
    with Recorder() as recorder:
        assert torch_ext.restore_prelu(model).swapped == ["1", "3"]
        assert not any(isinstance(layer, torch_ext.PReLU) for layer in model)
        assert isinstance(model[1], Named) and model[1].weight is slopes
        assert all(isinstance(model[layer], FSDPModule) for layer in (1, 3))
        alone = train_alone(network(nn.PReLU).to(device()), input, factors)
        assert_trained_alike(train(model, input, factors), alone)
        assert OURS not in recorder.seen
    stock = [type(layer) for layer in model]
    assert torch_ext.replace_prelu(model).swapped == ["1", "3"]
    assert all(isinstance(model[layer], torch_ext.PReLU) for layer in (1, 3))
    assert torch_ext.restore_prelu(model).swapped == ["1", "3"]
    assert [type(layer) for layer in model] == stock


def test_layers_that_were_sharded_as_ours_are_restored(two_processes):
    two_processes.run(check_restored)


def check_parametrized():
    """A class of parametrize's under one of FSDP's."""
    model = nn.Sequential(nn.PReLU(4), nn.PReLU(4))
    for layer in model:
        parametrize.register_parametrization(layer, "weight", Doubled())
        fully_shard(layer, mesh=mesh())
    model.to(device())
    classes = [type(layer) for layer in model]
    input = torch.randn(2, 4, 3, device=device())
    expected = model(input)
    assert torch_ext.replace_prelu(model).swapped == ["0", "1"]
    with Recorder() as recorder:
        assert_same_bits(model(input), expected)
        assert recorder.seen.count(OURS) == 2
    assert torch_ext.restore_prelu(model).swapped == ["0", "1"]
    assert [type(layer) for layer in model] == classes


def test_parametrized_layers_that_were_sharded_are_swapped_and_restored(two_processes):
    two_processes.run(check_parametrized)


def check_one_class():
    """torch.compile compiles alike layers once; a class for each would make it start anew."""
    model = sharded(nn.Sequential(*(nn.PReLU() for _ in range(3))).to(device()))
    torch_ext.replace_prelu(model)
    assert isinstance(model[0], torch_ext.PReLU)
    assert len({type(layer) for layer in model}) == 1


def test_sharded_layers_of_one_class_stay_so(two_processes):
    two_processes.run(check_one_class)


def check_new_slopes(whole):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.ReLU()).to(device())
    fully_shard(model if whole else model[1], mesh=mesh())
    report = torch_ext.parametrize_relu(model, torch.randn(2, 4, device=device()))
    skipped = [name for name, reason in report.skipped if reason.startswith("inside FSDP")]
    assert skipped == (["1", "2"] if whole else ["1"])
    assert report.swapped == ([] if whole else ["2"])


@pytest.mark.parametrize("whole", [True, False], ids=["model", "layer"])
def test_a_sharded_model_gets_no_slopes_that_nothing_synchronises(whole, two_processes):
    two_processes.run(check_new_slopes, whole)


def test_a_sharded_model_is_swapped_and_restored(two_processes):
    two_processes.run(check_swap)


# ---- Mixed precision ---------------------------------------------------------------------------


def check_mixed_precision(float32_slopes):
    input, factors = checked_batch(device())
    parts = torch.distributed.get_world_size()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = sharded(network().to(device()), policy, None if float32_slopes else policy)
    (loss(model(own_part(input)), own_part(factors)) * parts).backward()

    # A process rounds its gradients to the parameters' dtype, then they are averaged in float32.
    alone = []
    for x, g in zip(input.bfloat16().chunk(parts), factors.chunk(parts)):
        replica = network().to(device(), torch.bfloat16)
        if float32_slopes:
            replica[1].float(), replica[3].float()
        (loss(replica(x), g) * parts).backward()
        alone.append(dict(replica.named_parameters()))
    for name, parameter in model.named_parameters():
        mean = sum(replica[name].grad.float() for replica in alone) / parts
        assert mean.abs().max() > 0, "the comparison is vacuous"
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert_same_bits(parameter.grad.full_tensor(), mean)
    if float32_slopes:
        slopes = alone[0]["1.weight"].grad
        assert slopes.bfloat16().float().ne(slopes).any(), "16 bits would have done"


@pytest.mark.parametrize("float32_slopes", [False, True], ids=["bfloat16", "float32_slopes"])
def test_mixed_precision_rounds_as_one_process_does(float32_slopes, two_processes):
    two_processes.run(check_mixed_precision, float32_slopes)


# ---- State -------------------------------------------------------------------------------------


def check_state(folder):
    """Model and optimizer, saved in shards; and the model gathered, for one process."""
    input, factors = checked_batch(device())
    model = sharded(network().to(device()))
    sgd = optimizer(model)
    train(model, input, factors, sgd)
    trained = [parameter.full_tensor().clone() for parameter in model.parameters()]
    gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if torch.distributed.get_rank() == 0:
        stock = network(nn.PReLU)
        stock.load_state_dict(gathered, strict=True)
        for loaded, expected in zip(stock.to(device()).parameters(), trained):
            assert_same_bits(loaded, expected)

    checkpoint.save(_state(model, sgd), checkpoint_id=folder)
    resumed = sharded(network(nn.PReLU).to(device()))
    torch_ext.replace_prelu(resumed)
    resumed_sgd = optimizer(resumed)
    state = _state(resumed, resumed_sgd)
    checkpoint.load(state, checkpoint_id=folder)
    set_state_dict(
        resumed,
        resumed_sgd,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    for loaded, expected in zip(resumed.parameters(), trained):
        assert_same_bits(loaded.full_tensor(), expected)

    train(model, input, factors, sgd)
    train(resumed, input, factors, resumed_sgd)
    for loaded, expected, before in zip(resumed.parameters(), model.parameters(), trained):
        assert_same_bits(loaded.full_tensor(), expected.full_tensor())
        assert loaded.full_tensor().ne(before).any(), "it did not train"


def _state(model, sgd):
    model_state, optimizer_state = get_state_dict(model, sgd)
    return {"model": model_state, "optimizer": optimizer_state}


def test_state_saved_by_ours_is_loaded_by_stock_and_training_goes_on(two_processes, tmp_path):
    two_processes.run(check_state, tmp_path)

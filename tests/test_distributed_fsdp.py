"""FSDP2: parameters are sharded at rest; the operator meets whole tensors and trains as alone."""

import pytest
import torch
from exact_network import checked_batch, loss, network, optimizer, train_alone
from processes import device, mesh, own_part
from reference import assert_same_bits
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import torch_ext

pytestmark = pytest.mark.contract

pytest_plugins = "process_fixtures"


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


def check_training(prelu):
    input, factors = checked_batch(device())
    alone = train_alone(network(nn.PReLU).to(device()), input, factors)
    assert_trained_alike(train(sharded(network(prelu).to(device())), input, factors), alone)


@pytest.mark.parametrize("prelu", [torch_ext.PReLU, nn.PReLU], ids=["ours", "stock"])
def test_a_step_is_that_of_one_process_with_one_slope_and_with_many(prelu, processes):
    processes.run(check_training, prelu)


def check_swap():
    """fully_shard gives each module a class of its own, which the swap must extend."""
    input, factors = checked_batch(device())
    model = sharded(network(nn.PReLU).to(device()))
    slopes = model[1].weight
    report = torch_ext.replace_prelu(model)
    assert report.swapped == ["1", "3"] and not report.skipped
    assert isinstance(model[1], torch_ext.PReLU) and model[1].weight is slopes
    with OperatorCalls() as calls:
        alone = train_alone(network(nn.PReLU).to(device()), input, factors)
        assert not calls
        assert_trained_alike(train(model, input, factors), alone)
        assert calls
    assert torch_ext.restore_prelu(model).swapped == ["1", "3"]
    assert not isinstance(model[1], torch_ext.PReLU)


class OperatorCalls(TorchDispatchMode):
    """Whether our operator ran."""

    def __enter__(self):
        self.seen = []
        super().__enter__()
        return self.seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.torch_ext.prelu.default:
            self.seen.append(function)
        return function(*args, **(kwargs or {}))


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

"""Changed norms in processes that train together: DDP fuses, FSDP does not, and both train as one does."""

import copy

import pytest
import torch
from norm_pairs import calls_of, randomized, sample
from processes import device, mesh, own_part
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torch_ext

pytestmark = pytest.mark.contract

pytest_plugins = "process_fixtures"


class Embedding(nn.Module):
    """As face recognition has them: pairs by attributes, and a norm whose result is the output."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.prelu = nn.PReLU(8)
        self.fc = nn.Linear(8 * 16, 6)
        self.features = nn.BatchNorm1d(6)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv(x)))
        return self.features(self.fc(x.flatten(1)))


def network():
    return randomized(Embedding()).to(device())


def train(model, x, steps=2):
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        sgd.zero_grad()
        y = model(x)
        (
            y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
        ).sum().backward()
        sgd.step()


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assert_alike(model, expected):
    expected = expected.state_dict()
    changes = network().state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(full(value), full(expected[name]), rtol=1e-9, atol=1e-11)
        assert not torch.equal(full(value), changes[name]), name


def check_ddp(changed_first, find_unused):
    """Against the same wrapper around PyTorch's modules."""
    x = sample(8, 3, 6, 6).to(device())
    plain = DistributedDataParallel(network(), find_unused_parameters=find_unused)
    inner = network()
    if changed_first:
        torch_ext.fuse_norm_prelu(inner)
    fused = DistributedDataParallel(inner, find_unused_parameters=find_unused)
    if not changed_first:
        torch_ext.fuse_norm_prelu(fused)
    train(plain, own_part(x))
    made, _ = calls_of(lambda: train(fused, own_part(x)))
    assert made == 2
    assert_alike(fused.module, plain.module)
    torch_ext.restore_prelu(fused)
    assert type(inner.bn1) is nn.BatchNorm2d


@pytest.mark.parametrize("find_unused", [False, True], ids=["", "find_unused_parameters"])
@pytest.mark.parametrize("changed_first", [True, False], ids=["before", "after"])
def test_ddp(two_processes, changed_first, find_unused):
    two_processes.run(check_ddp, changed_first, find_unused)


def check_sync_batch_norm():
    x = sample(8, 3, 6, 6).to(device())
    plain, fused = network(), network()
    torch_ext.fuse_norm_prelu(fused)
    plain, fused = map(nn.SyncBatchNorm.convert_sync_batchnorm, (plain, fused))
    if device() == "cpu":  # PyTorch's SyncBatchNorm trains on GPUs only
        plain, fused = plain.eval(), fused.eval()
    made, y = calls_of(lambda: fused(own_part(x)))
    assert made == 0
    torch.testing.assert_close(y, plain(own_part(x)))


def test_sync_batch_norm(processes):
    processes.run(check_sync_batch_norm)


PLACES = {
    "model": lambda model: [model],
    "layers": lambda model: [model.bn1, model.prelu, model.features, model],
    "norm": lambda model: [model.bn1, model],
    "PReLU": lambda model: [model.prelu, model],
}


def check_fsdp(place, changed_first):
    x = sample(8, 3, 6, 6).to(device())
    plain, fused = network(), network()
    if changed_first:
        torch_ext.fuse_norm_prelu(fused)
    for model in (plain, fused):
        for part in PLACES[place](model):
            fully_shard(part, mesh=mesh())
    classes = [type(module) for module in fused.modules()]
    if not changed_first:
        report = torch_ext.fuse_norm_prelu(fused)
        assert dict(report.skipped)["bn1"] == "FSDP takes its Parameters away after its forward"
    train(plain, own_part(x))
    made, _ = calls_of(lambda: train(fused, own_part(x)))
    assert made == 0
    assert_alike(fused, plain)
    torch_ext.restore_prelu(fused)
    assert isinstance(fused.bn1, nn.BatchNorm2d)
    assert not hasattr(fused.bn1, "_torch_ext_norm")
    if not changed_first:
        assert [type(module) for module in fused.modules()] == classes
    made, _ = calls_of(lambda: train(fused, own_part(x), steps=1))
    assert made == 0


@pytest.mark.parametrize("changed_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_fsdp(two_processes, place, changed_first):
    two_processes.run(check_fsdp, place, changed_first)


def check_block_that_ends_with_a_norm():
    """Its Parameters are gone when the PReLU outside of it gets the result."""

    def model():
        block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        return randomized(nn.Sequential(block, nn.PReLU(8)))

    x = sample(4, 3, 6, 6).to(device())
    plain, fused = model().to(device()), model().to(device())
    torch_ext.fuse_norm_prelu(fused)
    fully_shard(fused[0], mesh=mesh())
    fully_shard(fused, mesh=mesh())
    torch.testing.assert_close(fused(x), copy.deepcopy(plain)(x))


def test_fsdp_of_a_block_that_ends_with_a_norm(two_processes):
    two_processes.run(check_block_that_ends_with_a_norm)

"""Norms in front of PReLU under activation checkpointing: gradients, and statistics as often as PyTorch's."""

import copy
import types

import pytest
import torch
from deferred import X, both
from norm_pairs import assert_same, calls_of, changed, outcome, pair, randomized
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import torch_ext

pytestmark = pytest.mark.contract


class Checkpointed(nn.Module):
    """Parts of a Sequential, each of them checkpointed."""

    def __init__(self, reentrant, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.reentrant = reentrant

    def forward(self, x):
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=self.reentrant)
        return x


def conv():
    return nn.Conv2d(8, 8, 3, padding=1)


PARTS = {
    "the pair": lambda: [nn.Sequential(nn.BatchNorm2d(8), nn.PReLU(8))],
    "pair and more": lambda: [nn.Sequential(conv(), nn.BatchNorm2d(8), nn.PReLU(8), conv())],
    "the pair at the end": lambda: [nn.Sequential(conv(), nn.BatchNorm2d(8), nn.PReLU(8))],
    "cut between the two": lambda: [nn.Sequential(conv(), nn.BatchNorm2d(8)), nn.PReLU(8), conv()],
    "each alone": lambda: [conv(), nn.BatchNorm2d(8), nn.PReLU(8)],
    "the norm outside": lambda: [conv(), nn.Sequential(nn.PReLU(8), conv(), nn.BatchNorm2d(8))],
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_checkpointing_updates_statistics_as_pytorch_does(parts, reentrant, training):
    torch.manual_seed(0)
    model = randomized(Checkpointed(reentrant, *parts())).train(training)
    fused = copy.deepcopy(model)
    torch_ext.fuse_norm_prelu(fused)
    expected, actual = outcome(model, X), outcome(fused, X)
    assert_same(actual, expected)
    if training:
        [count] = [value for name, value in expected.items() if "num_batches" in name]
        assert count >= 2 + 2 * reentrant  # two steps, each with a recomputation


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_a_norm_whose_result_is_not_used_when_the_recomputation_stops(reentrant):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv, self.prelu = nn.BatchNorm2d(8), conv(), nn.PReLU(8)

        def part(self, x):
            z = self.norm(x)
            y = self.conv(x)
            return self.prelu(y) if z is None else y

        def forward(self, x):
            return self.prelu(checkpoint(self.part, x * 2, use_reentrant=reentrant))

    torch.manual_seed(0)
    model = randomized(Unused())
    fused = copy.deepcopy(model)
    torch_ext.fuse_norm_prelu(fused)
    assert_same(outcome(fused, X), outcome(model, X))


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_a_norms_result_given_to_a_checkpoint(reentrant):
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.prelu = nn.BatchNorm2d(8), nn.PReLU(8)

        def forward(self, x):
            return checkpoint(self.prelu, self.norm(x), use_reentrant=reentrant)

    model = randomized(Given())
    fused = copy.deepcopy(model)
    torch_ext.fuse_norm_prelu(fused)
    if reentrant:
        with pytest.raises(RuntimeError, match="filter_fn"):
            fused(X)
        fused = copy.deepcopy(model)
        report = torch_ext.fuse_norm_prelu(fused, filter_fn=lambda _, name: name != "norm")
        assert report.swapped == []
    assert_same(outcome(fused, X), outcome(model, X))


OTHER_WAYS = {
    "in a closure": lambda m, x, z: checkpoint(
        lambda x: m.prelu(x * 2) + z * 3, x, use_reentrant=False
    ),
    "by keyword": lambda m, x, z: checkpoint(
        lambda x, z: m.prelu(x * 2) + z * 3, x, z=z, use_reentrant=False
    ),
    "in an object": lambda m, x, z: checkpoint(
        lambda x, o: m.prelu(x * 2) + o.z * 3, x, types.SimpleNamespace(z=z), use_reentrant=False
    ),
}


@pytest.mark.parametrize("way", OTHER_WAYS.values(), ids=OTHER_WAYS)
def test_a_norms_result_that_a_checkpoint_gets_another_way(way):
    model, fused = both(lambda m, x: way(m, x, m.norm(x)))
    assert_same(outcome(fused, X), outcome(model, X))


def test_checkpoint_sequential_and_saved_tensors_on_the_cpu():
    model = nn.Sequential(*pair(), conv(), *pair(), conv()).double()
    fused = changed(model)

    class Segments(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            x = checkpoint_sequential(self.inner, 2, x, use_reentrant=False)
            with torch.autograd.graph.save_on_cpu():
                return self.inner(x)

    assert_same(outcome(Segments(fused), X), outcome(Segments(model), X))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("last", [True, False], ids=["last", "not last"])
def test_the_layer_is_checkpointed_like_the_two_modules(last, reentrant, training):
    def part(layer):
        return nn.Sequential(conv(), layer, *([] if last else [conv()]))

    torch.manual_seed(0)
    model = part(nn.Sequential(nn.BatchNorm2d(8), nn.PReLU(8)))
    fused = copy.deepcopy(model)
    fused[1] = torch_ext.NormPReLU(*fused[1])
    model, fused = (
        randomized(Checkpointed(reentrant, each)).train(training) for each in (model, fused)
    )
    expected, (made, actual) = outcome(model, X), calls_of(lambda: outcome(fused, X))
    assert made == 4
    for old, new in (("1.norm.", "1.0."), ("1.prelu.", "1.1.")):
        actual = {name.replace(old, new): value for name, value in actual.items()}
    assert_same(actual, expected)

"""Forwards that keep something, and what tracing them must leave alone."""

import collections
import copy
import random
import threading

import pytest
import torch
from swaps import Shifted, Verbatim, reason_of, subclass
from torch import nn
from torch.nn import functional as F

from torch_ext import replace_prelu

pytestmark = pytest.mark.contract


def counting(self, x):
    self.count += 1
    return F.prelu(x, self.weight)


def keeping(self, x):
    self.last = x
    return F.prelu(x, self.weight)


def listing(self, x):
    self.log.append(1)
    return F.prelu(x, self.weight)


def nested(self, x):
    self.meter.calls += 1
    return F.prelu(x, self.weight)


def counting_in_the_class(self, x):
    type(self).count += 1
    return F.prelu(x, self.weight)


def counting_in_a_tensor(self, x):
    self.count.add_(1)
    return F.prelu(x, self.weight)


class Meter:
    def __init__(self):
        self.calls = 0


KEEPERS = {
    "number": (subclass(counting, count=int), "changes self.count in training"),
    "input": (subclass(keeping), "changes self.last in training"),
    "list": (subclass(listing, log=list), "changes self.log in training"),
    "deque": (subclass(listing, log=collections.deque), "changes self.log in training"),
    "object": (subclass(nested, meter=Meter), "changes self.meter in training"),
    "tensor": (subclass(counting_in_a_tensor, count=lambda: torch.zeros(())), "calls add_ in"),
    "buffer": (
        subclass(counting_in_a_tensor, count=lambda: nn.Buffer(torch.zeros(()))),
        "computes add_, prelu in training",
    ),
    "new buffer": (
        subclass(counting, count=lambda: nn.Buffer(torch.zeros(()))),
        "changes self._buffers in training",
    ),
}


@pytest.mark.parametrize("cls, finding", KEEPERS.values(), ids=KEEPERS.keys())
def test_a_forward_that_keeps_something_is_skipped_and_has_kept_nothing(cls, finding):
    assert reason_of(cls).startswith(finding)
    model = nn.Sequential(cls())
    before = copy.deepcopy(vars(model[0]))
    replace_prelu(model)
    after = vars(model[0])
    assert set(after) == set(before)
    for name in {"count", "log"} & set(after):
        assert after[name] == before[name]
    assert [*map(float, model[0].buffers())] == [0.0] * len(list(model[0].buffers()))
    assert "meter" not in after or after["meter"].calls == 0


def test_a_forward_that_counts_in_its_class_is_skipped():
    cls = subclass(counting_in_the_class)
    cls.count = 0
    assert "changes Own.count in training mode" == reason_of(cls)


def test_tracing_leaves_the_module_its_hooks_and_random_numbers_alone():
    class Drawing(Verbatim):
        """Whose copies draw random numbers."""

        def __deepcopy__(self, memo):
            copied = type(self)(3)
            torch.rand(4)
            random.random()
            return copied

    model = nn.Sequential(Drawing(3), Shifted(3)).eval()
    model[0].train()
    seen = []
    for module in model:
        module.register_forward_pre_hook(lambda *_: seen.append("forward"))
        module.register_state_dict_pre_hook(lambda *_: seen.append("state_dict"))
    attributes = [dict(vars(module)) for module in model]
    weights = [(module.weight, module.weight._version) for module in model]
    states = torch.get_rng_state(), random.getstate()
    report = replace_prelu(model)
    assert (len(report.swapped), len(report.skipped)) == (1, 1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert seen == []
    for module, named, (weight, version) in zip(model, attributes, weights, strict=True):
        assert vars(module).keys() == named.keys()
        assert all(vars(module)[name] is value for name, value in named.items())
        assert module.weight is weight
        assert weight._version == version
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


def test_hooks_are_not_copied():
    """Their owner may be as large as a trainer, or refuse to be copied."""

    class Trainer:
        def __deepcopy__(self, memo):
            raise AssertionError

        def note(self, *_):
            pass

    model = Verbatim(3)
    model.register_forward_hook(Trainer().note)
    assert replace_prelu(model).swapped == [""]


def test_a_module_that_cannot_be_copied_is_skipped_with_the_reason():
    cls = subclass(Verbatim.forward, lock=threading.Lock)
    assert "cannot pickle '_thread.lock' object" in reason_of(cls)

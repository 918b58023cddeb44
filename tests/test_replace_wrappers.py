"""What was made before a swap and holds the model: optimizers, averages, hooks, wrappers.

DistributedDataParallel and FSDP have files of their own.
"""

import pytest
import torch
from reference import assert_same_bits
from swaps import PRELUS, calls, images, network
from torch import nn
from torch.optim import swa_utils

from torch_ext import replace_prelu, restore_prelu

pytestmark = pytest.mark.contract

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, foreach=True),
}


def train(model, optimizer, step):
    optimizer.zero_grad()
    model(images(step).double()).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_an_optimizer_with_state_goes_on_through_a_swap_and_back(make):
    stock, model = network().double(), network().double()
    optimizers = [make(m.parameters()) for m in (stock, model)]
    before = model[1].weight.detach().clone()
    for step in range(6):
        if step == 2:
            assert len(optimizers[1].state) == len(list(model.parameters()))
            replace_prelu(model)
        if step == 4:
            restore_prelu(model)
        assert calls(model, images().double()) == [("fused" if step in (2, 3) else "stock")] * 3
        train(stock, optimizers[0], step)
        train(model, optimizers[1], step)
    assert not torch.equal(model[1].weight, before)
    for expected, actual in zip(stock.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)
    optimizers[1].load_state_dict(optimizers[0].state_dict())


def test_a_moving_average_made_before_the_swap_keeps_following():
    networks = [network().double() for _ in range(2)]
    averages = [
        swa_utils.AveragedModel(m, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5))
        for m in networks
    ]
    replace_prelu(networks[1])
    start = networks[1][1].weight.detach().clone()
    for step in range(3):
        for model, average in zip(networks, averages, strict=True):
            train(model, torch.optim.SGD(model.parameters(), lr=0.1), step)
            average.update_parameters(model)
    assert not torch.equal(averages[1].module[1].weight, start)
    assert not torch.equal(averages[1].module[1].weight, networks[1][1].weight)
    for expected, actual in zip(*(average.parameters() for average in averages), strict=True):
        torch.testing.assert_close(actual, expected)
    expected = averages[1](images().double())
    assert replace_prelu(averages[1]).swapped == [f"module.{name}" for name in PRELUS]
    assert calls(averages[1], images().double()) == ["fused"] * 3
    assert_same_bits(averages[1](images().double()), expected)


def test_a_wrapper_made_before_the_swap_runs_the_swapped_model():
    model = network()
    wrapped = nn.DataParallel(model, device_ids=[])
    functional = dict(model.named_parameters())
    expected = model(images())
    replace_prelu(model)
    assert calls(wrapped) == ["fused"] * 3
    assert_same_bits(wrapped(images()), expected)
    called = torch.func.functional_call(model, functional, (images(),))
    assert_same_bits(called, expected)


def test_hooks_of_every_kind_stay_and_can_be_removed():
    model = network()
    seen = []

    def note(kind):
        return lambda *_: seen.append(kind)

    handles = [
        model[1].register_forward_pre_hook(note("before")),
        model[1].register_forward_hook(note("after"), always_call=True),
        model[1].register_full_backward_pre_hook(note("backward before")),
        model[1].register_full_backward_hook(note("backward")),
        model[1].weight.register_hook(note("weight")),
        model[1].weight.register_post_accumulate_grad_hook(note("accumulated")),
        model[1].register_state_dict_pre_hook(note("saving")),
        model[1].register_load_state_dict_post_hook(note("loaded")),
    ]

    def run():
        seen.clear()
        model(images()).sum().backward()
        model.load_state_dict(model.state_dict())
        return seen

    expected = list(run())
    assert len(expected) == len(handles)
    for swap in (replace_prelu, restore_prelu):
        swap(model)
        assert run() == expected
    replace_prelu(model)
    for handle in handles:
        handle.remove()
    assert run() == []


def test_hooks_that_change_what_passes_still_do():
    stock, model = network(), network()
    for one in (stock, model):
        one[1].register_forward_pre_hook(lambda _, args: (args[0] - 0.5,))
        one[1].register_forward_hook(lambda _, args, kwargs, output: 2 * output, with_kwargs=True)
        one[1].register_full_backward_hook(lambda _, grad_input, grad_output: (3 * grad_input[0],))
    replace_prelu(model)
    outputs = stock(images()), model(images())
    assert not torch.equal(outputs[0], network()(images()))
    assert_same_bits(outputs[1], outputs[0])
    for output in outputs:
        output.square().sum().backward()
    expected = stock[0].weight.grad
    assert expected.norm() > 0
    torch.testing.assert_close(model[0].weight.grad, expected, rtol=1e-5, atol=1e-5)

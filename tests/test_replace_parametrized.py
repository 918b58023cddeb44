"""Swaps of modules whose weight torch.nn.utils computes from other tensors."""

import copy

import pytest
import torch
from reference import assert_same_bits
from swaps import Activation, Doubled, Verbatim, calls, images, parametrized_model
from torch import nn
from torch.nn.utils import parametrize, prune

import torch_ext
from torch_ext import replace_prelu, restore_prelu

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("cls", [nn.PReLU, Activation, Verbatim])
def test_a_parametrized_module_keeps_its_parametrization(cls):
    model = parametrized_model(cls)
    parametrized_class, expected = type(model[0]), model(images())
    original = model[0].parametrizations.weight.original
    assert replace_prelu(model).swapped == ["0"]
    assert parametrize.is_parametrized(model[0], "weight")
    assert isinstance(model[0], cls)
    assert isinstance(model[0], torch_ext.PReLU)
    assert calls(model) == ["fused"]
    assert_same_bits(model(images()), expected)
    model(images()).sum().backward()
    assert original.grad.norm() > 0
    assert restore_prelu(model).swapped == ["0"]
    assert type(model[0]) is parametrized_class
    assert calls(model) == ["stock"]
    assert restore_prelu(model).swapped == []
    assert replace_prelu(model).swapped == ["0"]


@pytest.mark.parametrize("cls", [nn.PReLU, Activation])
def test_a_parametrization_can_be_removed_while_swapped(cls):
    model = parametrized_model(cls)
    expected = model(images())
    replace_prelu(model)
    parametrize.remove_parametrizations(model[0], "weight")
    assert not parametrize.is_parametrized(model[0])
    assert calls(model) == ["fused"]
    assert_same_bits(model(images()), expected)
    restore_prelu(model)
    assert type(model[0]) is cls
    assert_same_bits(model(images()), expected)


@pytest.mark.parametrize("cls", [nn.PReLU, Activation])
def test_a_parametrization_can_be_added_while_swapped(cls):
    model = nn.Sequential(cls(3))
    replace_prelu(model)
    parametrize.register_parametrization(model[0], "weight", Doubled())
    expected = model(images())
    assert replace_prelu(model).swapped == []
    assert restore_prelu(model).swapped == ["0"]
    assert calls(model) == ["stock"]
    assert_same_bits(model(images()), expected)
    assert parametrize.type_before_parametrizations(model[0]) is cls
    for change in (replace_prelu, restore_prelu):  # of a class that restoring has made
        assert change(model).swapped == ["0"]
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is cls


def test_a_second_parametrized_tensor_added_while_swapped_survives_restoring():
    model = parametrized_model()
    replace_prelu(model)
    model[0].register_buffer("scale", torch.ones(()))
    parametrize.register_parametrization(model[0], "scale", Doubled())
    restore_prelu(model)
    assert calls(model) == ["stock"]
    assert (model[0].scale, model[0].parametrizations.scale.original) == (1, 0.5)
    parametrize.remove_parametrizations(model[0], "weight")
    parametrize.remove_parametrizations(model[0], "scale")
    assert type(model[0]) is nn.PReLU


def test_a_swap_leaves_deep_copies_of_a_parametrized_module_alone():
    """They share one class, which parametrize made."""
    model = parametrized_model()
    twin = copy.deepcopy(model)
    expected = twin(images())
    assert type(twin[0]) is type(model[0])
    replace_prelu(model)
    assert not isinstance(twin[0], torch_ext.PReLU)
    parametrize.remove_parametrizations(model[0], "weight")
    assert calls(twin) == ["stock"]
    assert_same_bits(twin(images()), expected)


def test_a_parametrized_module_can_be_copied_while_swapped():
    model = parametrized_model()
    replace_prelu(model)
    twin = copy.deepcopy(model)
    assert calls(twin) == ["fused"]
    restore_prelu(twin)
    assert calls(twin) == ["stock"]
    assert calls(model) == ["fused"]


@pytest.mark.parametrize("cls", [nn.PReLU, Verbatim])
def test_a_pruned_module_stays_pruned(cls):
    model = nn.Sequential(cls(3))
    prune.custom_from_mask(model[0], "weight", torch.tensor([1.0, 0.0, 1.0]))
    expected = model(images())
    assert replace_prelu(model).swapped == ["0"]
    assert calls(model) == ["fused"]
    assert_same_bits(model(images()), expected)
    model(images()).sum().backward()
    assert [value != 0 for value in model[0].weight_orig.grad.tolist()] == [True, False, True]
    restore_prelu(model)
    assert_same_bits(model(images()), expected)

"""slope_parameters: the slopes of a model, for an optimizer."""

import pytest
import torch
from rectifiers import images, network, slopes_of
from swaps import Doubled
from torch import nn
from torch.nn.utils import parametrize, prune

import torch_ext
from torch_ext import parametrize_relu, slope_parameters

pytestmark = pytest.mark.contract


def test_slope_parameters_lists_each_slope_once_in_order():
    shared = nn.PReLU(2)
    model = nn.Sequential(torch_ext.PReLU(3), nn.Linear(2, 2), shared, nn.Sequential(shared))
    model.append(nn.PReLU())
    model[4].weight = model[0].weight
    model.append(nn.PReLU().requires_grad_(False))
    expected = [model[0].weight, shared.weight, model[5].weight]
    listed = slope_parameters(model)
    assert all(a is b for a, b in zip(listed, expected, strict=True))
    assert slope_parameters(nn.Linear(2, 2)) == []


def test_slope_parameters_lists_what_a_slope_is_computed_from():
    parametrized, pruned = nn.PReLU(3), torch_ext.PReLU(4)
    parametrize.register_parametrization(parametrized, "weight", Doubled())
    prune.l1_unstructured(pruned, "weight", 1)
    model = nn.Sequential(parametrized, pruned)
    listed = slope_parameters(model)
    expected = [parametrized.parametrizations.weight.original, pruned.weight_orig]
    assert all(a is b for a, b in zip(listed, expected, strict=True))


def test_slopes_form_an_optimizer_group_without_weight_decay():
    model = network()
    parametrize_relu(model, images())
    slopes = slope_parameters(model)
    listed = set(slopes)
    others = [parameter for parameter in model.parameters() if parameter not in listed]
    assert len(others) == len(list(network().parameters()))
    optimizer = torch.optim.AdamW(
        [{"params": others}, {"params": slopes, "weight_decay": 0.0}], weight_decay=0.5
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = slopes_of(model), model[0].weight.detach().clone()
    optimizer.step()
    assert slopes_of(model) == before[0]
    assert not torch.equal(model[0].weight, before[1])


def test_slope_parameters_refuses_what_is_no_model():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got list"):
        slope_parameters([nn.PReLU()])

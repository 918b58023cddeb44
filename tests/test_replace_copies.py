"""Copies and pickles of models, made before a swap, between and afterwards."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from reference import assert_same_bits
from swaps import Activation, Verbatim, WithMixin, calls, images, model_of_all_kinds, network
from torch import nn

import torch_ext
from torch_ext import replace_prelu, restore_prelu

pytestmark = pytest.mark.contract


def test_deep_copies_are_swapped_too_and_independent():
    model = model_of_all_kinds()
    replace_prelu(model)
    twin = copy.deepcopy(model)
    assert [type(module) for module in twin] == [type(module) for module in model]
    assert calls(twin) == ["fused"] * 4
    assert twin[1].weight is not model[1].weight
    assert twin[1].origin == "library"
    restore_prelu(twin)
    assert type(twin[1]) is Activation
    assert calls(model) == ["fused"] * 4


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_a_swapped_model_comes_back_swapped(protocol):
    model = model_of_all_kinds()
    replace_prelu(model)
    back = pickle.loads(pickle.dumps(model, protocol))
    assert [type(module) for module in back] == [type(module) for module in model]
    assert back[1].origin == "library"
    assert calls(back) == ["fused"] * 4
    assert_same_bits(back(images()), model(images()))
    restore_prelu(back)
    assert [type(module) for module in back] == [nn.PReLU, Activation, WithMixin, Verbatim]


def saved_and_loaded(model, **options):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, **options)


def test_a_whole_model_survives_torch_save():
    model = model_of_all_kinds()
    expected = model(images())
    replace_prelu(model)
    back = saved_and_loaded(model, weights_only=False)
    assert [type(module) for module in back] == [type(module) for module in model]
    assert calls(back) == ["fused"] * 4
    assert_same_bits(back(images()), expected)


def test_a_swapped_model_loads_with_weights_only_where_its_classes_are_allowed():
    model = network()
    replace_prelu(model)
    allowed = [set, torch_ext.PReLU, *map(type, model.modules())]
    with torch.serialization.safe_globals(allowed):
        back = saved_and_loaded(model, weights_only=True)
    assert calls(back) == ["fused"] * 3
    assert_same_bits(back(images()), model(images()))


def test_a_model_saved_before_the_swap_loads_and_can_be_swapped():
    model = model_of_all_kinds()
    back = saved_and_loaded(model, weights_only=False)
    assert replace_prelu(back).swapped == ["0", "1", "2", "3"]
    assert calls(back) == ["fused"] * 4
    assert_same_bits(back(images()), model(images()))


def test_a_copy_made_before_the_swap_stays_stock():
    model = model_of_all_kinds()
    twin = copy.deepcopy(model)
    replace_prelu(model)
    assert calls(twin) == ["stock"] * 4
    assert_same_bits(twin(images()), model(images()))


def test_a_pickle_made_after_restoring_loads_without_torch_ext(tmp_path):
    model = network()
    replace_prelu(model)
    restore_prelu(model)
    torch.save(model, tmp_path / "model.pt")
    program = (
        "import sys; sys.modules['torch_ext'] = None\n"
        "import torch\n"
        f"print(torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)[1])"
    )
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert printed.strip() == "PReLU(num_parameters=4)"

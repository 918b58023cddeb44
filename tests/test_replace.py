"""replace_prelu and restore_prelu: what a swap changes in a model, and all that it must not."""

import io

import pytest
import torch
from installed import run_python
from reference import assert_both_branches, assert_same_bits
from swaps import PRELUS, Shifted, Verbatim, calls, gradients, images, network
from torch import nn

import torch_ext
from torch_ext import replace_prelu, restore_prelu

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("on_device")]

# ---- What is swapped, and back -------------------------------------------------------------------


def test_every_prelu_is_swapped_and_named_in_the_report():
    model = network()
    assert calls(model) == ["stock"] * 3
    report = replace_prelu(model)
    assert report.swapped == PRELUS
    assert report.skipped == []
    assert calls(model) == ["fused"] * 3
    assert all(type(model.get_submodule(name)) is torch_ext.PReLU for name in PRELUS)


def test_restoring_gives_the_stock_classes_back():
    model = network()
    replace_prelu(model)
    report = restore_prelu(model)
    assert report.swapped == PRELUS
    assert report.skipped == []
    assert calls(model) == ["stock"] * 3
    assert all(type(model.get_submodule(name)) is nn.PReLU for name in PRELUS)


def test_outputs_keep_their_bits_and_gradients_their_values():
    stock, model = network(), network()
    replace_prelu(model)
    output = model(images())
    assert_both_branches(output, output)
    assert_same_bits(output, stock(images()))
    expected = gradients(stock)
    for name, gradient in gradients(model).items():
        assert gradient.norm() > 0
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)


def test_a_second_swap_finds_nothing_to_do():
    model = network()
    replace_prelu(model)
    again = replace_prelu(model)
    assert (again.swapped, again.skipped) == ([], [])
    restore_prelu(model)
    again = restore_prelu(model)
    assert (again.swapped, again.skipped) == ([], [])


def test_the_model_itself_may_be_the_prelu():
    model = nn.PReLU(3)
    assert replace_prelu(model).swapped == [""]
    assert calls(model) == ["fused"]
    assert restore_prelu(model).swapped == [""]
    assert type(model) is nn.PReLU


def test_a_module_used_twice_is_reported_once_by_its_first_name():
    activation = nn.PReLU()
    model = nn.Sequential(activation, nn.Linear(8, 8), activation)
    assert replace_prelu(model).swapped == ["0"]
    assert calls(model) == ["fused"] * 2
    assert restore_prelu(model).swapped == ["0"]


def test_a_module_made_as_torch_ext_prelu_restores_to_stock():
    model = nn.Sequential(torch_ext.PReLU(3))
    assert replace_prelu(model).swapped == []
    assert restore_prelu(model).swapped == ["0"]
    assert type(model[0]) is nn.PReLU


def test_a_class_written_on_top_of_torch_ext_prelu_has_no_stock_class_to_return_to():
    class Mine(torch_ext.PReLU):
        pass

    model = nn.Sequential(Mine(3))
    assert replace_prelu(model).skipped == []
    report = restore_prelu(model)
    assert report.skipped == [("0", "its class was written on top of torch_ext.PReLU")]
    assert report.classes == {"0": "test_replace.Mine"}
    assert type(model[0]) is Mine


# ---- What stays the same object ------------------------------------------------------------------


def test_modules_parameters_and_their_settings_stay_the_same_objects():
    model = network().half()
    model[1].weight.requires_grad_(False)
    model[1].note = "kept"
    model.eval()
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    for swap in (replace_prelu, restore_prelu):
        swap(model)
        assert all(module is modules[name] for name, module in model.named_modules())
        assert all(weight is parameters[name] for name, weight in model.named_parameters())
        assert not model[1].training
        assert not model[1].weight.requires_grad
        assert model[1].weight.dtype == torch.float16
        assert model[1].note == "kept"


def test_a_swap_does_not_show_in_the_printed_model():
    model = network()
    before = repr(model)
    replace_prelu(model)
    assert repr(model) == before


def test_tied_slopes_stay_tied():
    model = nn.Sequential(nn.PReLU(3), nn.Conv2d(3, 3, 1), nn.PReLU(3))
    model[2].weight = model[0].weight
    replace_prelu(model)
    assert model[2].weight is model[0].weight
    assert len(list(model.parameters())) == 3
    fused = gradients(model)
    restore_prelu(model)
    assert model[2].weight is model[0].weight
    stock = gradients(model)
    assert stock["0.weight"].norm() > 0
    torch.testing.assert_close(fused, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source, target", [("stock", "fused"), ("fused", "stock")])
def test_state_dicts_load_strictly_in_both_directions(source, target):
    models = {"stock": network(), "fused": network()}
    replace_prelu(models["fused"])
    with torch.no_grad():
        models[source][1].weight.copy_(torch.tensor([-1.0, 0.0, 0.5, 2.0]))
    buffer = io.BytesIO()
    torch.save(models[source].state_dict(), buffer)
    buffer.seek(0)
    models[target].load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert list(models[target].state_dict()) == list(models[source].state_dict())
    assert_same_bits(models[target](images()), models[source](images()))


# ---- filter_fn, bad arguments --------------------------------------------------------------------


def test_filter_fn_is_asked_about_each_prelu_and_its_refusals_are_reported():
    asked = []

    def filter_fn(module, name):
        asked.append((module, name))
        return module.num_parameters > 1

    model = network()
    report = replace_prelu(model, filter_fn)
    assert asked == [(model.get_submodule(name), name) for name in PRELUS]
    assert report.swapped == ["1", "5"]
    assert report.skipped == [("2.1", "refused by filter_fn")]
    assert calls(model) == ["fused", "stock", "fused"]


def test_a_filter_fn_that_raises_changes_nothing():
    def filter_fn(_, name):
        if name == "5":
            raise ZeroDivisionError
        return True

    model = network()
    with pytest.raises(ZeroDivisionError):
        replace_prelu(model, filter_fn)
    assert calls(model) == ["stock"] * 3


@pytest.mark.parametrize("swap", [replace_prelu, restore_prelu])
@pytest.mark.parametrize("model", [None, [nn.PReLU()], nn.PReLU, torch.zeros(1)])
def test_a_model_that_is_no_module_is_a_type_error_that_names_it(swap, model):
    with pytest.raises(TypeError, match="model must be a torch"):
        swap(model)


@pytest.mark.parametrize("also", [Verbatim, [nn.ReLU], ["Verbatim"], [Verbatim()], 3])
def test_a_wrong_also_is_a_type_error_that_names_it_and_changes_nothing(also):
    model = nn.Sequential(nn.PReLU(), Shifted())
    with pytest.raises(TypeError, match="also must hold subclasses"):
        replace_prelu(model, also=also)
    assert [type(module) for module in model] == [nn.PReLU, Shifted]


def test_a_filter_fn_that_cannot_be_called_is_a_type_error_that_names_it():
    model = network()
    with pytest.raises(TypeError, match="filter_fn must be callable"):
        replace_prelu(model, "1")
    assert calls(model) == ["stock"] * 3


# ---- Names that a program has bound to something else --------------------------------------------


def test_where_a_program_has_rebound_nn_prelu_pytorchs_layers_are_known(monkeypatch):
    pytorchs = nn.PReLU
    model = nn.Sequential(pytorchs(3), nn.Sequential(pytorchs()))
    monkeypatch.setattr(nn, "PReLU", torch_ext.PReLU)
    model.append(nn.PReLU(3))
    assert len(torch_ext.slope_parameters(model)) == 3
    assert replace_prelu(model).swapped == ["0", "1.0"]
    assert calls(model) == ["fused"] * 3
    assert restore_prelu(model).swapped == ["0", "1.0", "2"]
    assert [type(model[0]), type(model[1][0]), type(model[2])] == [pytorchs] * 3
    assert restore_prelu(model).swapped == []


def stderr_of(program, code=0):
    return run_python("import sys, torch\nfrom torch import nn\n" + program, code=code).stderr


def test_names_that_were_rebound_before_the_import_are_noticed():
    said = stderr_of("""
pytorchs = nn.PReLU
class Theirs(pytorchs):
    pass
nn.PReLU = Theirs
import torch_ext
model = nn.Sequential(pytorchs(), nn.PReLU())
assert torch_ext.replace_prelu(model).swapped == ["0", "1"]
assert torch_ext.restore_prelu(model).swapped == ["0", "1"]
assert [type(layer) for layer in model] == [pytorchs, Theirs]
""")
    assert said == ""
    said = stderr_of(
        """
class Theirs(nn.PReLU):
    pass
torch.nn.modules.activation.PReLU = Theirs
import torch_ext
""",
        code=1,
    )
    assert "ImportError: torch.nn.modules.activation.PReLU is not PyTorch's" in said


def test_layers_of_an_import_before_can_be_restored():
    """After the package was taken out of sys.modules, as reloaders of notebooks do."""
    said = stderr_of("""
import torch_ext
class Theirs(nn.PReLU):
    pass
model = nn.Sequential(nn.PReLU(), Theirs(), torch_ext.PReLU())
torch_ext.replace_prelu(model)
for name in [name for name in sys.modules if name.partition(".")[0] == "torch_ext"]:
    del sys.modules[name]
import torch_ext
assert not isinstance(model[0], torch_ext.PReLU)
assert torch_ext.replace_prelu(model).swapped == []
assert torch_ext.restore_prelu(model).swapped == ["0", "1", "2"]
assert [type(layer) for layer in model] == [nn.PReLU, Theirs, nn.PReLU]
assert torch_ext.replace_prelu(model).swapped == ["0", "1", "2"]
assert isinstance(model[1], torch_ext.PReLU)
""")
    assert said == ""

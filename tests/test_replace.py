"""replace_prelu and restore_prelu: what a swap changes in a model, and all that it must not."""

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from reference import assert_both_branches, assert_same_bits
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

import torch_ext
from torch_ext import replace_prelu, restore_prelu

pytestmark = pytest.mark.contract


class Activation(nn.PReLU):
    """A subclass as libraries have them: another constructor, the inherited forward."""

    def __init__(self, channels):
        super().__init__(channels, init=0.1)
        self.origin = "library"


class Shifted(nn.PReLU):
    """A subclass that computes something else."""

    def forward(self, input):
        return super().forward(input - 1)


class Verbatim(nn.PReLU):
    """A subclass that spells PReLU out once more."""

    def forward(self, input):
        return torch.nn.functional.prelu(input, self.weight)


class DerivedFromVerbatim(Verbatim):
    pass


class WithMixin(nn.PReLU):
    """A subclass with its own way of pickling."""

    def __reduce__(self):
        return type(self), (self.num_parameters,), self.__dict__


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


class Calls(TorchFunctionMode):
    """Notes which PReLU a model calls: "stock" or "fused"."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.prelu or func is torch.nn.functional.prelu:
            self.made.append("stock")
        elif func in (torch.ops.torch_ext.prelu, torch.ops.torch_ext.prelu.default):
            self.made.append("fused")
        return func(*args, **(kwargs or {}))


def calls(model, input=None):
    with Calls() as recorder:
        model(images() if input is None else input)
    return recorder.made


def images(seed=0):
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def network():
    """Convolutions with one slope per channel, one slope in all, and a nested block."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.PReLU(4),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.PReLU(init=-0.5)),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.PReLU(6, init=1.5),
    )


PRELUS = ["1", "2.1", "5"]


def gradients(model):
    model.zero_grad()
    model(images()).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# ---- What is swapped, and back -----------------------------------------------------------------


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
    [(name, reason)] = restore_prelu(model).skipped
    assert name == "0"
    assert "Mine" in reason
    assert type(model[0]) is Mine


# ---- What stays the same object ----------------------------------------------------------------


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


def test_an_optimizer_made_before_the_swap_trains_the_same_network():
    stock, model = network().double(), network().double()
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (stock, model)]
    replace_prelu(model)
    before = model[1].weight.detach().clone()
    for step in range(4):
        if step == 2:
            restore_prelu(model)
        for network_, optimizer in zip((stock, model), optimizers, strict=True):
            optimizer.zero_grad()
            network_(images(step).double()).square().mean().backward()
            optimizer.step()
    assert not torch.equal(model[1].weight, before)
    for expected, actual in zip(stock.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_an_averaged_copy_made_before_the_swap_keeps_following():
    model = network()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    replace_prelu(model)
    with torch.no_grad():
        model[1].weight.fill_(0.75)
    averaged.update_parameters(model)
    assert_same_bits(averaged.module[1].weight, model[1].weight)
    assert replace_prelu(averaged).swapped == [f"module.{name}" for name in PRELUS]


def test_tied_slopes_stay_tied():
    model = nn.Sequential(nn.PReLU(3), nn.Conv2d(3, 3, 1), nn.PReLU(3))
    model[2].weight = model[0].weight
    replace_prelu(model)
    assert model[2].weight is model[0].weight
    model(images()).sum().backward()
    assert model[0].weight.grad.norm() > 0
    assert len(list(model.parameters())) == 3


def test_hooks_stay():
    model = network()
    seen = []
    model[1].register_forward_pre_hook(lambda *_: seen.append("before"))
    model[1].register_forward_hook(lambda *_: seen.append("after"))
    model[1].register_full_backward_hook(lambda *_: seen.append("backward"))
    model[1].weight.register_hook(lambda _: seen.append("weight"))
    replace_prelu(model)
    model(images()).sum().backward()
    assert sorted(seen) == ["after", "backward", "before", "weight"]


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


# ---- Subclasses --------------------------------------------------------------------------------


def test_a_subclass_that_inherits_forward_stays_an_instance_of_itself():
    model = nn.Sequential(Activation(3))
    assert replace_prelu(model).swapped == ["0"]
    assert isinstance(model[0], Activation)
    assert isinstance(model[0], torch_ext.PReLU)
    assert model[0].origin == "library"
    assert repr(model[0]) == repr(Activation(3))
    assert calls(model) == ["fused"]
    restore_prelu(model)
    assert type(model[0]) is Activation
    assert calls(model) == ["stock"]


def test_instances_of_one_subclass_share_one_swapped_class():
    model = nn.Sequential(Activation(3), Activation(3))
    replace_prelu(model)
    assert type(model[0]) is type(model[1])


def test_a_subclass_with_a_forward_of_its_own_is_left_alone():
    model = nn.Sequential(Shifted(3), nn.PReLU())
    expected = model(images())
    report = replace_prelu(model)
    assert report.swapped == ["1"]
    [(name, reason)] = report.skipped
    assert name == "0"
    assert "Shifted has a forward of its own" in reason
    assert type(model[0]) is Shifted
    assert_same_bits(model(images()), expected)


@pytest.mark.parametrize("cls", [Verbatim, DerivedFromVerbatim])
def test_a_class_named_in_also_is_swapped_with_those_that_inherit_its_forward(cls):
    model = nn.Sequential(cls(3), Shifted(3))
    assert [name for name, _ in replace_prelu(model).skipped] == ["0", "1"]
    report = replace_prelu(model, also=[Verbatim])
    assert report.swapped == ["0"]
    assert [name for name, _ in report.skipped] == ["1"]
    assert isinstance(model[0], cls)
    assert calls(model[0]) == ["fused"]
    restore_prelu(model)
    assert type(model[0]) is cls


def test_also_does_not_cover_a_forward_that_a_subclass_overrides_again():
    class Again(Verbatim):
        def forward(self, input):
            return -super().forward(input)

    model = nn.Sequential(Again(3))
    assert [name for name, _ in replace_prelu(model, also=[Verbatim]).skipped] == ["0"]


def test_a_forward_replaced_on_the_instance_is_left_alone():
    model = nn.Sequential(nn.PReLU())
    model[0].forward = torch.relu
    [(name, reason)] = replace_prelu(model, also=[nn.PReLU]).skipped
    assert name == "0"
    assert "instance" in reason
    assert type(model[0]) is nn.PReLU


def test_a_subclass_that_refuses_to_be_subclassed_is_reported_and_the_rest_swapped():
    class Final(nn.PReLU):
        def __init_subclass__(cls):
            raise TypeError("no subclasses, please")

    model = nn.Sequential(Final(), nn.PReLU())
    report = replace_prelu(model)
    assert report.swapped == ["1"]
    [(name, reason)] = report.skipped
    assert name == "0"
    assert "no subclasses, please" in reason


def test_a_subclass_with_slots_and_a_stubborn_setattr_is_swapped():
    class Stubborn(nn.PReLU):
        __slots__ = ("tag",)

        def __setattr__(self, name, value):
            assert name != "__class__"
            super().__setattr__(name, value)

    model = nn.Sequential(Stubborn())
    model[0].tag = "kept"
    assert replace_prelu(model).swapped == ["0"]
    assert model[0].tag == "kept"
    assert restore_prelu(model).swapped == ["0"]
    assert type(model[0]) is Stubborn


# ---- Copies and pickles ------------------------------------------------------------------------


def model_of_all_kinds():
    torch.manual_seed(0)
    return nn.Sequential(nn.PReLU(3), Activation(3), WithMixin(3), Verbatim(3))


def test_deep_copies_are_swapped_too_and_independent():
    model = model_of_all_kinds()
    replace_prelu(model, also=[Verbatim])
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
    replace_prelu(model, also=[Verbatim])
    back = pickle.loads(pickle.dumps(model, protocol))
    assert [type(module) for module in back] == [type(module) for module in model]
    assert back[1].origin == "library"
    assert calls(back) == ["fused"] * 4
    assert_same_bits(back(images()), model(images()))
    restore_prelu(back)
    assert [type(module) for module in back] == [nn.PReLU, Activation, WithMixin, Verbatim]


def test_a_whole_model_survives_torch_save():
    model = model_of_all_kinds()
    replace_prelu(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    back = torch.load(buffer, weights_only=False)
    assert [type(module) for module in back] == [type(module) for module in model]
    assert_same_bits(back(images()), model(images()))


def test_a_pickle_from_before_the_swap_loads_and_can_be_swapped():
    data = pickle.dumps(model_of_all_kinds())
    model = pickle.loads(data)
    assert replace_prelu(model).swapped == ["0", "1", "2"]


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


# ---- Parametrized modules ----------------------------------------------------------------------


def parametrized_model(cls=nn.PReLU):
    model = nn.Sequential(cls(3))
    parametrize.register_parametrization(model[0], "weight", Doubled())
    return model


@pytest.mark.parametrize("cls", [nn.PReLU, Activation])
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


# ---- Compiled modules --------------------------------------------------------------------------


def script(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated upstream, but in use
        return torch.jit.script(model)


def trace(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, images())


@pytest.mark.parametrize("compile", [script, trace])
def test_script_modules_are_skipped_with_a_warning(compile):
    model = nn.Sequential(nn.PReLU(), compile(nn.Sequential(nn.PReLU(), nn.ReLU())))
    with pytest.warns(UserWarning, match=r"ScriptModules keep running aten::prelu: 1\.0\."):
        report = replace_prelu(model)
    assert report.swapped == ["0"]
    [(name, reason)] = report.skipped
    assert name == "1.0"
    assert "ScriptModule" in reason


def test_a_scripted_model_is_skipped_as_a_whole():
    with pytest.warns(UserWarning, match=r"\(root\)"):
        report = replace_prelu(script(nn.PReLU()))
    assert [name for name, _ in report.skipped] == [""]


@pytest.mark.filterwarnings("error")
def test_script_modules_without_prelu_are_no_concern():
    report = replace_prelu(nn.Sequential(nn.PReLU(), script(nn.ReLU()), script(nn.Module())))
    assert (report.swapped, report.skipped) == (["0"], [])


def test_a_swapped_model_can_be_scripted_but_not_restored_then():
    model = nn.Sequential(nn.PReLU(3), Activation(3))
    replace_prelu(model)
    scripted = script(model)
    assert_same_bits(scripted(images()), model(images()))
    with pytest.warns(UserWarning, match="ScriptModules keep running torch_ext::prelu: 0, 1"):
        assert [name for name, _ in restore_prelu(scripted).skipped] == ["0", "1"]


def test_a_swapped_model_compiles_without_graph_breaks():
    operators = []

    def backend(graph, _):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    model = nn.Sequential(nn.PReLU(3), Activation(3), parametrized_model()[0])
    replace_prelu(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_same_bits(compiled(images()), model(images()))
    assert sum("torch_ext.prelu" in operator for operator in operators) == 3


# ---- filter_fn, the report, bad arguments ------------------------------------------------------


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


def test_the_report_prints_as_a_table():
    report = replace_prelu(nn.Sequential(nn.Sequential(nn.PReLU()), Shifted()))
    assert str(report).splitlines() == [
        "1 swapped, 1 skipped",
        "  0.0  swapped",
        "  1    skipped  Shifted has a forward of its own; if it is just PReLU, use also=",
    ]
    assert str(replace_prelu(nn.PReLU())).splitlines()[1] == "  (root)  swapped"
    assert str(replace_prelu(nn.ReLU())) == "0 swapped, 0 skipped"


@pytest.mark.parametrize("swap", [replace_prelu, restore_prelu])
@pytest.mark.parametrize("model", [None, [nn.PReLU()], nn.PReLU, torch.zeros(1)])
def test_a_model_that_is_no_module_is_a_type_error_that_names_it(swap, model):
    with pytest.raises(TypeError, match="model must be a torch"):
        swap(model)


@pytest.mark.parametrize("also", [Verbatim, [nn.ReLU], ["Verbatim"], [Verbatim()], 3])
def test_a_wrong_also_is_a_type_error_that_names_it_and_changes_nothing(also):
    model = nn.Sequential(nn.PReLU(), Verbatim())
    with pytest.raises(TypeError, match="also must hold subclasses"):
        replace_prelu(model, also=also)
    assert calls(model) == ["stock"] * 2


def test_a_filter_fn_that_cannot_be_called_is_a_type_error_that_names_it():
    model = network()
    with pytest.raises(TypeError, match="filter_fn must be callable"):
        replace_prelu(model, "1")
    assert calls(model) == ["stock"] * 3

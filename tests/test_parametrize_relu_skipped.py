"""What parametrize_relu leaves alone, and what is lost."""

import pytest
import torch
from rectifiers import images, network, reasons
from torch import nn
from torch.nn import functional as F

from torch_ext import parametrize_relu

pytestmark = pytest.mark.contract


class Shifted(nn.ReLU):
    """A subclass that computes something else."""

    def forward(self, input):
        return super().forward(input - 1)


class Named(nn.LeakyReLU):
    """A subclass with another constructor and the inherited forward."""

    def __init__(self):
        super().__init__(0.3)


class Functional(nn.Module):
    """Every functional form, and one that is a module."""

    def __init__(self):
        super().__init__()
        self.module = nn.ReLU()
        self.function = F.relu

    def forward(self, x):
        x = self.module(self.function(x) + torch.relu(x - 1))
        return torch.relu_(F.leaky_relu(x - 1).relu() - F.leaky_relu_(x - 2).relu_())


class Branching(nn.Module):
    """What torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x) if x.sum() > 0 else self.relu(-x)


def test_a_dropped_inplace_is_reported():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.LeakyReLU(), nn.LeakyReLU(inplace=True))
    report = parametrize_relu(model, images())
    assert report.swapped == ["0", "1", "2"]
    assert report.skipped == []
    assert [name for name, _ in report.notes] == ["0", "2"]
    assert "inplace=True was dropped" in str(report)
    input = images()
    model(input)
    assert torch.equal(input, images())


def test_filter_fn_is_asked_about_rectifiers_only():
    asked = []

    def choose(module, name):
        asked.append((name, type(module)))
        return name != "2"

    model = network()
    report = parametrize_relu(model, images(), filter_fn=choose)
    assert asked == [("2", nn.ReLU), ("3.1", nn.LeakyReLU), ("6", nn.LeakyReLU)]
    assert report.swapped == ["3.1", "6"]
    assert reasons(report) == {"2": "refused by filter_fn"}
    assert type(model[2]) is nn.ReLU


def test_subclasses_are_converted_if_they_inherit_forward():
    model = nn.Sequential(Named(), Shifted(), nn.ReLU6())
    expected = model(images())
    report = parametrize_relu(model, images())
    assert report.swapped == ["0"]
    assert reasons(report) == {"1": "Shifted has a forward of its own"}
    assert type(model[2]) is nn.ReLU6
    assert torch.equal(model(images()), expected)


def test_a_forward_replaced_on_the_instance_is_left_alone():
    model = nn.ReLU()
    model.forward = torch.sigmoid
    report = parametrize_relu(model, images())
    assert report.swapped == []
    assert "replaced on the instance" in reasons(report)[""]


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
@pytest.mark.parametrize("compiler", ["script", "trace"])
def test_compiled_modules_are_left_alone(compiler):
    inner = nn.Sequential()
    inner.add_module("relu", nn.ReLU(inplace=True))
    inner.add_module("leaky", nn.LeakyReLU())
    script = torch.jit.script(inner) if compiler == "script" else torch.jit.trace(inner, images())
    model = nn.Sequential(script, nn.ReLU())
    report = parametrize_relu(model, images())
    assert report.swapped == ["1"]
    assert set(reasons(report)) == {"0.relu", "0.leaky"}
    assert all("ScriptModule" in reason for reason in reasons(report).values())


def test_the_activation_of_a_transformer_layer_with_a_fast_path_is_left_alone():
    model = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True)
    report = parametrize_relu(model, torch.randn(2, 3, 8), per_channel=False)
    assert report.swapped == []
    assert "fast path" in reasons(report)["activation"]


def test_functional_uses_are_reported_with_the_module_around_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Functional(), nn.ReLU()))
    report = parametrize_relu(model, images())
    assert report.swapped == ["1.0.module", "1.1"]
    assert {name for name, _ in report.skipped} == {"1.0"}
    forms = ["F.relu", "torch.relu", "F.leaky_relu", "F.leaky_relu_"]
    forms += ["torch.relu_", "Tensor.relu", "Tensor.relu_"]
    assert sorted(reason for _, reason in report.skipped) == sorted(
        f"functional use of {form} in 1.0: not converted" for form in forms
    )


def test_a_model_that_cannot_be_traced_is_converted_and_the_report_says_so():
    model = Branching()
    report = parametrize_relu(model, images())
    assert report.swapped == ["relu"]
    assert "torch.fx cannot trace the model" in reasons(report)[""]


def test_a_long_error_of_the_tracer_is_one_line():
    class Drawing(nn.Module):
        def forward(self, x):
            return torch.randn(x.size(0), x.size(1)).sum() + x

    with pytest.raises(TypeError, match="\n"):
        torch.fx.symbolic_trace(Drawing())
    report = parametrize_relu(nn.Sequential(Drawing(), nn.ReLU()), images())
    assert report.swapped == ["1"]
    assert "torch.fx cannot trace the model" in reasons(report)[""]
    assert "\n" not in reasons(report)[""]


@pytest.mark.parametrize("kind", ["backward_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_backward_hooks_do_not_keep_it_from_looking_for_functional_uses(kind):
    """torch asks a legacy one for the first tensor of a result, which no placeholder of fx is."""
    model = nn.Sequential(Functional(), nn.Sequential(nn.ReLU()))
    getattr(model[1], f"register_{kind}")(lambda *_: None)
    report = parametrize_relu(model, images())
    assert report.swapped == ["0.module", "1.0"]
    assert ("0", "functional use of F.relu in 0: not converted") in report.skipped


def test_looking_for_functional_uses_leaves_nothing_in_the_model():
    class Keeping(nn.Module):
        def forward(self, x):
            self.kept = x
            self.count = getattr(self, "count", 0) + 1
            return x.relu()

    model = nn.Sequential(Keeping(), nn.LeakyReLU())
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    report = parametrize_relu(model, per_channel=False)
    assert reasons(report) == {"0": "functional use of Tensor.relu in 0: not converted"}
    assert not hasattr(model[0], "kept")
    assert not hasattr(model[0], "count")
    assert seen == []
    parametrize_relu(model, images())


def test_a_model_is_shown_with_the_classes_that_it_had_and_has():
    report = parametrize_relu(nn.Sequential(Named(), Shifted(), nn.ReLU()), images())
    assert report.classes == {
        "0": "test_parametrize_relu_skipped.Named -> torch_ext.PReLU",
        "1": "test_parametrize_relu_skipped.Shifted",
        "2": "nn.ReLU -> torch_ext.PReLU",
    }

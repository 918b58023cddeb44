"""How ActivationMonitor presents its figures: table, JSON, TensorBoard, picture, and its errors."""

import json
import math
import sys

import pytest
import torch
from torch import nn

import torch_ext
from torch_ext import ActivationMonitor

pytestmark = pytest.mark.contract

# Of each layer; "by_channel" holds lists of the length "channels".
FIGURES = [
    *("non_positive", "silent", "dead", "sparsity", "slope_mean", "slope_drift"),
    *("grad_output_norm", "grad_input_norm"),
]


def monitored(steps=3, window=2, **options):
    """A ReLU with a dead unit, a PReLU with a silent one, and a module that is never called."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), torch_ext.PReLU(5))
    model.unused = nn.LeakyReLU()
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1.0, -100.0, 1.0, 1.0]))
        model[2].bias.copy_(torch.tensor([-100.0, 5.0, 5.0, 5.0, 5.0]))
    monitor = ActivationMonitor(model, window=window, **options)
    for _ in range(steps):
        model(torch.randn(8, 3)).square().sum().backward()
    return monitor


class Writer:
    """Methods with the signatures of torch.utils.tensorboard.SummaryWriter."""

    def __init__(self):
        self.scalars, self.histograms = {}, {}

    def add_scalar(
        self, tag, scalar_value, global_step=None, walltime=None, new_style=False,
        double_precision=False,
    ):  # fmt: skip
        self.scalars[tag] = (scalar_value, global_step)

    def add_histogram(
        self, tag, values, global_step=None, bins="tensorflow", walltime=None, max_bins=None
    ):
        self.histograms[tag] = (values, global_step)


# ---- Table -------------------------------------------------------------------------------------


def test_the_table_has_a_line_per_layer_and_says_what_its_words_mean():
    monitor = monitored()
    lines = monitor.summary().splitlines()
    headings = lines[0].split()
    assert headings[:7] == ["layer", "kind", "units", "non-positive", "silent", "dead", "sparsity"]
    relu, prelu = lines[1].split(), lines[2].split()
    assert relu[:3] == ["1", "ReLU", "4"] and relu[4:6] == ["1", "1"]
    assert relu[3] == relu[6] and relu[3].endswith("%")
    assert prelu[:3] == ["3", "PReLU", "5"] and prelu[4:7] == ["1", "0", "-"]
    assert "3 steps observed" in lines[3]
    assert "silent: no positive input in the last 2 steps" in lines[4]
    assert lines[5].endswith(": unused")
    assert max(map(len, lines)) <= 110
    assert str(monitor.report()) == monitor.summary()


def test_before_the_window_is_full_the_table_does_not_know():
    lines = monitored(steps=1, window=2, every=5).summary().splitlines()
    assert lines[1].split()[4:6] == ["-", "-"]
    assert "1 steps observed, one in 5" in lines[3]
    assert "not known before 2 steps" in lines[5]


def test_a_table_without_steps_is_a_table():
    assert "no steps observed" in monitored(steps=0).summary()


def test_a_model_that_is_a_layer_has_a_name_in_the_table():
    module = nn.ReLU()
    monitor = ActivationMonitor(module)
    module(torch.ones(1, 1))
    assert monitor.summary().splitlines()[1].startswith("(root)")


# ---- JSON --------------------------------------------------------------------------------------


def test_the_dict_survives_json_and_has_every_figure():
    monitor = monitored()
    found = json.loads(json.dumps(monitor.to_dict(), allow_nan=False))
    assert found == monitor.to_dict()
    assert (found["window"], found["every"], found["processes"]) == (2, 1, 1)
    assert found["not_called"] == ["unused"]
    relu, prelu = found["layers"]
    assert set(FIGURES) <= set(relu) and set(relu) == set(prelu)
    assert (relu["name"], relu["kind"], relu["dead"]) == ("1", "ReLU", 1)
    assert prelu["sparsity"] is None and prelu["slope_mean"] == 0.25
    for layer in (relu, prelu):
        known = [values for values in layer["by_channel"].values() if values is not None]
        assert {len(values) for values in known} == {layer["channels"]}
    assert relu["by_channel"]["non_positive"][1] == 1.0


def test_numbers_that_json_lacks_are_strings_that_float_reads():
    module = torch_ext.PReLU(3)
    module.weight.data = torch.tensor([math.nan, -math.inf, 0.0])
    monitor = ActivationMonitor(module)
    (module(torch.ones(1, 3)).sum() * math.inf).backward()
    [layer] = json.loads(json.dumps(monitor.to_dict(), allow_nan=False))["layers"]
    assert layer["by_channel"]["slope"] == ["nan", "-inf", 0.0]
    assert math.isnan(float(layer["grad_output_norm"]))
    assert layer["grad_output_not_finite"] == 1
    assert layer["by_channel"]["sparsity"] == [None, None, 0.0]


# ---- TensorBoard -------------------------------------------------------------------------------


def test_tensorboard_gets_scalars_and_histograms():
    monitor, writer = monitored(), Writer()
    monitor.write(writer, 7, prefix="acts")
    assert writer.scalars["acts/dead/1"] == (0.25, 7)  # a share: layers differ in size
    assert writer.scalars["acts/slope_mean/3"] == (0.25, 7)
    names = {tag.split("/")[1] for tag in writer.scalars}
    assert names == set(FIGURES)
    assert "acts/sparsity/3" not in writer.scalars  # not known
    values, step = writer.histograms["acts/non_positive_by_channel/1"]
    assert step == 7 and values.shape == (4,) and values[1] == 1.0
    assert "acts/slope_by_channel/3" in writer.histograms


def test_tensorboard_itself_takes_them(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        monitored().write(writer, 1)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 1000


# ---- Picture -----------------------------------------------------------------------------------


def test_the_picture_shows_what_the_report_says(tmp_path):
    pytest.importorskip("matplotlib")
    monitor = monitored()
    figure = monitor.plot(tmp_path / "monitor.png")
    assert (tmp_path / "monitor.png").read_bytes().startswith(b"\x89PNG")
    panels = figure.axes
    assert len(panels) == 4 and all(axes.get_title() for axes in panels)
    heights = [bar.get_height() for bar in panels[1].patches]
    assert heights == [25.0, 20.0, 25.0, 0.0]  # silent, then dead, in % of the units
    layers = monitor.report().layers
    drawn = panels[3].get_lines()[0].get_ydata()
    assert list(drawn) == [layer.grad_output.mean for layer in layers]


def test_the_default_device_changes_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    monitor = monitored()
    expected = monitor.to_dict()
    model = nn.LeakyReLU(0.25)
    with torch.device("meta"):  # which has no values: what is made there by mistake fails
        assert monitor.to_dict() == expected
        monitor.plot(tmp_path / "monitor.png")
        leaky = ActivationMonitor(model)
    model(torch.randn(8, 3, requires_grad=True)).sum().backward()
    assert leaky.report().layers[0].slope.unique().tolist() == [0.25]


@pytest.mark.parametrize("steps", [0, 1])
def test_a_picture_of_little_is_still_drawn(steps):
    pytest.importorskip("matplotlib")
    monitor = monitored(steps=steps)
    assert len(monitor.plot().axes) == 4
    monitor.reset()
    assert len(monitor.plot().axes) == 4


def test_without_matplotlib_plot_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "torch_ext.monitor_plot", raising=False)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install torch_ext\[plot\]"):
        monitored().plot()


# ---- Errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((torch.ones(1),), TypeError, "model must be a torch.nn.Module, got Tensor"),
        ((nn.ReLU(), {"layers": nn.functional.relu}), TypeError, "layers must be subclasses"),
        ((nn.ReLU(), {"filter_fn": "1"}), TypeError, "filter_fn must be callable or None, got str"),
        ((nn.ReLU(), {"window": 1.5}), TypeError, "window must be an int, got float"),
        ((nn.ReLU(), {"window": 0}), ValueError, "window must be at least 1, got 0"),
        ((nn.ReLU(), {"every": -1}), ValueError, "every must be at least 1, got -1"),
        ((nn.ReLU(), {"channel_dim": None}), TypeError, "channel_dim must be an int"),
        ((nn.Linear(1, 1),), ValueError, "nothing to monitor"),
        ((nn.ReLU(), {"filter_fn": lambda module, name: False}), ValueError, "nothing to monitor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_told_and_leave_no_hooks(arguments, error, message):
    model, *options = arguments
    with pytest.raises(error, match=message):
        ActivationMonitor(model, **(options[0] if options else {}))
    if isinstance(model, nn.Module):
        assert not model._forward_hooks and not model._forward_pre_hooks


def test_layers_and_filter_fn_choose_what_is_monitored():
    model = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.ReLU())
    monitor = ActivationMonitor(
        model, layers=(nn.ReLU, nn.Tanh), filter_fn=lambda module, name: name != "0"
    )
    model(torch.ones(2, 2))
    assert [layer.name for layer in monitor.report().layers] == ["1", "3"]

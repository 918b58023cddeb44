"""ActivationMonitor's figures: each against values that are computed from the inputs themselves."""

import math

import pytest
import torch
from cases import DENSE_LAYOUTS, SHARING_LAYOUTS
from monitored import ACTIVATIONS, inputs_of, only
from torch import nn

import torch_ext
from torch_ext import ActivationMonitor

pytestmark = pytest.mark.contract

SHAPES = {"image": (3, 4, 5, 6), "volume": (2, 4, 3, 2, 3), "features": (7, 4), "tokens": (2, 4, 9)}


def shares_of(inputs, dim=1):
    """Per channel, element by element, in Python."""
    shares = []
    for channel in range(inputs[0].size(dim)):
        values = [v for x in inputs for v in x.select(dim, channel).flatten().tolist()]
        shares.append(sum(not v > 0 for v in values) / len(values))
    return shares


# ---- Non-positive inputs -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_the_share_of_non_positive_inputs_is_counted_per_channel(make, shape):
    module, inputs = make(), inputs_of(shape)
    with ActivationMonitor(module) as monitor:
        for x in inputs:
            module(x.clone())
    layer = only(monitor)
    assert layer.non_positive_by_channel.tolist() == pytest.approx(shares_of(inputs), abs=1e-12)
    assert layer.non_positive == pytest.approx(sum(shares_of(inputs)) / 4, abs=1e-12)
    assert (layer.steps, layer.channels) == (3, 4)
    assert layer.elements == 3 * inputs[0].numel() // 4


@pytest.mark.parametrize(
    "layout", {**DENSE_LAYOUTS, **SHARING_LAYOUTS}.values(), ids=lambda f: f.__name__
)
def test_any_strides_count_the_same(layout):
    x = layout(inputs_of((3, 4, 5, 6))[0])
    assert (x > 0).any() and not (x > 0).all()
    module = torch_ext.PReLU(4)
    with ActivationMonitor(module) as monitor:
        module(x)
    assert only(monitor).non_positive_by_channel.tolist() == pytest.approx(
        shares_of([x]), abs=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_16_bit_inputs_are_counted_exactly(dtype):
    x = torch.randn(40, 3, 50, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    module = nn.ReLU()
    with ActivationMonitor(module) as monitor:
        module(x)
    expected = [int((x[:, channel].double() > 0).sum()) for channel in range(3)]
    assert min(expected) > 2048  # more than a float16 can count one by one
    assert only(monitor).positive.tolist() == expected


@pytest.mark.parametrize("shape", [(), (9,)], ids=["0-D", "1-D"])
def test_inputs_without_channels_are_one_unit(shape):
    module = nn.PReLU()
    with ActivationMonitor(module) as monitor:
        module(torch.full(shape, -1.0))
        module(torch.full(shape, 2.0))
    assert only(monitor).channels == 1
    assert only(monitor).non_positive == 0.5


def test_zero_and_nan_are_not_positive():
    module = nn.ReLU()
    with ActivationMonitor(module) as monitor:
        module(torch.tensor([[0.0, -0.0, math.nan, math.inf, -math.inf, 1e-40]]))
    assert only(monitor).positive.tolist() == [0, 0, 0, 1, 0, 1]


def test_the_last_dimension_can_be_the_channels():
    [x] = inputs_of((2, 5, 3), steps=1)
    relu, prelu = nn.ReLU(), torch_ext.PReLU(5)
    model = nn.Sequential(relu, prelu)
    with ActivationMonitor(model, channel_dim=-1) as monitor:
        model(x)
    first, second = monitor.report().layers
    assert first.non_positive_by_channel.tolist() == pytest.approx(shares_of([x], dim=2))
    assert second.channels == 5  # its slopes say that dimension 1 holds the channels


def test_empty_and_integer_inputs_do_no_harm():
    module = nn.ReLU()
    with ActivationMonitor(module) as monitor:
        module(torch.empty(0, 3))
        assert monitor.report().layers == []
        module(torch.tensor([[1, -1, 0]]))
    assert only(monitor).positive.tolist() == [1, 0, 0]


# ---- Silent and dead units ---------------------------------------------------------------------


def batch(*signs):
    """One unit per sign; a positive one has a single positive element."""
    x = -torch.ones(4, len(signs))
    x[2] = torch.tensor(signs, dtype=torch.float32)
    return x


def test_a_unit_is_silent_after_a_whole_window_without_a_positive_input():
    module = nn.ReLU()
    monitor = ActivationMonitor(module, window=3)
    history = []
    for signs in [(1, -1), (-1, -1), (-1, -1), (-1, -1), (1, -1), (-1, 0)]:
        module(batch(*signs))
        layer = only(monitor)
        history.append((layer.silent, layer.dead, layer.silent_steps.tolist()))
    assert history == [
        (None, None, [0, 1]),  # not known before the window is full
        (None, None, [1, 2]),
        (1, 1, [2, 3]),
        (2, 2, [3, 4]),
        (1, 1, [0, 5]),
        (1, 1, [1, 6]),
    ]


def test_each_position_of_a_2d_input_is_a_unit_also_with_one_slope():
    module = nn.PReLU()
    with ActivationMonitor(module, window=1) as monitor:
        module(batch(1, -1, -1, 1, -1))
    assert only(monitor).is_silent.tolist() == [False, True, True, False, True]


@pytest.mark.parametrize(
    "module, dead",
    [
        (nn.ReLU(), [True, True]),
        (nn.ReLU6(), [True, True]),
        (nn.LeakyReLU(0.0), [True, True]),
        (nn.LeakyReLU(0.1), [False, False]),
        (torch_ext.PReLU(2, init=0.0), [True, True]),
        (torch_ext.PReLU(2), [False, False]),
        (nn.Tanh(), None),
    ],
    ids=str,
)
def test_a_silent_unit_is_dead_only_where_its_slope_is_0(module, dead):
    with ActivationMonitor(module, layers=type(module), window=2) as monitor:
        module(batch(-1, -1))
        module(batch(-1, -1))
    layer = only(monitor)
    assert layer.silent == 2
    assert (layer.is_dead if dead is None else layer.is_dead.tolist()) == dead


# ---- Sparsity and slopes -----------------------------------------------------------------------


def test_sparsity_is_the_share_of_zero_outputs_where_the_slope_is_0():
    module, inputs = torch_ext.PReLU(4), inputs_of((3, 4, 5))
    zeros = [0, 0, 0, 0]
    monitor = ActivationMonitor(module)
    slopes = [[0.0, 0.1, 0.0, -0.5], [0.0, 0.0, 0.3, -0.5], [0.0, 0.0, 0.0, 1.0]]
    for x, values in zip(inputs, slopes, strict=True):
        module.weight.data = torch.tensor(values)
        y = module(x)
        zeros = [n + int((y[:, c] == 0).sum()) for c, n in enumerate(zeros)]
    layer = only(monitor)
    assert min(zeros[:3]) > 0 and zeros[3] == 0
    expected = [zeros[0] / 45, zeros[1] / 30, zeros[2] / 30]
    assert layer.sparsity_by_channel[:3].tolist() == pytest.approx(expected)
    assert layer.sparsity_by_channel[3].isnan()
    assert layer.sparsity == pytest.approx(sum(zeros) / 105)


@pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_sparsity_is_known_exactly_where_the_slope_is_0(make):
    module, inputs = make(), inputs_of((3, 4, 5))
    monitor = ActivationMonitor(module)
    outputs = torch.cat([module(x.clone()) for x in inputs])
    if isinstance(module, nn.ReLU):
        assert only(monitor).sparsity == pytest.approx((outputs == 0).double().mean().item())
    else:
        assert only(monitor).sparsity is None


def test_slopes_and_their_drift():
    module = torch_ext.PReLU(3, init=0.25)
    monitor = ActivationMonitor(module)
    module(torch.randn(2, 3))
    with torch.no_grad():
        module.weight += torch.tensor([0.5, 0.0, -0.25])
    layer = only(monitor)
    assert layer.slope.tolist() == [0.75, 0.25, 0.0]
    assert layer.drift_by_channel.tolist() == [0.5, 0.0, -0.25]
    assert layer.drift == 0.25


def test_slopes_are_followed_through_parametrize_relu():
    model = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.5))
    monitor = ActivationMonitor(model)
    x = torch.randn(2, 3)
    torch_ext.parametrize_relu(model, x)
    model(x)
    model[1].weight.data[2] = 0.75
    layer = only(monitor)
    assert (layer.kind, layer.channels) == ("PReLU", 4)
    assert layer.drift_by_channel.tolist() == [0.0, 0.0, 0.25, 0.0]

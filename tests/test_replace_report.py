"""SwapReport: the table, the notes, the classes."""

import pytest
import torch
from swaps import Activation, Shifted, images, network
from torch import nn
from torch.nn.utils import parametrize

import torch_ext
from torch_ext import SwapReport, parametrize_relu, replace_prelu, restore_prelu

pytestmark = pytest.mark.contract


def test_the_report_prints_as_a_table():
    model = nn.Sequential(nn.Sequential(nn.PReLU(), Activation(3)), Shifted())
    assert str(replace_prelu(model)).splitlines() == [
        "2 swapped, 1 skipped",
        "  module  result   class                                                  reason",
        "  0.0     swapped  nn.PReLU -> torch_ext.PReLU",
        "  0.1     swapped  swaps.Activation -> swaps.Activation, torch_ext.PReLU",
        f"  1       skipped  {'swaps.Shifted':53}  "
        + "Shifted.forward is not just prelu(input, self.weight): "
        + "it computes sub, prelu in training mode; also= swaps it anyway",
    ]
    assert str(restore_prelu(model)).splitlines() == [
        "2 swapped, 0 skipped",
        "  module  result   class",
        "  0.0     swapped  torch_ext.PReLU -> nn.PReLU",
        "  0.1     swapped  swaps.Activation, torch_ext.PReLU -> swaps.Activation",
    ]
    assert str(replace_prelu(nn.PReLU())).splitlines()[2].startswith("  (root)  swapped  nn.PReLU")
    assert str(replace_prelu(nn.ReLU())) == "0 swapped, 0 skipped"


def test_columns_are_aligned():
    lines = str(replace_prelu(nn.Sequential(network(), Shifted()))).splitlines()[1:]
    starts = [lines[0].index(heading) for heading in ("module", "result", "class", "reason")]
    assert len(lines) == 5
    for line in lines[1:]:
        assert all(line[start - 2 : start] == "  " for start in starts if start < len(line))
        assert all(line[start] != " " for start in starts if start < len(line))


def test_a_parametrized_module_is_shown_by_its_own_class():
    model = nn.PReLU()
    parametrize.register_parametrization(model, "weight", nn.Identity())
    assert replace_prelu(model).classes == {"": "nn.PReLU -> torch_ext.PReLU"}
    assert restore_prelu(model).classes == {"": "torch_ext.PReLU -> nn.PReLU"}


def deep(layers):
    """Units of two PReLU; one more outside, one subclass that is not swapped."""
    units = [nn.Sequential(nn.PReLU(3), nn.Conv2d(3, 3, 1), nn.PReLU()) for _ in range(layers)]
    return nn.Sequential(
        nn.Sequential(*units), nn.Sequential(*[Shifted() for _ in range(9)]), nn.PReLU()
    )


def test_a_long_table_folds_what_differs_in_numbers_only():
    report = replace_prelu(deep(150))
    assert len(report.swapped) == 301
    lines = str(report).splitlines()
    assert lines[0] == "301 swapped, 9 skipped"
    assert [line.split()[:3] for line in lines[2:]] == [
        ["*.*.*", "(300)", "swapped"],
        ["2", "swapped", "nn.PReLU"],
        ["*.*", "(9)", "skipped"],
    ]


def test_a_short_table_names_every_module():
    assert len(str(replace_prelu(deep(5))).splitlines()) == 2 + 11 + 9


def test_reports_compare_by_what_happened():
    assert replace_prelu(network()) == SwapReport(["1", "2.1", "5"], [])
    assert SwapReport() == SwapReport([], [], [])


def test_a_note_is_no_skip():
    report = parametrize_relu(nn.Sequential(nn.ReLU(inplace=True)), images())
    assert (report.swapped, report.skipped) == (["0"], [])
    assert report.notes == [("0", "inplace=True was dropped, a PReLU has none")]
    assert str(report).splitlines() == [
        "1 swapped, 0 skipped, 1 note",
        "  module  result   class                       reason",
        "  0       swapped  nn.ReLU -> torch_ext.PReLU",
        "  0       note                                 inplace=True was dropped, a PReLU has none",
    ]


# ---- Float32 slopes in a 16-bit model ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_restoring_float32_slopes_in_a_16_bit_model_notes_what_stock_refuses(dtype):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LeakyReLU(), nn.Sequential(nn.ReLU())).to(dtype)
    expected = model(images().to(dtype))
    parametrize_relu(model, images().to(dtype))
    slopes = [model[1].weight, model[2][0].weight]
    report = restore_prelu(model)
    assert report.swapped == ["1", "2.0"]
    assert [name for name, _ in report.notes] == ["1", "2.0"]
    assert f"nn.PReLU refuses {dtype} inputs" in str(report)
    assert model[1].weight is slopes[0]
    assert model[2][0].weight is slopes[1]
    assert {slope.dtype for slope in slopes} == {torch.float32}
    with pytest.raises(RuntimeError, match="Type promoting not supported"):
        model(images().to(dtype))
    model.to(dtype)  # what the note says
    torch.testing.assert_close(model(images().to(dtype)), expected)


def test_restoring_notes_nothing_where_stock_works():
    models = [network(), network().half(), network().double(), nn.PReLU(), nn.PReLU().half()]
    for model in models:
        replace_prelu(model)
        assert restore_prelu(model).notes == []


def test_restoring_looks_at_the_nearest_tensor():
    model = nn.Sequential(nn.Linear(2, 2).half(), nn.Sequential(nn.Linear(2, 2), torch_ext.PReLU()))
    assert restore_prelu(model).notes == []
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2).half(), torch_ext.PReLU()))
    assert [name for name, _ in restore_prelu(model).notes] == ["1.1"]

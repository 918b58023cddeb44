"""What `make gpu` concludes from measured rows: targets at their boundaries, means, kernel counts."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import cuda_targets
import cuda_timing

MB = 10**6


def _row(megabytes, aligned=True, **figures):
    fixed = {"bytes": int(megabytes * MB), "aligned": aligned, "slopes": 64, "copies": False}
    return {**fixed, **figures}


def _times(what, ours, how="cold", **others):
    return {what: {how: {"ours": ours, **others}}}


def _judged(rows, beginning):
    rows = rows if isinstance(rows, dict) else {f"row {i}": row for i, row in enumerate(rows)}
    (verdict,) = [one for one in cuda_targets.judge(rows) if one["what"].startswith(beginning)]
    return verdict


@pytest.mark.parametrize(
    ("what", "aligned", "wanted", "tensors"),
    (
        ("forward", True, 0.97, 2),
        ("forward", False, 0.92, 2),
        ("backward", True, 0.92, 3),
        ("backward", False, 0.88, 3),
    ),
)
def test_shares_of_a_copy_are_judged_at_their_boundary(what, aligned, wanted, tensors):
    name = f"{what}, large, {'aligned' if aligned else 'awkward'}"

    def held(share, megabytes=1000, aligned=aligned):
        return _judged([_row(megabytes, aligned, **_times(what, 1.0, copy=share))], name)["held"]

    assert held(wanted) is True
    assert held(wanted - 0.001) is False
    assert held(0.1, aligned=not aligned) is None
    assert held(0.1, megabytes=256 / tensors - 0.01) is None
    assert held(0.1, megabytes=256 / tensors + 0.01) is False


@pytest.mark.parametrize(
    ("target", "what", "rival", "mean", "each"),
    (
        ("backward x stock", "backward", "stock", 4.0, 1.5),
        ("step x torch.compile", "compiled_step", "compile", 1.5, 1.0),
    ),
)
def test_a_mean_and_a_least_ratio_are_both_demanded(target, what, rival, mean, each):
    def verdict(*ratios):
        return _judged([_row(1, **_times(what, 1.0, **{rival: ratio})) for ratio in ratios], target)

    balance = mean**2 / each
    assert verdict(each, balance)["held"] is True  # geometric mean and least ratio: just so
    assert verdict(each, balance)["mean"] == pytest.approx(mean)
    assert verdict(each, balance * 0.99)["held"] is False
    assert verdict(each * 0.99, balance * 2)["held"] is False
    arithmetic = 2 * mean - each
    assert verdict(each, arithmetic)["held"] is False, "the mean is the geometric one"
    assert verdict()["held"] is None


def test_memory_of_backward_is_the_gradient_and_partial_sums():
    def held(megabytes, peak_megabytes, **fields):
        row = _row(megabytes, memory={"ours": peak_megabytes * MB}) | fields
        return _judged([row], "backward's peak")["held"]

    assert held(400, 400) is True
    assert held(400, 450) is True  # an eighth
    assert held(400, 451) is False
    assert held(400, 800) is False
    assert held(400, 850, copies=True) is True
    assert held(1, 5) is True  # 4 MiB
    assert held(1, 6) is False


def test_nothing_measured_is_nothing_judged():
    assert all(target["held"] is None and target["rows"] == 0 for target in cuda_targets.judge({}))


# ---- Kernels by range ----------------------------------------------------------------------------


def _event(name, start, duration, cuda):
    device = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    return SimpleNamespace(
        name=lambda: name,
        start_ns=lambda: start,
        duration_ns=lambda: duration,
        device_type=lambda: device,
    )


def test_kernels_belong_to_the_range_in_which_they_began():
    us = 1000
    events = [
        _event("counted: ours", 1000 * us, 500 * us, cuda=False),
        _event("counted: ours", 1010 * us, 400 * us, cuda=True),  # the device's line
        _event("aten::empty", 1001 * us, 1 * us, cuda=False),
        _event("run_planes", 1100 * us, 50 * us, cuda=True),
        _event("counted: stock", 4000 * us, 500 * us, cuda=False),
        _event("Memset (Device)", 4010 * us, 1 * us, cuda=True),
        _event("reduce", 4100 * us, 50 * us, cuda=True),
        _event("flush", 9000 * us, 50 * us, cuda=True),
    ]
    found = cuda_timing.by_range(events)
    assert found == {"ours": ["run_planes"], "stock": ["Memset (Device)", "reduce"]}

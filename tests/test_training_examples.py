"""The training programs of examples/python, as a user starts them, at small size."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_ext

EXAMPLES = Path(__file__).parents[1] / "examples" / "python"


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def _printed(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(torch_ext.__file__).parent.parent),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _train_ddp(checkpoint, *options):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    program = EXAMPLES / "train_ddp.py"
    return _printed(*launcher, program, "--images=512", "--checkpoint", checkpoint, *options)


def test_two_processes_train_one_network_and_resume_it(tmp_path):
    checkpoint = tmp_path / "network.pt"
    first = _train_ddp(checkpoint, "--epochs=1")
    assert "2 processes" in first and "3 swapped, 0 skipped" in first
    assert "parameters of all processes: identical" in first
    trained = torch.load(checkpoint, weights_only=True)

    resumed = _train_ddp(checkpoint, "--epochs=2", "--resume")
    assert re.findall(r"epoch (\d+)", resumed) == ["2"]
    assert "parameters of all processes: identical" in resumed
    state = torch.load(checkpoint, weights_only=True)
    assert (trained["epoch"], state["epoch"]) == (1, 2)

    import train_ddp

    network = train_ddp.network()  # stock's PReLU
    network.load_state_dict(state["model"])
    slopes = [module.weight for module in network if type(module) is nn.PReLU]
    assert len(slopes) == 3
    assert all((weight != 0.25).any() and weight.isfinite().all() for weight in slopes)


def test_the_pictures_are_what_they_say_and_can_be_told_apart():
    import shapes

    images, labels = shapes.pictures(400, seed=0)
    assert images.shape == (400, 1, shapes.SIDE, shapes.SIDE)
    assert labels.unique().tolist() == [0, 1, 2, 3]
    again, others = shapes.pictures(400, seed=0)[0], shapes.pictures(400, seed=1)[0]
    assert torch.equal(images, again) and not torch.equal(images, others)
    # The share of pixels that a shape covers: a triangle has least.
    covered = [(images[labels == label] > 0.5).float().mean().item() for label in range(4)]
    assert covered[2] < min(covered[0], covered[1], covered[3])


def test_slopes_are_in_a_group_without_weight_decay_and_every_parameter_in_one():
    import training

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), torch_ext.PReLU(4))
    weights, small, slopes = training.parameter_groups(model, rate=0.1, weight_decay=0.5)
    assert weights["weight_decay"] == 0.5 and slopes["weight_decay"] == small["weight_decay"] == 0
    assert weights["params"] == [model[0].weight] and slopes["params"] == [model[2].weight]
    grouped = [id(p) for group in (weights, small, slopes) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_a_relu_network_is_converted_goes_on_learning_and_is_exported(tmp_path, capsys, threads):
    import convert_relu_model

    threads(1)
    with torch.random.fork_rng():
        assert (
            convert_relu_model.main(["--quick", "--output", str(tmp_path / "made" / "it.pt2")]) == 0
        )
    printed = capsys.readouterr().out
    assert "4 swapped, 0 skipped" in printed
    assert "outputs after the conversion: identical" in printed
    before, after = (float(share) for share in re.findall(r"accuracy ([\d.]+)%", printed))
    assert before > 50 and after > 50  # of four shapes
    assert re.search(r"^3\.relu +16 +0\.00 +-?0\.\d", printed, re.MULTILINE)
    assert "computes the same" in printed

    loaded = "import sys, torch; print(torch.export.load(sys.argv[1]).graph)"
    graph = _printed("-c", loaded, tmp_path / "made" / "it.pt2")
    assert "torch.ops.aten.prelu" in graph or "aten.prelu" in graph
    assert "torch_ext" not in graph

"""Part 1: the trained MTCNN face detector on a real photograph, with nn.PReLU and with torch_ext.

MTCNN (K. Zhang et al., 2016, arXiv:1604.02878) is a cascade of three small networks with 12 PReLU
layers. Most of the trained slopes are negative, so that a PReLU that is only right for slopes in
0 ... 1 fails here.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch
from mtcnn_figure import save_figure
from mtcnn_training import LayerRecord, sample_crops, slope_gradient_error, train_step
from report import Checks, bits_equal, mark, new_table
from rich.console import Console
from rich.progress import track
from skimage import data
from torch import nn
from torch.nn import functional as F

import torch_ext

STAGES = {"pnet": 12, "rnet": 24, "onet": 48}  # network -> side of the square crops it reads
LANDMARKS = ("left eye", "right eye", "nose", "left of the mouth", "right of the mouth")
Detection = tuple[
    np.ndarray, np.ndarray, np.ndarray
]  # boxes (N,4), probabilities (N,), landmarks (N,5,2)


def load_mtcnn(**options: object) -> nn.Module:
    """Build facenet-pytorch's MTCNN with its trained weights, without the package's own import.

    That import also loads a downloader and training helpers, whose requirements are not met here.
    """
    spec = importlib.util.find_spec("facenet_pytorch")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(
            "facenet-pytorch is missing: pip install --no-deps facenet-pytorch==2.6.0"
        )
    package = types.ModuleType("facenet_pytorch")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules.setdefault("facenet_pytorch", package)
    return importlib.import_module("facenet_pytorch.models.mtcnn").MTCNN(**options)


def detect(mtcnn: nn.Module, photo: np.ndarray) -> Detection:
    """Run the detector on an (H, W, 3) uint8 photograph."""
    boxes, probabilities, landmarks = mtcnn.detect(photo, landmarks=True)
    if boxes is None:
        return np.empty((0, 4)), np.empty(0), np.empty((0, 5, 2))
    return tuple(np.asarray(a, dtype=np.float32) for a in (boxes, probabilities, landmarks))


def same_detection(a: Detection, b: Detection) -> bool:
    """Whether boxes, probabilities and landmarks are equal element for element."""
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def print_faces(console: Console, pytorch: Detection, ours: Detection) -> None:
    """Print what both detectors found."""
    table = new_table("Faces found (pixels)")
    for heading in ("", "nn.PReLU", "torch_ext"):
        table.add_column(heading)
    for face in range(max(len(pytorch[0]), len(ours[0]))):
        columns = []
        for boxes, probabilities, landmarks in (pytorch, ours):
            columns.append(
                [
                    ", ".join(f"{v:.3f}" for v in boxes[face]),
                    f"{probabilities[face]:.8f}",
                    *(", ".join(f"{v:.3f}" for v in point) for point in landmarks[face]),
                ]
                if face < len(boxes)
                else ["-"] * (2 + len(LANDMARKS))
            )
        for row in zip(("box", "probability", *LANDMARKS), *columns, strict=True):
            table.add_row(*row, end_section=row[0] == LANDMARKS[-1])
    console.print(table)


def compare_step(
    pytorch: dict[str, LayerRecord], ours: dict[str, LayerRecord], checks: Checks, console: Console
) -> None:
    """Compare every PReLU layer of one training step, print the table, and record the checks."""
    table = new_table("One training step on crops of the photograph")
    table.add_column("layer", no_wrap=True)
    for heading in ("input", "slopes", "slopes\n< 0", "x ≤ 0"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("\nout", "equal\ngrad", "\nx, g"):
        table.add_column(heading, justify="center", no_wrap=True)
    table.add_column("error/bound\nours PyTorch", justify="right", no_wrap=True)

    outputs, gradients, replays, bounds, branches = [], [], [], [], []
    for name, s in track(pytorch.items(), "comparing layers", console=console, transient=True):
        o = ours[name]
        outputs.append(bits_equal(s.output, o.output))
        gradients.append(bits_equal(s.grad_input, o.grad_input))
        # The same x and g into both operators: a difference here can only be the PReLU's own.
        replayed = []
        for function in (F.prelu, torch_ext.prelu):
            x, w = s.input.clone().requires_grad_(), s.slope.clone().requires_grad_()
            replayed.append(torch.autograd.grad(function(x, w), x, s.grad_output)[0])
        replays.append(bits_equal(*replayed))
        errors = [slope_gradient_error(record) for record in (o, s)]
        bounds.append(errors[0] <= 1.0)
        share = (s.input <= 0).double().mean().item()
        branches.append(0.0 < share < 1.0 and s.grad_input.abs().sum().item() > 0.0)
        table.add_row(
            name,
            "×".join(map(str, s.input.shape)),
            f"{s.slope.min():.2f} … {s.slope.max():.2f}",
            f"{(s.slope < 0).double().mean():.0%}",
            f"{share:.0%}",
            *(mark(column[-1]) for column in (outputs, gradients, replays)),
            f"{errors[0]:.2f}  {errors[1]:.2f}",
        )
    console.print(table)
    slopes = torch.cat([s.slope for s in pytorch.values()])
    negative = (slopes < 0).double().mean().item()
    console.print(
        f"{len(pytorch)} PReLU layers, {slopes.numel()} trained slopes, {negative:.0%} negative.\n"
        "equal: the bits of the output, of the input gradient, and of the input gradient\n"
        "when PyTorch's and ours get the same x and g. error/bound: the largest error of the\n"
        "slope gradients against the exact sum (math.fsum), over 16·2⁻²⁴·Σ|x·g| + ½ ulp.",
        highlight=False,
    )
    checks.expect(len(pytorch) == len(ours) == 12, "12 PReLU layers took part in the step")
    checks.expect(
        all(branches), "every layer met inputs on both sides of 0 and gradients other than 0"
    )
    checks.expect(all(outputs), "outputs of all layers are bit-equal")
    checks.expect(all(gradients), "input gradients of all layers are bit-equal in the whole step")
    checks.expect(
        all(replays), "input gradients are bit-equal for the same x and g, layer by layer"
    )
    checks.expect(all(bounds), "slope gradients of all layers are within the bound")


def run(console: Console, output: Path, quick: bool) -> Checks:
    """Run part 1 and write `mtcnn.png` to `output`."""
    checks = Checks(console)
    photo = data.astronaut()
    mtcnn = load_mtcnn(keep_all=True, min_face_size=60 if quick else 20)
    console.print("MTCNN with its trained weights; photograph: scikit-image's 'astronaut', 512×512")

    pytorch_nets = {name: copy.deepcopy(getattr(mtcnn, name)) for name in STAGES}
    pytorch = detect(mtcnn, photo)
    report = torch_ext.replace_prelu(mtcnn)
    ours = detect(mtcnn, photo)
    console.print(f"replace_prelu swapped {len(report.swapped)} layers")
    print_faces(console, pytorch, ours)
    checks.expect(len(report.swapped) == 12, "replace_prelu swapped 12 layers")
    checks.expect(len(pytorch[0]) > 0, "the detector finds a face")
    checks.expect(same_detection(pytorch, ours), "boxes, probabilities and landmarks are identical")

    records: dict[str, dict[str, LayerRecord]] = {"pytorch": {}, "again": {}, "ours": {}}
    for name, side in track(STAGES.items(), "training steps", console=console, transient=True):
        crops = sample_crops(photo, pytorch[0][0], pytorch[2][0], side, 24 if quick else 96)
        swapped = copy.deepcopy(getattr(mtcnn, name))
        nets = {
            "pytorch": pytorch_nets[name],
            "again": copy.deepcopy(pytorch_nets[name]),
            "ours": swapped,
        }
        for kind, net in nets.items():
            records[kind].update(train_step(net, crops, name))
    # Without this control, a difference in the whole step could be a convolution's and not ours.
    checks.expect(
        all(
            bits_equal(r.grad_input, records["again"][n].grad_input)
            for n, r in records["pytorch"].items()
        ),
        "control: the step with nn.PReLU, repeated, gives the same bits",
    )
    compare_step(records["pytorch"], records["ours"], checks, console)

    torch_ext.restore_prelu(mtcnn)
    restored = all(type(m) is nn.PReLU for m in mtcnn.modules() if isinstance(m, nn.PReLU))
    again = detect(mtcnn, photo)
    checks.expect(
        restored and same_detection(pytorch, again),
        "restore_prelu gives nn.PReLU and its results back",
    )
    console.print(f"picture: {save_figure(photo, pytorch, ours, output / 'mtcnn.png')}")
    return checks

"""What torch_ext.ActivationMonitor adds to a training step: the same network with and without it.

    python benchmarks/monitor.py [--rounds N] [--only NAME] [--json FILE]

A step is forward, loss, backward and SGD. Copies of one network take turns in one process; figures
are medians of rounds, as multiples of the step without a monitor.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import records
import torch
from interleaving import Run, Timing, interleaved
from torch import Tensor, nn
from torch.nn import functional as F

from torch_ext import ActivationMonitor, PReLU

SAMPLE_SECONDS = 0.2
EVERY = (1, 10)  # observe each step, one in ten


def mlp(width: int, depth: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """`depth` hidden layers of one width, (N, width) to (N, 10)."""
    hidden = [part for _ in range(depth) for part in (nn.Linear(width, width), activation())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def cnn(activation: Callable[[int], nn.Module]) -> nn.Sequential:
    """Six 3x3 convolutions with batch statistics, (N, 3, 32, 32) to (N, 10)."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            activation(outputs),
        ]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


CASES: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "MLP 4x512, batch 128, ReLU": (lambda: mlp(512, 4, nn.ReLU), (128, 512)),
    "MLP 4x512, batch 128, PReLU": (lambda: mlp(512, 4, lambda: PReLU(512)), (128, 512)),
    "MLP 4x64, batch 32, ReLU": (lambda: mlp(64, 4, nn.ReLU), (32, 64)),
    "CNN 32x32, batch 64, ReLU": (
        lambda: cnn(lambda _: nn.ReLU(inplace=True)),
        (64, 3, 32, 32),
    ),
    "CNN 32x32, batch 64, PReLU": (lambda: cnn(PReLU), (64, 3, 32, 32)),
}


def training_step(model: nn.Module, input: Tensor, target: Tensor) -> Run:
    """One step, to be called again and again."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(input), target).backward()
        optimizer.step()

    return step


def measure(build: Callable[[], nn.Sequential], shape: tuple[int, ...], rounds: int) -> Timing:
    """Time the step without a monitor and with one that observes more or less often."""
    torch.manual_seed(0)
    model, input = build(), torch.randn(shape)
    target = torch.randint(0, 10, shape[:1])
    contenders = {"without": training_step(copy.deepcopy(model), input, target)}
    for every in EVERY:
        monitored = copy.deepcopy(model)
        ActivationMonitor(monitored, every=every)
        contenders[f"every {every}"] = training_step(monitored, input, target)
    return interleaved(contenders, rounds, sample_seconds=SAMPLE_SECONDS)


def main() -> int:
    """Print a line per network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds per network (%(default)s)")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    names = [f"every {every}" for every in EVERY]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; times that of a step without"
    )
    print(f"{'':30}{'step':>9}" + "".join(f"{name:>10}" for name in names))
    rows = []
    for name, (build, shape) in CASES.items():
        if arguments.only not in name:
            continue
        timing = measure(build, shape, arguments.rounds)
        ratios = {contender: timing.ratio(contender, "without") for contender in names}
        rows.append({"name": name, "seconds": timing.seconds, "ratios": ratios})
        print(
            f"{name:30}{timing.seconds['without'] * 1e3:6.2f} ms"
            + "".join(f"{ratio:10.3f}" for ratio in ratios.values())
            + ("  (disturbed)" if timing.disturbed else ""),
            flush=True,
        )
    if arguments.json:
        records.write({"rows": rows}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

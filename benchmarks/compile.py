"""Times models under torch.compile: PyTorch's, and with fused layers under each policy.

Inductor generates code for all of them. The model with PyTorch's modules is compiled twice, as `stock` and
as `again`: their ratio shows the noise of the machine. `auto`, `decompose` and `opaque` are the policies
of torch_ext.inductor, after replace_prelu and fuse_norm_prelu. Norms are modules in all models but the "call"
ones, so only `auto` fuses them; the latter call torch_ext.batch_norm_prelu, which `opaque` keeps whole. All take turns in one process, after their outputs were compared. Figures are
medians of rounds; ratios are the time with nn.PReLU divided by theirs (above 1: faster).
"""

import argparse
import copy
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import records
import torch
from interleaving import Timing, interleaved
from models import announced, build, inference, machine, monai_unet, mtcnn, training_step
from networks import IResNet, MobileFaceNet, conv_norm, spread_slopes
from torch import Tensor, nn
from torch._inductor.compile_fx import compile_fx

import torch_ext

SAMPLE_SECONDS = 0.1
TOLERANCE = (
    1e-3  # of the largest output: Inductor's loops round differently from kernels, norms more so
)
CONTENDERS = ("stock", "again", *torch_ext.inductor.POLICIES)


class Residual(nn.Module):
    """Two convolutions with a skip around them; PReLU inside and at the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolution(channels), nn.PReLU(channels), *convolution(channels)
        )
        self.prelu = nn.PReLU(channels)

    def forward(self, input: Tensor) -> Tensor:
        return self.prelu(input + self.body(input))


def convolution(channels: int) -> tuple[nn.Module, nn.Module]:
    """A 3x3 convolution with batch normalization."""
    return nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)


def conv_bn_prelu_conv(channels: int, slopes: int) -> nn.Module:
    """The building block of most PReLU networks for images."""
    return nn.Sequential(
        *convolution(channels), nn.PReLU(slopes), nn.Conv2d(channels, channels, 3, padding=1)
    )


def conv_prelu_conv(channels: int) -> nn.Module:
    """Without normalization, as in networks for super-resolution."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.PReLU(channels),
        nn.Conv2d(channels, channels, 3, padding=1),
    )


def mlp(width: int, slopes: int) -> nn.Module:
    """Three linear layers."""
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(width, width), nn.PReLU(slopes)]
    return nn.Sequential(*layers, nn.Linear(width, 16))


class Around(nn.Module):
    """A norm and PReLU next to operations that Inductor fuses with them."""

    def __init__(self, channels: int, before: bool, after: bool) -> None:
        super().__init__()
        self.pair = pair(channels)
        self.before, self.after = before, after

    def forward(self, input: Tensor) -> Tensor:
        output = self.pair(input.tanh() if self.before else input)
        return output + input if self.after else output


class Called(nn.Module):
    """Norm and PReLU as one call, if it is torch_ext's PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.prelu = nn.BatchNorm2d(channels), nn.PReLU(channels)

    def forward(self, input: Tensor) -> Tensor:
        norm, slope = self.norm, self.prelu.weight
        statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        if isinstance(self.prelu, torch_ext.PReLU):
            return torch_ext.batch_norm_prelu(input, slope, *statistics, self.training)
        z = nn.functional.batch_norm(input, *statistics, self.training)
        return nn.functional.prelu(z, slope)


def pair(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.PReLU(channels))


def instance_pair(channels: int) -> nn.Module:
    """As MONAI's: a dropout of nothing between, and one slope."""
    return nn.Sequential(nn.InstanceNorm3d(channels), nn.Dropout(0.0), nn.PReLU())


def depthwise(channels: int) -> nn.Module:
    """MobileFaceNet's bottleneck."""
    return nn.Sequential(
        *conv_norm(channels, channels),
        *conv_norm(channels, channels, 3, groups=channels),
        *conv_norm(channels, channels, act=False),
    )


@dataclass(frozen=True)
class Case:
    """A model and the shape of its input, in training and in inference."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    packaged: bool = False


CASES = (
    Case("conv-BN-PReLU-conv 28x28", lambda: conv_bn_prelu_conv(32, 32), (16, 32, 28, 28)),
    Case("conv-BN-PReLU-conv 112x112", lambda: conv_bn_prelu_conv(8, 8), (8, 8, 112, 112)),
    Case("conv-BN-PReLU(1)-conv", lambda: conv_bn_prelu_conv(32, 1), (16, 32, 28, 28)),
    Case("conv-PReLU-conv", lambda: conv_prelu_conv(16), (8, 16, 56, 56)),
    Case("residual block", lambda: Residual(32), (16, 32, 28, 28)),
    Case("MLP", lambda: mlp(256, 256), (2048, 256)),
    Case("MLP, one slope", lambda: mlp(256, 1), (2048, 256)),
    Case("MLP, small", lambda: mlp(64, 64), (32, 64)),
    Case("MTCNN PNet", mtcnn("PNet"), (384, 3, 12, 12), True),
    Case("MTCNN RNet", mtcnn("RNet"), (256, 3, 24, 24), True),
    Case("MTCNN ONet", mtcnn("ONet"), (64, 3, 48, 48), True),
    # Layers alone, where nothing hides the difference.
    Case("PReLU", lambda: nn.PReLU(64), (16, 64, 28, 28)),
    Case("PReLU, rows", lambda: nn.PReLU(512), (1024, 512)),
    Case("BN-PReLU", lambda: pair(64), (16, 64, 28, 28)),
    Case("BN-PReLU 4x8x7x7", lambda: pair(8), (4, 8, 7, 7)),
    Case("BN-PReLU 4x32x14x14", lambda: pair(32), (4, 32, 14, 14)),
    Case("BN-PReLU 64x64x56x56", lambda: pair(64), (64, 64, 56, 56)),
    Case("BN-PReLU 32x512x7x7", lambda: pair(512), (32, 512, 7, 7)),
    Case("BN-PReLU, call", lambda: Called(64), (16, 64, 28, 28)),
    Case("BN-PReLU 64x64x56x56, call", lambda: Called(64), (64, 64, 56, 56)),
    Case("tanh-BN-PReLU", lambda: Around(64, True, False), (32, 64, 56, 56)),
    Case("BN-PReLU-add", lambda: Around(64, False, True), (32, 64, 56, 56)),
    Case("IN-PReLU 16x16x16", lambda: instance_pair(16), (2, 16, 16, 16, 16)),
    Case("IN-PReLU 48x48x48", lambda: instance_pair(32), (2, 32, 48, 48, 48)),
    Case("depthwise block 56x56", lambda: depthwise(64), (8, 64, 56, 56)),
    Case("depthwise block 14x14", lambda: depthwise(128), (16, 128, 14, 14)),
    Case("MobileFaceNet", MobileFaceNet, (8, 3, 112, 112)),
    Case("IResNet-18", lambda: IResNet((2, 2, 2, 2)), (4, 3, 112, 112)),
    Case("MONAI UNet 3-D", monai_unet, (1, 1, 64, 64, 64), True),
    Case("tanh-PReLU", lambda: nn.Sequential(nn.Tanh(), nn.PReLU(64)), (16, 64, 28, 28)),
)


@dataclass
class Row:
    """What was measured of one model, training or inference."""

    name: str
    kind: str
    shape: tuple[int, ...]
    timing: Timing

    @property
    def ratios(self) -> dict[str, float]:
        return {name: self.timing.ratio("stock", name) for name in CONTENDERS[1:]}


def compiled(model: nn.Module, contender: str) -> nn.Module:
    """A copy with the contender's layers, to be compiled at its first call."""
    model = copy.deepcopy(model)
    if contender in torch_ext.inductor.POLICIES:
        torch_ext.replace_prelu(model)
        torch_ext.fuse_norm_prelu(model)

    # A separate backend; else Dynamo would use what it compiled for another contender.
    def backend(graph_module: torch.fx.GraphModule, example_inputs: list[Tensor]) -> object:
        return compile_fx(graph_module, example_inputs)

    return torch.compile(model, backend=backend, fullgraph=True)


def measure(case: Case, model: nn.Module, kind: str, rounds: int) -> Row:
    """Compiles all contenders, compares their outputs, and times them in turn."""
    torch._dynamo.reset()  # what was compiled for other rows would be asked for first in each call
    spread_slopes(model)
    torch.manual_seed(0)
    # Its gradient accumulates from step to step: one more pass, the same for all contenders.
    input = torch.randn(case.shape, requires_grad=kind == "training")
    prepare = training_step if kind == "training" else inference
    runs, outputs = {}, {}
    for contender in CONTENDERS:
        if contender in torch_ext.inductor.POLICIES:
            torch_ext.inductor.set_compile(contender)
        runs[contender] = prepare(compiled(model, contender), input)
        outputs[contender] = runs[contender]()
    for contender, results in outputs.items():
        for result, stock in zip(results, outputs["stock"], strict=True):
            if not (result - stock).abs().max() <= TOLERANCE * stock.abs().max():
                raise SystemExit(f"{case.name}, {kind}: {contender} differs; nothing was timed")
    return Row(
        case.name, kind, case.shape, interleaved(runs, rounds, sample_seconds=SAMPLE_SECONDS)
    )


def table(rows: list[Row]) -> str:
    """One line for each model and kind."""
    head = "".join(f"{name:>11}" for name in CONTENDERS[1:])
    lines = [f"{'model':28}{'':11}{'PyTorch ms':>11}{head}"]
    for row in rows:
        ratios = "".join(f"{ratio:11.2f}" for ratio in row.ratios.values())
        milliseconds = row.timing.seconds["stock"] * 1e3
        mark = "  disturbed" if row.timing.disturbed else ""
        lines.append(f"{row.name:28}{row.kind:11}{milliseconds:11.3f}{ratios}{mark}")
    worst = min(rows, key=lambda row: row.ratios["auto"])
    lines.append(f"worst of auto: {worst.ratios['auto']:.2f} ({worst.name}, {worst.kind})")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (%(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="models whose name has TEXT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser.parse_args()


def main() -> None:
    """Measures, prints the table, and writes the figures."""
    arguments = parse_arguments()
    torch._dynamo.config.recompile_limit = 1000  # one code object, compiled for every contender
    torch._inductor.config.force_disable_caches = True
    here = machine()
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    for case in announced([c for c in CASES if arguments.only.lower() in c.name.lower()]):
        model = build(case)
        if isinstance(model, str):
            skipped[case.name] = model
            continue
        for kind in ("training", "inference"):
            rows.append(measure(case, model, kind, arguments.rounds))
    print(
        f"torch.compile, torch {here['torch']}, {here['processor']}, {here['threads']} threads, "
        f"float32; medians of {arguments.rounds} interleaved rounds; ratios are the time "
        f"with nn.PReLU divided by theirs\n"
    )
    print(table(rows))
    for name, reason in skipped.items():
        print(f"skipped: {name}: {reason}")
    if arguments.json:
        record = {
            "machine": here,
            "rows": [asdict(row) | {"ratios": row.ratios} for row in rows],
            "skipped": skipped,
        }
        records.write(record, arguments.json)


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    main()

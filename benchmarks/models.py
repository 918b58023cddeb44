"""Times whole models with nn.PReLU, after replace_prelu, and after fuse_norm_prelu as well.

A training step is forward, mean squared error against random targets, and backward into fresh
gradients; no optimizer. Inference is eval mode under torch.no_grad, where norms are fused (under
torch.inference_mode they are not). Copies of one model get the same input; they are compared
before anything is timed, and take turns in one process. Figures are medians of rounds.
"""

import argparse
import copy
import importlib.metadata
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import memory
import records
import torch
from interleaving import Timing, interleaved
from networks import FSRCNN, IResNet, MobileFaceNet, slopes, spread_slopes
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, record_function

import torch_ext

SAMPLE_SECONDS = 0.2  # calls are repeated until a sample takes that long
WIDTH = 0.03  # of the 95 % interval of a ratio, wanted
GRADIENT_TOLERANCE = 1e-5  # of the norm: slope gradients are summed in another order
# With fused norms values differ by rounding, in each layer, and those next to zero change sides.
FUSED_TOLERANCE = 1e-4  # of the norm of an output
FUSED_GRADIENT_TOLERANCE = 0.05
# The profiler's names for a PReLU, each including all that it calls. For the backward this is the
# engine's whole evaluation of the node, because the engine sums the slope's gradient of PyTorch's
# operator after the operator itself.
FORWARDS = ("aten::prelu", "torch_ext::prelu")
BACKWARD = "autograd::engine::evaluate_function: "

Shape = tuple[int, ...]
Models = dict[str, nn.Module]
Run = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """A model, the shapes of its input, and whether it comes from a package that may be missing."""

    name: str
    build: Callable[[], nn.Module]
    training: Shape
    inference: Shape
    packaged: bool = False


@dataclass
class Measured:
    """A training step or an inference: seconds for each call, and PReLU's share of them.

    In the records "stock" is the model with PyTorch's nn.PReLU, "ours" the one with torch_ext's, "fused"
    (if it has pairs) the one with norms fused as well.
    """

    timing: Timing
    stock_prelu_share: float
    ours_prelu_share: float

    @property
    def cells(self) -> str:
        """Milliseconds of PyTorch's, how many times as fast the others are, PReLU's share of two."""
        stock = self.timing.seconds["stock"] * 1e3
        shares = f"{self.stock_prelu_share:9.1%}{self.ours_prelu_share:7.1%}"
        pairs = [("stock", "ours"), ("stock", "fused"), ("ours", "fused")][
            : 3 if self.has_fused else 1
        ]
        ratios = "".join(
            f"{self.timing.ratio(*pair):7.2f}±{self.timing.uncertainty(*pair):.2f}"
            for pair in pairs
        )
        return f"{stock:9.1f}{ratios:36}{shares}"

    @property
    def has_fused(self) -> bool:
        return "fused" in self.timing.seconds


@dataclass
class Row:
    """What was measured of one model."""

    name: str
    training_shape: Shape
    inference_shape: Shape
    parameters: int
    prelus: int
    skipped_prelus: int
    fused_norms: int
    gradient_difference: float  # see there
    saved_bytes: dict[str, int]  # held between forward and backward
    training: Measured
    inference: Measured


def monai_unet() -> nn.Module:
    """MONAI's residual U-Net for volumes; PReLU with one slope is its default activation."""
    from monai.networks.nets import UNet

    channels, strides = (16, 32, 64, 128, 256), (2, 2, 2, 2)
    return UNet(
        3, in_channels=1, out_channels=2, channels=channels, strides=strides, num_res_units=2
    )


def compact() -> nn.Module:
    """Real-ESRGAN's small generator (SRVGGNetCompact) as in realesr-animevideov3: 4 times as large."""
    from spandrel.architectures.Compact import Compact

    return Compact(num_in_ch=3, num_out_ch=3, num_feat=64, num_conv=16, upscale=4)


def pytorchcv(name: str) -> Callable[[], nn.Module]:
    """A network for segmentation; attributes of its blocks decide whether norm and PReLU are called."""

    def build() -> nn.Module:
        from pytorchcv.model_provider import get_model

        return get_model(name, num_classes=19)

    return build


def mtcnn(stage: str) -> Callable[[], nn.Module]:
    """A network of MTCNN with the trained weights that facenet-pytorch packages."""

    def build() -> nn.Module:
        from facenet_pytorch.models import mtcnn

        return getattr(mtcnn, stage)()

    return build


CASES = (
    Case("IResNet-18", lambda: IResNet((2, 2, 2, 2)), (8, 3, 112, 112), (8, 3, 112, 112)),
    Case("IResNet-50", lambda: IResNet((3, 4, 14, 3)), (8, 3, 112, 112), (8, 3, 112, 112)),
    Case("MobileFaceNet", MobileFaceNet, (8, 3, 112, 112), (8, 3, 112, 112)),
    Case("ENet", pytorchcv("enet_cityscapes"), (2, 3, 256, 256), (1, 3, 256, 256), True),
    Case("DABNet", pytorchcv("dabnet_cityscapes"), (2, 3, 256, 256), (1, 3, 256, 256), True),
    Case("FSRCNN x4", FSRCNN, (16, 1, 32, 32), (1, 1, 180, 320)),
    Case("Real-ESRGAN compact", compact, (4, 3, 64, 64), (1, 3, 180, 320), True),
    Case("MONAI UNet 3-D", monai_unet, (1, 1, 64, 64, 64), (1, 1, 96, 96, 96), True),
    Case("MTCNN PNet", mtcnn("PNet"), (384, 3, 12, 12), (1, 3, 307, 307), True),
    Case("MTCNN RNet", mtcnn("RNet"), (384, 3, 24, 24), (128, 3, 24, 24), True),
    Case("MTCNN ONet", mtcnn("ONet"), (384, 3, 48, 48), (32, 3, 48, 48), True),
)


def outputs_of(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """A model's outputs, as a tuple even if there is one."""
    torch.manual_seed(0)  # the same active dropouts for all
    outputs = model(x)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def training_step(model: nn.Module, x: Tensor) -> Run:
    """Forward, loss and backward; the gradients are left in the parameters."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        shapes = [output.shape for output in outputs_of(model.eval(), x)]
        targets = [torch.randn(shape, generator=generator) for shape in shapes]

    def run() -> tuple[Tensor, ...]:
        model.zero_grad()
        outputs = outputs_of(model, x)
        torch.stack([functional.mse_loss(*pair) for pair in zip(outputs, targets)]).sum().backward()
        return outputs

    model.train()
    return run


def inference(model: nn.Module, x: Tensor) -> Run:
    """Forward alone."""
    model.eval()

    @torch.no_grad()
    def run() -> tuple[Tensor, ...]:
        return outputs_of(model, x)

    return run


def gradient_difference(models: Models, ours: str = "ours") -> float:
    """The norm of the difference as a share of the norm: the larger of slopes and all the rest."""

    def gradients(model: nn.Module) -> tuple[Tensor, Tensor]:
        own = {id(slope) for slope in slopes(model)}
        split: tuple[list[Tensor], list[Tensor]] = ([], [])
        for parameter in model.parameters():
            if parameter.grad is not None:
                split[id(parameter) in own].append(parameter.grad.flatten())
        return torch.cat(split[0]), torch.cat(split[1])

    pairs = zip(gradients(models["stock"]), gradients(models[ours]), strict=True)
    return max(float((other - stock).norm() / stock.norm()) for stock, other in pairs)


def check_outputs(what: str, runs: dict[str, Run]) -> None:
    """Ends the program unless outputs are equal to the bit (apart from the sign of zero), those with fused
    norms up to rounding."""
    stock, *others = (run() for run in runs.values())
    if not all(map(torch.equal, stock, others[0])):
        raise SystemExit(f"{what}: outputs differ from those with nn.PReLU; nothing was timed")
    for fused in others[1:]:
        for one, other in zip(stock, fused, strict=True):
            if not (error := float((one - other).norm() / one.norm())) <= FUSED_TOLERANCE:
                raise SystemExit(f"{what}: with fused norms, outputs differ by {error:.1e}")


def check_gradients(what: str, models: Models) -> float:
    """Ends the program if gradients differ by more than rounding; returns the difference without norms."""
    found = {name: gradient_difference(models, name) for name in models if name != "stock"}
    if not found["ours"] <= GRADIENT_TOLERANCE:
        raise SystemExit(
            f"{what}: gradients differ from those with nn.PReLU by {found['ours']:.1e}"
        )
    if not found.get("fused", 0.0) <= FUSED_GRADIENT_TOLERANCE:
        raise SystemExit(f"{what}: with fused norms, gradients differ by {found['fused']:.1e}")
    return found["ours"]


def prelu_share(run: Run, calls: int) -> float:
    """The share of the time that is spent in PReLU, forward and backward, by the profiler."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(calls):
            with record_function("whole call"):
                run()
    totals = {event.key: event.cpu_time_total for event in profiler.key_averages()}
    prelu = sum(
        microseconds
        for name, microseconds in totals.items()
        if name in FORWARDS or (name.startswith(BACKWARD) and "prelu" in name.lower())
    )
    return float(prelu / totals["whole call"])


def timed(runs: dict[str, Run], rounds: int, patience_seconds: float) -> Measured:
    """Times the models in turns, and lets the profiler find PReLU's share of each."""
    timing = interleaved(runs, rounds, None, SAMPLE_SECONDS, WIDTH, patience_seconds)
    calls = max(1, round(SAMPLE_SECONDS / timing.seconds["stock"]))
    return Measured(timing, *(prelu_share(runs[name], calls) for name in ("stock", "ours")))


def contenders(model: nn.Module, example: Tensor) -> tuple[Models, torch_ext.SwapReport, int]:
    """The model and its changed copies, what replace_prelu reported, and how many norms are fused."""
    models = {"stock": model, "ours": copy.deepcopy(model)}
    swap = torch_ext.replace_prelu(models["ours"])
    fused = copy.deepcopy(models["ours"])
    names = torch_ext.fuse_norm_prelu(fused, example).swapped
    norms = sum(not isinstance(fused.get_submodule(name), nn.PReLU) for name in names)
    return models | ({"fused": fused} if norms else {}), swap, norms


def measure(case: Case, model: nn.Module, rounds: int, patience_seconds: float) -> Row:
    """Compares, then times, the training step and the inference of one model."""
    spread_slopes(model)
    x = torch.randn(case.inference)
    models, swap, norms = contenders(model, x)
    passes = {name: inference(copied, x) for name, copied in models.items()}
    check_outputs(f"{case.name}, inference", passes)
    forward = timed(passes, rounds, patience_seconds)

    # Last, because it changes the running statistics of batch norms, and not equally often.
    x = torch.randn(case.training)
    steps = {name: training_step(copied, x) for name, copied in models.items()}
    check_outputs(f"{case.name}, training", steps)
    difference = check_gradients(case.name, models)
    saved = {
        name: memory.saved_bytes(lambda copied=copied: outputs_of(copied, x))
        for name, copied in models.items()
    }
    return Row(
        case.name,
        case.training,
        case.inference,
        sum(parameter.numel() for parameter in model.parameters()),
        len(swap.swapped),
        len(swap.skipped),
        norms,
        difference,
        saved,
        timed(steps, rounds, patience_seconds),
        forward,
    )


def build(case: Case) -> nn.Module | str:
    """The model, or why it is not available: a package is missing or does not fit."""
    torch.manual_seed(0)
    try:
        return case.build()
    except Exception as error:  # a package may raise anything
        if not case.packaged:
            raise
        return f"{type(error).__name__}: {error}"


def announced(cases: list[Case]) -> Iterator[Case]:
    """The cases; says on stderr which one it is, with a bar on a terminal."""
    if sys.stderr.isatty() and find_spec("tqdm"):
        from tqdm import tqdm

        with tqdm(cases, leave=False, unit="model") as bar:
            for case in bar:
                bar.set_description(case.name)
                yield case
        return
    for number, case in enumerate(cases, 1):
        print(f"[{number}/{len(cases)}] {case.name}", file=sys.stderr, flush=True)
        yield case


def table(rows: list[Row]) -> str:
    """One line for each model."""
    kinds = f"{'training step':>61}{'inference':>61}{'saved for the':>20}"
    groups = f"{'ms':>9}{'times as fast':>36}{'in PReLU':>16}" * 2 + f"{'backward, MB':>20}"
    heads = (
        f"{'PyTorch':>9}{'ours':>12}{'fused':>12}{'fused/ours':>12}{'PyTorch':>9}{'ours':>7}" * 2
    )
    heads += f"{'PyTorch':>13}{'fused':>7}"
    lines = [f"{'':32}{kinds}", f"{'':32}{groups}", f"{'model':20}{'PReLU':>6}{'norms':>6}{heads}"]
    for row in rows:
        saved = f"{row.saved_bytes['stock'] / 1e6:13.1f}"
        if "fused" in row.saved_bytes:
            saved += f"{row.saved_bytes['fused'] / row.saved_bytes['stock']:7.0%}"
        cells = f"{row.training.cells}{row.inference.cells}{saved}"
        lines.append(f"{row.name:20}{row.prelus:6}{row.fused_norms:6}{cells}")
    for what in ("training", "inference"):
        timings = [getattr(row, what).timing for row in rows if row.fused_norms]
        if timings:
            mean = statistics.geometric_mean(t.ratio("ours", "fused") for t in timings)
            lines.append(f"fused/ours, {what}: geometric mean {mean:.2f}")
    for row in rows:
        if row.skipped_prelus:
            lines.append(f"{row.name}: {row.skipped_prelus} PReLU could not be replaced")
        for what, measured in (("training step", row.training), ("inference", row.inference)):
            if (width := measured.timing.width) > WIDTH:
                rounds = measured.timing.rounds
                lines.append(f"{row.name}, {what}: interval {width:.1%} wide after {rounds} rounds")
    lines.append(
        "times as fast: as PyTorch's modules, ± half the 95 % interval; ours with replace_prelu, fused with"
        " norms as well, fused/ours against replace_prelu alone."
    )
    lines.append("in PReLU: PReLU's share of the time.")
    return "\n".join(lines)


def skipped_notes(skipped: dict[str, str]) -> str:
    """What was skipped and why, and how to install it without replacing torch."""
    version = torch.__version__.partition("+")[0]
    return "\n".join(
        [
            *(f"skipped: {name}: {reason}" for name, reason in skipped.items()),
            "to install them:",
            f'  pip install -r benchmarks/models-requirements.txt "torch=={version}"',
            "  pip install --no-deps facenet-pytorch==2.6.0",
        ]
    )


def machine() -> dict[str, object]:
    """Where the figures were made."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    packages = ("monai", "spandrel", "facenet-pytorch", "pytorchcv", "torchvision")
    found = {d.name: d.version for d in importlib.metadata.distributions() if d.name in packages}
    return {
        "processor": next((s.partition(": ")[2] for s in lines if s.startswith("model name")), ""),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "torch_ext": torch_ext.build_info(),
        "packages": found,
    }


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (%(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        help="more rounds for at most so long, until ratios are known to 3 %% (%(default)s)",
    )
    parser.add_argument("--threads", type=int, help="threads of torch (its own choice)")
    parser.add_argument("--only", default="", metavar="TEXT", help="models whose name has TEXT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser.parse_args()


def main() -> None:
    """Measures, prints the table, and writes the figures."""
    arguments = parse_arguments()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports that there is no GPU
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    here = machine()
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    for case in announced([c for c in CASES if arguments.only.lower() in c.name.lower()]):
        model = build(case)
        if isinstance(model, str):
            skipped[case.name] = model
        else:
            rows.append(measure(case, model, arguments.rounds, arguments.seconds))

    print(
        f"torch {here['torch']}, {here['processor']}, {here['threads']} threads, "
        f"{here['capability']}, float32; medians of interleaved rounds; "
        f"load before: {here['load_average']:.1f}\n"
    )
    if rows:
        print(table(rows))
    if skipped:
        print(skipped_notes(skipped))
    if arguments.json:
        record = {"machine": here, "rows": [asdict(row) for row in rows], "skipped": skipped}
        records.write(record, arguments.json)


if __name__ == "__main__":
    main()

"""What an ActivationMonitor has found: the figures, defined, and their presentation as a table, as
JSON and in TensorBoard. The picture is in monitor_plot.py."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["ActivationReport", "GradientNorm", "LayerStatistics"]


class GradientNorm(NamedTuple):
    """L2 norms of the gradients at one end of a layer: `total` is the sum of the `finite` ones."""

    total: float
    finite: int
    infinite: int  # or NaN

    @property
    def mean(self) -> float | None:
        """Over the finite ones; None if no gradient came, NaN if none was finite."""
        if self.finite:
            return self.total / self.finite
        return math.nan if self.infinite else None


@dataclass(frozen=True)
class LayerStatistics:
    """One call of one module. Tensors have shape (channels) and are on the CPU.

    Attributes:
        name, call, kind: of the module, which of its calls in a forward (from 1), its class.
        window: how many steps without a positive input make a unit silent.
        steps: observed steps since the last reset.
        observed: observed steps since the monitor was made.
        elements: inputs per channel in `steps`; `positive` of them were > 0.
        silent_steps: observed steps since the last positive input.
        zero_slope: inputs in `steps` that met a slope of 0; `zero_slope_positive` of them were > 0.
        slope, start_slope: at the time of the report, and when the monitor was made; None where
            what the module does is not known.
        grad_output, grad_input: gradient norms where the gradient enters and leaves the layer.
    """

    name: str
    call: int
    kind: str
    window: int
    steps: int
    observed: int
    elements: int
    positive: Tensor
    silent_steps: Tensor
    zero_slope: Tensor
    zero_slope_positive: Tensor
    slope: Tensor | None
    start_slope: Tensor | None
    grad_output: GradientNorm
    grad_input: GradientNorm

    @property
    def label(self) -> str:
        """The name, with the number of the call from the second on."""
        return (self.name or "(root)") + (f" call {self.call}" if self.call > 1 else "")

    @property
    def channels(self) -> int:
        """The number of units."""
        return self.positive.numel()

    @property
    def non_positive_by_channel(self) -> Tensor:
        """Share of inputs that are not > 0; NaN where there were none."""
        return 1 - self.positive.double() / self.elements

    @property
    def non_positive(self) -> float | None:
        """The same over all channels."""
        return self.non_positive_by_channel.mean().item() if self.elements else None

    @property
    def is_silent(self) -> Tensor | None:
        """Per unit: no positive input in the last `window` steps. None before there were as many."""
        return self.silent_steps >= self.window if self.observed >= self.window else None

    @property
    def is_dead(self) -> Tensor | None:
        """Per unit: silent, and its slope is 0. None where either is not known."""
        if self.is_silent is None or self.slope is None:
            return None
        return self.is_silent & (self.slope == 0)

    @property
    def silent(self) -> int | None:
        """The number of silent units."""
        return None if self.is_silent is None else int(self.is_silent.sum())

    @property
    def dead(self) -> int | None:
        """The number of dead units."""
        return None if self.is_dead is None else int(self.is_dead.sum())

    @property
    def sparsity_by_channel(self) -> Tensor:
        """Share of zero outputs where the slope was 0; NaN where it never was."""
        return 1 - self.zero_slope_positive.double() / self.zero_slope

    @property
    def sparsity(self) -> float | None:
        """The same over all channels."""
        total = int(self.zero_slope.sum())
        return 1 - int(self.zero_slope_positive.sum()) / total if total else None

    @property
    def drift_by_channel(self) -> Tensor | None:
        """How far each slope is from where it started."""
        if self.slope is None or self.start_slope is None:
            return None
        return self.slope - self.start_slope

    @property
    def drift(self) -> float | None:
        """The mean distance of the slopes from where they started."""
        drift = self.drift_by_channel
        return None if drift is None else drift.abs().mean().item()

    def to_dict(self) -> dict[str, Any]:
        """The figures; those that are not known are None."""
        return {
            "name": self.name,
            "call": self.call,
            "kind": self.kind,
            "channels": self.channels,
            "steps": self.steps,
            "elements_per_channel": self.elements,
            "non_positive": _jsonable(self.non_positive),
            "silent": self.silent,
            "dead": self.dead,
            "sparsity": _jsonable(self.sparsity),
            "slope_mean": _jsonable(None if self.slope is None else self.slope.mean().item()),
            "slope_drift": _jsonable(self.drift),
            "grad_output_norm": _jsonable(self.grad_output.mean),
            "grad_output_not_finite": self.grad_output.infinite,
            "grad_input_norm": _jsonable(self.grad_input.mean),
            "grad_input_not_finite": self.grad_input.infinite,
            "by_channel": {
                "non_positive": _known(self.non_positive_by_channel),
                "silent_steps": self.silent_steps.tolist(),
                "sparsity": _known(self.sparsity_by_channel),
                "slope": None if self.slope is None else _jsonable(self.slope.tolist()),
                "slope_drift": _jsonable(
                    None if self.drift_by_channel is None else self.drift_by_channel.tolist()
                ),
            },
        }


@dataclass
class ActivationReport:
    """What a monitor had found at one time; ``print`` shows the table.

    Attributes:
        layers: in the order of the model; a module has an entry for each call in a forward.
        not_called: monitored modules that were not called in training mode.
        window, every: as given to the monitor.
        processes: how many processes' figures these are.
    """

    layers: list[LayerStatistics]
    not_called: list[str] = field(default_factory=list)
    window: int = 100
    every: int = 1
    processes: int = 1

    @classmethod
    def joined(cls, reports: Sequence["ActivationReport"]) -> "ActivationReport":
        """The reports of several processes with the same model as one."""
        by_row: dict[tuple[str, int, int], list[LayerStatistics]] = {}
        for report in reports:
            for layer in report.layers:
                by_row.setdefault((layer.name, layer.call, layer.channels), []).append(layer)
        called = {name for name, _, _ in by_row}
        return replace(
            reports[0],
            layers=[_joined(layers) for layers in by_row.values()],
            not_called=[name for name in reports[0].not_called if name not in called],
            processes=len(reports),
        )

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """A table with one line per layer. A dash stands for what is not known or does not apply."""
        rows = [_HEADINGS, *(_cells(layer) for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self._legend()])

    def _legend(self) -> list[str]:
        steps = sorted({layer.steps for layer in self.layers})
        seen = " to ".join(str(n) for n in dict.fromkeys((steps[0], steps[-1]))) if steps else "no"
        every = f", one in {self.every}" if self.every > 1 else ""
        processes = f", {self.processes} processes" if self.processes > 1 else ""
        lines = [
            f"{seen} steps observed{every}{processes}",
            f"silent: no positive input in the last {self.window} steps; dead: silent, slope 0",
        ]
        if any(layer.silent is None for layer in self.layers):
            lines.append(f"silent and dead are not known before {self.window} steps were observed")
        if self.not_called:
            names = ", ".join(name or "(root)" for name in self.not_called)
            lines.append(f"not called in training mode, or compiled before: {names}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, strings and numbers, for ``json.dumps``.

        What is not known is None; numbers that JSON does not have are the strings "nan", "inf" and
        "-inf", which ``float`` reads.
        """
        return {
            "window": self.window,
            "every": self.every,
            "processes": self.processes,
            "not_called": list(self.not_called),
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def write(self, writer: Any, step: int, prefix: str = "activations") -> None:
        """Scalars and, where there are channels to compare, histograms.

        Args:
            writer: a ``torch.utils.tensorboard.SummaryWriter``.
            step: the global step to write them under.
            prefix: tags are ``prefix/figure/layer``.
        """
        for layer in self.layers:
            for name, value in _scalars(layer).items():
                if value is not None:
                    writer.add_scalar(f"{prefix}/{name}/{layer.label}", value, step)
            for name, values in _distributions(layer).items():
                if values is not None and values.numel() > 1 and values.isfinite().all():
                    writer.add_histogram(f"{prefix}/{name}/{layer.label}", values, step)

    def plot(self, path: Any = None) -> Any:
        """Non-positive inputs, silent units, slopes and gradient norms, layer by layer.

        Args:
            path: where to save the picture, if it is to be; the suffix chooses the format.

        Returns:
            A ``matplotlib.figure.Figure`` that belongs to no window or backend.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        try:
            from torch_ext.monitor_plot import draw
        except ImportError as error:
            raise ImportError(
                f"plot() needs a package that is missing ({error}): pip install torch_ext[plot]"
            ) from error
        figure = draw(self)
        if path is not None:
            figure.savefig(path)
        return figure


_HEADINGS = [
    *("layer", "kind", "units", "non-positive", "silent", "dead", "sparsity"),
    *("slope", "drift", "grad out", "grad in"),
]


def _cells(layer: LayerStatistics) -> list[str]:
    return [
        layer.label,
        layer.kind,
        str(layer.channels),
        _shown(layer.non_positive, ".1%"),
        _shown(layer.silent, "d"),
        _shown(layer.dead, "d"),
        _shown(layer.sparsity, ".1%"),
        _range(layer.slope),
        _shown(layer.drift if layer.kind == "PReLU" or layer.drift else None, ".3g"),
        _shown(layer.grad_output.mean, ".2e"),
        _shown(layer.grad_input.mean, ".2e"),
    ]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _range(values: Tensor | None) -> str:
    if values is None:
        return "-"
    low, high = f"{values.min().item():.3g}", f"{values.max().item():.3g}"
    return low if low == high else f"{low} to {high}"


def _scalars(layer: LayerStatistics) -> dict[str, float | None]:
    def share(count: int | None) -> float | None:
        return None if count is None else count / layer.channels

    return {
        "non_positive": layer.non_positive,
        "silent": share(layer.silent),
        "dead": share(layer.dead),
        "sparsity": layer.sparsity,
        "slope_mean": None if layer.slope is None else layer.slope.mean().item(),
        "slope_drift": layer.drift,
        "grad_output_norm": layer.grad_output.mean,
        "grad_input_norm": layer.grad_input.mean,
    }


def _distributions(layer: LayerStatistics) -> dict[str, Tensor | None]:
    return {
        "non_positive_by_channel": layer.non_positive_by_channel,
        "slope_by_channel": layer.slope,
    }


def _joined(layers: Sequence[LayerStatistics]) -> LayerStatistics:
    """The same row in several processes, whose slopes are the same and whose data are not."""

    def total(tensors: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(tensors)).sum(0)

    def norms(each: Sequence[GradientNorm]) -> GradientNorm:
        totals, finites, infinites = zip(*each, strict=True)
        return GradientNorm(sum(totals), sum(finites), sum(infinites))

    return replace(
        layers[0],
        steps=max(layer.steps for layer in layers),
        observed=max(layer.observed for layer in layers),
        elements=sum(layer.elements for layer in layers),
        positive=total(layer.positive for layer in layers),
        silent_steps=torch.stack([layer.silent_steps for layer in layers]).amin(0),
        zero_slope=total(layer.zero_slope for layer in layers),
        zero_slope_positive=total(layer.zero_slope_positive for layer in layers),
        grad_output=norms([layer.grad_output for layer in layers]),
        grad_input=norms([layer.grad_input for layer in layers]),
    )


def _known(values: Tensor) -> list[Any] | None:
    """None for channels without data, which are NaN; None alone if there are only such."""
    shares = [None if math.isnan(value) else value for value in values.tolist()]
    return None if all(share is None for share in shares) else shares


def _jsonable(value: Any) -> Any:
    if isinstance(value, list):
        return [_jsonable(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

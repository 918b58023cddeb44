"""Presents the figures of an ActivationMonitor as a table, as JSON and in TensorBoard.
monitor_layer.py defines the figures, monitor_plot.py draws the picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from torch_ext.monitor_layer import LayerStatistics, joined

__all__ = ["ActivationReport"]


@dataclass
class ActivationReport:
    """The figures of a monitor at one time; ``print`` shows them as a table.

    Attributes:
        layers: in the order of the model, with an entry for each call of a module in a forward.
        not_called: monitored modules that were not called in training mode.
        window, every: as given to the monitor.
        processes: the number of processes that the figures are of.
    """

    layers: list[LayerStatistics]
    not_called: list[str] = field(default_factory=list)
    window: int = 100
    every: int = 1
    processes: int = 1

    @classmethod
    def joined(cls, reports: Sequence["ActivationReport"]) -> "ActivationReport":
        """Combines the reports of several processes that have the same model."""
        by_row: dict[tuple[str, int, int], list[LayerStatistics]] = {}
        for report in reports:
            for layer in report.layers:
                by_row.setdefault((layer.name, layer.call, layer.channels), []).append(layer)
        called = {name for name, _, _ in by_row}
        return replace(
            reports[0],
            layers=[joined(layers) for layers in by_row.values()],
            not_called=[name for name in reports[0].not_called if name not in called],
            processes=len(reports),
        )

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """A table with one line per layer. A dash means not known or not applicable."""
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

        Unknown figures are None. Numbers that JSON does not support are the strings "nan", "inf" and
        "-inf", which ``float`` accepts.
        """
        return {
            "window": self.window,
            "every": self.every,
            "processes": self.processes,
            "not_called": list(self.not_called),
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def write(self, writer: Any, step: int, prefix: str = "activations") -> None:
        """Writes scalars and, for layers with several channels, histograms.

        Args:
            writer: a ``torch.utils.tensorboard.SummaryWriter``.
            step: the global step of the entries.
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
        """Draws non-positive inputs, silent units, slopes and gradient norms, layer by layer.

        Args:
            path: the file to save the picture to, if any; its suffix determines the format.

        Returns:
            A ``matplotlib.figure.Figure`` without a window or backend.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        try:
            from torch_ext.monitor_plot import draw
        except ImportError as error:
            raise ImportError(
                f"plot() needs a package that is missing ({error}): pip install torch_ext[plot]"
            ) from error
        figure = draw(self.layers, self.window, self.every)
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

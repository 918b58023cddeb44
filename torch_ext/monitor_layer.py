"""The figures that an ActivationMonitor has for one layer, and what they mean."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["GradientNorm", "LayerStatistics", "joined"]


class GradientNorm(NamedTuple):
    """L2 norms of the gradients at one end of a layer: `total` is the sum of the `finite` ones."""

    total: float
    finite: int
    infinite: int  # or NaN

    @property
    def mean(self) -> float | None:
        """The mean of the finite norms; None if there was no gradient, NaN if none was finite."""
        if self.finite:
            return self.total / self.finite
        return math.nan if self.infinite else None


@dataclass(frozen=True)
class LayerStatistics:
    """One call of one module. Tensors have shape (channels) and are on the CPU.

    Attributes:
        name, call, kind: the module's name, the number of the call in a forward (from 1), its class.
        window: how many steps without a positive input make a unit silent.
        steps: observed steps since the last reset.
        observed: observed steps since the monitor was created.
        elements: inputs per channel in `steps`; `positive` of them were > 0.
        silent_steps: observed steps since the last positive input.
        zero_slope: inputs in `steps` that met a slope of 0; `zero_slope_positive` of them were > 0.
        slope, start_slope: at the time of the report, and when the monitor was created; None if it
            is not known what the module does.
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
        """The name, followed by the number of the call from the second call on."""
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
        """Which units had no positive input in the last `window` steps. None before that many steps."""
        return self.silent_steps >= self.window if self.observed >= self.window else None

    @property
    def is_dead(self) -> Tensor | None:
        """Which units are silent and have slope 0. None where either is not known."""
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
        """How far each slope has moved from its initial value."""
        if self.slope is None or self.start_slope is None:
            return None
        return self.slope - self.start_slope

    @property
    def drift(self) -> float | None:
        """The mean distance of the slopes from their initial values."""
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


def joined(layers: Sequence[LayerStatistics]) -> LayerStatistics:
    """Combines the same row of several processes, which have the same slopes but different data."""

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
    """None for channels without data, which are NaN; a single None if no channel has data."""
    shares = [None if math.isnan(value) else value for value in values.tolist()]
    return None if all(share is None for share in shares) else shares


def _jsonable(value: Any) -> Any:
    if isinstance(value, list):
        return [_jsonable(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

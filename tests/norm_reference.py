"""What norm + PReLU is, written a second time: NumPy's long double, and how far results may be off."""

from dataclasses import dataclass

import numpy as np
import torch
from reference import UNIT_ROUNDOFF, accumulation_dtype

# Of the result's own rounding, where it is rounded once more.
ROUNDOFF_16_BIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}  # of its subnormals


def wide(tensor):
    return tensor.detach().to(torch.float64).numpy().astype(np.longdouble)


@dataclass
class Exact:
    """A result, and the largest magnitude that its rounding errors are relative to."""

    value: np.ndarray
    scale: np.ndarray


class Oracle:
    """The formulas of Ioffe and Szegedy (arXiv:1502.03167) and of PReLU, for one input.

    `statistics`: None for the input's own, over a channel or, with `instance`, over a sample's
    channel; else (mean, var).
    """

    def __init__(self, input, slope, weight, bias, grad_output, eps, instance, statistics=None):
        self.input = input
        self.unit = UNIT_ROUNDOFF[accumulation_dtype(input.dtype)]
        self.axes = tuple(d for d in range(input.dim()) if d > 1 or (d == 0 and not instance))
        x, g = wide(input), wide(grad_output)
        self.count = x.size // (x.shape[1] * (x.shape[0] if instance else 1))
        with np.errstate(all="ignore"):
            if statistics is None:
                mean = x.mean(axis=self.axes, keepdims=True)
                var = ((x - mean) ** 2).mean(axis=self.axes, keepdims=True)
            else:
                mean, var = (self._along(values) for values in statistics)
            self._differentiate(x, g, mean, var, slope, weight, bias, eps, statistics is None)

    def _along(self, values, default=0):
        shape = [1] * self.input.dim()
        if values is None:
            return np.full(shape, default, np.longdouble)
        if values.numel() > 1:
            shape[1] = values.numel()
        return wide(values).reshape(shape)

    def _differentiate(self, x, g, mean, var, slope, weight, bias, eps, training):
        a, gamma, beta = self._along(slope), self._along(weight, 1), self._along(bias)
        rstd = 1 / np.sqrt(var + np.longdouble(eps))
        d = x - mean
        z = d * rstd * gamma + beta
        positive = z > 0
        gz = np.where(positive, g, a * g)
        # z is off by what the mean is rounded by, and by its own roundings.
        self.z_error = self.unit * (
            (np.abs(mean) + 16 * np.sqrt(var)) * rstd * np.abs(gamma)
            + 34 * np.abs(d * rstd * gamma)
            + 2 * np.abs(beta)
            + np.abs(z)
        )
        self.ambiguous = np.abs(z) <= self.z_error
        self.mean, self.var, self.positive = mean, var, positive
        self.y = Exact(np.where(positive, z, a * z), None)
        self.y_error = self.z_error * np.maximum(1, np.abs(a))
        d_error = self.unit * (np.abs(mean) + 16 * np.sqrt(var) + np.abs(d))
        self.grad_bias = self._sum(gz)
        self.grad_weight = self._sum(gz * d * rstd, np.abs(gz) * d_error * rstd / self.unit)
        self.grad_slope = self._sum(
            np.where(positive, 0, g * z),
            np.where(positive, 0, np.abs(g) * self.z_error / self.unit),
        )
        scale = gamma * rstd
        parts = [gz * scale]
        if training:
            over = {"axis": self.axes, "keepdims": True}
            parts += [-scale * gz.mean(**over) * np.ones_like(x)]
            parts += [-scale * d * rstd**2 * (gz * d).mean(**over)]
        self.grad_input = Exact(sum(parts), sum(np.abs(part) for part in parts))
        self.grad_input_error = self.unit * (
            40 * self.grad_input.scale.max(axis=self.axes, keepdims=True)
            + (np.abs(mean) * np.abs(scale) * rstd * np.abs(gz).max() if training else 0)
        )

    def _sum(self, terms, more=0):
        """Over everything but the channels, and the magnitudes that errors are relative to."""
        axes = tuple(axis for axis in range(terms.ndim) if axis != 1)
        return Exact(terms.sum(axis=axes), (16 * np.abs(terms) + more).sum(axis=axes))

    # ---- Comparisons ---------------------------------------------------------------------------

    def clean_channels(self):
        """Those without an element whose side rounding may decide: a flip changes their sums."""
        axes = tuple(axis for axis in range(self.ambiguous.ndim) if axis != 1)
        return ~self.ambiguous.any(axis=axes)

    def check_output(self, output):
        self._check(output, self.y.value, self.y_error, ~self.ambiguous)

    def check_grad_input(self, grad_input):
        clean = np.broadcast_to(
            self.clean_channels().reshape([1, -1] + [1] * (self.input.dim() - 2)),
            self.input.shape,
        )
        self._check(grad_input, self.grad_input.value, self.grad_input_error, clean)

    def check_sum(self, gradient, exact):
        value, error = exact.value, exact.scale * self.unit
        clean = self.clean_channels()
        if gradient.numel() == 1 and value.size > 1:
            value, error, clean = value.sum(), error.sum(), clean.all()
        shape = tuple(gradient.shape)
        self._check(
            gradient, *(np.asarray(values).reshape(shape) for values in (value, error, clean))
        )

    @staticmethod
    def _check(actual, exact, error, where):
        assert where.mean() >= 0.5, "most of it is compared"
        rounding = ROUNDOFF_16_BIT.get(actual.dtype, 0)
        smallest = SMALLEST.get(actual.dtype, 0)
        allowed = (error + rounding * (np.abs(exact) + error)) + smallest
        off = np.abs(wide(actual) - exact)
        assert np.isfinite(off[where]).all()
        bad = (off > allowed) & where
        assert not bad.any(), (
            f"off by up to {(off / allowed)[bad].max():.3g} times what is allowed, {bad.sum()} elements"
        )
        assert np.abs(exact[where]).max() > 0

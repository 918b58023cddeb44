"""What norm + PReLU is, written a second time: NumPy's long double, and how far results may be off;
and in PyTorch's differentiable operations, for derivatives."""

import numpy as np
import reference
import torch
from reference import UNIT_ROUNDOFF, accumulation_dtype, assert_same_bits

# Of the result's own rounding, where it is rounded once more.
ROUNDOFF_16_BIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}  # of its subnormals


def wide(tensor):
    return tensor.detach().cpu().to(torch.float64).numpy().astype(np.longdouble)


class NormOracle:
    """The formulas of Ioffe and Szegedy (arXiv:1502.03167) and of PReLU, for one input.

    The statistics are the input's own, over a channel or, with `instance`, over a sample's channel;
    or `mean` and `var`.
    """

    def __init__(
        self,
        input,
        slope,
        weight,
        bias,
        eps,
        instance=False,
        mean=None,
        var=None,
        grad_output=None,
        training=True,
        output_mask=None,
    ):
        self.input, self.slope, self.weight, self.bias = input, slope, weight, bias
        self.instance = instance
        self.unit = UNIT_ROUNDOFF[accumulation_dtype(input.dtype)]
        self.axes = tuple(d for d in range(input.dim()) if d > 1 or (d == 0 and not instance))
        x, g = wide(input), wide(input if grad_output is None else grad_output)
        self.count = max(np.prod([x.shape[axis] for axis in self.axes], dtype=int), 1)
        with np.errstate(all="ignore"):
            training = mean is None
            if training:
                mean = self._mean(x)  # of nothing it is zero
                var = self._mean((x - mean) ** 2)
            else:
                mean, var = self._along(mean), self._along(var)
            self._differentiate(x, g, mean, var, slope, weight, bias, eps, training)

    def _mean(self, values):
        return values.sum(axis=self.axes, keepdims=True) / self.count

    def _along(self, values, default=0):
        shape = [1] * self.input.dim()
        if values is None:
            return np.full(shape, default, np.longdouble)
        if values.numel() != 1:
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
        constants = (var == 0).any()  # z is the bias then, which may be zero
        assert x.size < 64 or constants or self.ambiguous.mean() < 0.5, "little is compared"
        self.mean, self.var, self.positive = mean, var, positive
        self.y = np.where(positive, z, a * z)
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
            parts += [-scale * self._mean(gz) * np.ones_like(x)]
            parts += [-scale * d * rstd**2 * self._mean(gz * d)]
        self.grad_input = sum(parts)
        largest = sum(map(np.abs, parts)).max(axis=self.axes, keepdims=True, initial=0)
        self.grad_input_error = self.unit * (
            40 * largest + np.abs(mean * scale * rstd) * np.abs(gz).max(initial=0) * training
        )

    def _sum(self, terms, more=0):
        """Over everything but the channels, and the magnitudes that errors are relative to."""
        axes = tuple(axis for axis in range(terms.ndim) if axis != 1)
        return terms.sum(axis=axes), (16 * np.abs(terms) + more).sum(axis=axes)

    # ---- Expectations --------------------------------------------------------------------------

    def _clean(self):
        """Channels without an element whose side rounding may decide: a flip changes their sums."""
        axes = tuple(axis for axis in range(self.ambiguous.ndim) if axis != 1)
        return ~self.ambiguous.any(axis=axes)

    def forward(self):
        """Output, mean and variance."""
        shape = [size for size, d in zip(self.mean.shape, range(2)) if d or self.instance]
        error = self.unit * (np.abs(self.mean) + 16 * np.sqrt(self.var))
        deviations = (1 + 32 * self.unit) ** 2 - 1
        dtype = accumulation_dtype(self.input.dtype)
        return (
            Near(self.y, self.y_error, self.input.dtype, ~self.ambiguous),
            Near(self.mean.reshape(shape), error.reshape(shape), dtype),
            Near(self.var.reshape(shape), (deviations * self.var).reshape(shape), dtype),
        )

    def running(self, mean, var, momentum):
        """Of batch norm the unbiased variance; of instance norm the mean over the samples."""
        unbiased = self.count / max(self.count - 1, 1)
        for running, statistic, error in (
            (mean, self.mean, self.unit * (np.abs(self.mean) + 16 * np.sqrt(self.var))),
            (var, self.var * unbiased, 65 * self.unit * self.var * unbiased),
        ):
            before = wide(running)
            if self.input.numel() == 0:
                yield Near(before, 0 * before, running.dtype)
                continue
            now, error = (a.mean(axis=0).reshape(-1) for a in (statistic, error))
            rounding = 2 * torch.finfo(running.dtype).eps * (np.abs(before) + np.abs(now))
            value = before + momentum * (now - before)
            yield Near(value, momentum * error + rounding, running.dtype)

    def backward(self, mask):
        """Gradients of input, slope, weight and bias; None where there is none."""
        where = self._clean().reshape([1, -1] + [1] * (self.input.dim() - 2))
        where = np.broadcast_to(where, self.input.shape)
        of_input = Near(self.grad_input, self.grad_input_error, self.input.dtype, where)
        sums = (
            (self.slope, self.grad_slope),
            (self.weight, self.grad_weight),
            (self.bias, self.grad_bias),
        )
        found = [of_input, *(self._near_sum(*pair) for pair in sums)]
        return [each if wanted else None for each, wanted in zip(found, mask, strict=True)]

    def _near_sum(self, parameter, exact_and_scale):
        if parameter is None:
            return None
        value, error = exact_and_scale[0], exact_and_scale[1] * self.unit
        clean = self._clean()
        if parameter.numel() == 1 and value.size != 1:
            value, error, clean = value.sum(), error.sum(), clean.all()
        shape = tuple(parameter.shape)
        value, error, clean = (np.asarray(v).reshape(shape) for v in (value, error, clean))
        return Near(value, error, parameter.dtype, clean)


class Near:
    """Of an exact array, by not more than an error and the result's own rounding, wherever rounding does
    not decide the side of PReLU. Of exact data every bit but the sign of zero."""

    def __init__(self, value, error, dtype, where=True):
        self.value, self.error, self.dtype = value, error, dtype
        self.where = np.broadcast_to(where, value.shape)

    def check(self, actual, exact=False):
        rounded = torch.from_numpy(self.value.astype(np.float64))
        rounded = rounded.to(accumulation_dtype(self.dtype)).to(self.dtype)
        assert (actual.dtype, actual.shape) == (rounded.dtype, rounded.shape)
        if exact:
            return assert_same_bits(actual.cpu() + 0.0, rounded + 0.0)
        rounding = ROUNDOFF_16_BIT.get(actual.dtype, 0)
        smallest = SMALLEST.get(actual.dtype, 0)
        allowed = self.error + rounding * (np.abs(self.value) + self.error) + smallest
        off = np.abs(wide(actual) - self.value)
        assert np.isfinite(off[self.where]).all()
        bad = (off > allowed) & self.where
        assert not bad.any(), (
            f"off by up to {(off / allowed)[bad].max():.3g} times what is allowed, "
            f"{bad.sum()} of {bad.size} elements"
        )


# ---- In PyTorch's operations -------------------------------------------------------------------


def _along(values, input):
    return values.reshape([1, -1] + [1] * (input.dim() - 2))


def _normalised(input, weight, bias, eps, instance=False, mean=None, var=None):
    """z, x hat, its factor, and the statistics; along the input."""
    dims = [d for d in range(input.dim()) if d > 1 or (d == 0 and not instance)]
    if mean is None:
        mean = input.mean(dims, keepdim=True)
        var = (input - mean).square().mean(dims, keepdim=True)
    else:
        mean, var, dims = _along(mean, input), _along(var, input), None
    rstd = 1 / torch.sqrt(var + eps)
    hat = (input - mean) * rstd
    z = hat if weight is None else hat * _along(weight, input)
    z = z if bias is None else z + _along(bias, input)
    return z, hat, rstd if weight is None else rstd * _along(weight, input), mean, var, dims


def plain_norm(input, slope, weight, bias, eps, instance=False, **given):
    z, _, _, mean, var, _ = _normalised(input, weight, bias, eps, instance, **given)
    kept = slice(0, 2) if instance else slice(1, 2)
    mean, var = (s.detach().reshape(s.shape[kept]) for s in (mean, var))
    return reference.plain(z, slope), mean, var


def plain_norm_backward(mask, grad_output, input, slope, weight, bias, eps, **given):
    given = {k: v for k, v in given.items() if k not in ("training", "output_mask")}
    z, hat, factor, _, _, dims = _normalised(input, weight, bias, eps, **given)
    gz, grad_slope = reference.plain_backward(grad_output, z, slope)
    grad_input = gz
    if dims is not None:
        grad_input = gz - gz.mean(dims, keepdim=True) - hat * (gz * hat).mean(dims, keepdim=True)
    sums = [(values.movedim(1, 0).flatten(1).sum(1)) for values in (gz * hat, gz)]
    gradients = grad_input * factor, grad_slope, *sums
    return tuple(each if wanted else None for each, wanted in zip(gradients, mask, strict=True))

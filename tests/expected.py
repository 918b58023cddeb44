"""What a result of an operator has to be: the same bits as another tensor, or within a bound of a number."""

import numpy as np
import reference
import torch
from long_sums import exact_sums
from reference import assert_same_bits


class Bits:
    """No choice: every bit is promised, for any data. (Every NaN is equal to every NaN.)"""

    def __init__(self, expected):
        self.expected = expected

    def check(self, actual, exact=False):
        assert_same_bits(actual, self.expected)


class Within:
    """Of a float64 number, by not more than a bound: both as arrays of the result's shape."""

    def __init__(self, expected, bound, dtype):
        self.expected, self.bound, self.dtype = np.asarray(expected), np.asarray(bound), dtype

    def check(self, actual, exact=False):
        assert (actual.dtype, actual.shape) == (self.dtype, self.expected.shape)
        error = np.abs(actual.detach().double().cpu().numpy() - self.expected)
        assert (error <= self.bound).all(), (
            f"error is {np.nanmax(error / self.bound)} times the bound"
        )


class Sum:
    """A gradient of slopes: within the contract's bound of the exact sum; where a term is not finite, what
    the sum of such terms is in IEEE arithmetic. Of exact data every bit but the sign of zero."""

    def __init__(self, grad_output, input, weight):
        self.tensors = [tensor.detach().resolve_neg() for tensor in (grad_output, input, weight)]

    def check(self, actual, exact=False):
        grad_output, input, weight = self.tensors
        if input.numel() == 0:
            assert_same_bits(actual, torch.zeros_like(weight))
        elif exact or not (input.isfinite().all() and grad_output.isfinite().all()):
            rounded = reference.ieee_grad_weight(grad_output, input, weight)
            assert_same_bits(actual + 0.0, rounded + 0.0)
        else:
            exact, magnitude = self._exactly()
            bound = reference.bound(exact, magnitude, input.dtype, weight.dtype)
            assert np.abs(exact).max() > 0 or input.numel() < 16, (
                "the data make this comparison vacuous: every sum is zero"
            )
            Within(exact, bound, weight.dtype).check(actual)

    def _exactly(self):
        """The sums without rounding, and the sums of their terms' magnitudes, in weight's shape."""
        grad_output, input, weight = self.tensors
        if weight.numel() == 1:
            columns = [tensor.reshape(-1, 1) for tensor in (grad_output, input)]
        else:
            columns = [t.movedim(1, -1).reshape(-1, weight.numel()) for t in (grad_output, input)]
        return [
            sums.reshape(weight.shape) for sums in exact_sums(*(each.cpu() for each in columns))
        ]

"""Exact enough sums of millions of products: pairs of float64 (about 106 bits), in vectors.

math.fsum, which reference.py uses, is exact but takes seconds from 2^24 terms on.
"""

import numpy as np

SPLIT = 2.0**27 + 1  # into two halves of at most 26 bits each (Veltkamp, Dekker)
CHUNK = 2**17  # elements: temporaries that stay in cache


def exact_sums(grad_output, input):
    """The weight gradient of each column of (n, C) finite values: (sum, sum of |terms|), float64.

    The error is below 2^-100 of the sum of |terms|.
    """
    rows = max(1, CHUNK // input.shape[1])
    parts = [_sums(*chunk) for chunk in zip(grad_output.split(rows), input.split(rows))]
    high, low, magnitude = (np.stack(part) for part in zip(*parts))
    high, low = _total(high, low)
    return high + low, magnitude.sum(axis=0)


def _sums(grad_output, input):
    x = np.minimum(input.double().numpy(), 0.0)  # what the other branch contributes is 0
    g = grad_output.double().numpy()
    high = x * g
    return (*_total(high, _product_errors(x, g, high)), np.abs(high).sum(axis=0))


def _total(high, low):
    while len(high) > 1:
        if len(high) % 2:
            high, low = (np.concatenate([part, np.zeros_like(part[:1])]) for part in (high, low))
        high, low = _pair_sums(high, low)
    return high[0], low[0]


def _product_errors(x, g, product):
    """What rounding took from each product: an exact float64."""
    (xh, xl), (gh, gl) = _halves(x), _halves(g)
    return ((xh * gh - product) + xh * gl + xl * gh) + xl * gl


def _halves(values):
    scaled = values * SPLIT
    high = scaled - (scaled - values)
    return high, values - high


def _pair_sums(high, low):
    """Neighbours added, each a pair of float64 (Knuth's TwoSum, then the low parts)."""
    a, b = high[::2], high[1::2]
    total = a + b
    back = total - a
    error = (a - (total - back)) + (b - back) + (low[::2] + low[1::2])
    renormalised = total + error
    return renormalised, error - (renormalised - total)

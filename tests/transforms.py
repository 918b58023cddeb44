"""What the tests of torch.func share: a guard against vmap's fallback, and trees of results."""

import contextlib
import warnings

import torch
from torch.utils._pytree import tree_leaves


@contextlib.contextmanager
def no_vmap_fallback():
    """vmap's fallback, a loop over samples with a warning about its performance, is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for category in (FutureWarning, DeprecationWarning):  # from inside torch
            warnings.filterwarnings("ignore", category=category)
        torch._C._functorch._set_vmap_fallback_enabled(False)
        try:
            yield
        finally:
            torch._C._functorch._set_vmap_fallback_enabled(True)


def assert_equal_trees(actual, expected):
    """Equal to the last bit but for the sign of zero, in shapes and dtypes too."""
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert torch.equal(one, other)

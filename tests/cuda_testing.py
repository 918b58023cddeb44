"""What the tests of CUDA share. `make gpu` runs them; without a GPU they are skipped, and say so."""

import contextlib

import pytest
import torch
from cases import forward_backward
from reference import assert_same_bits

import torch_ext

TWO_TO_31 = 2**31  # elements from which 32-bit indices fail
REPEATS = 100

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward


def _reason():
    if not torch.cuda.is_available():
        return "needs a GPU"
    return "" if torch_ext.build_info()["cuda"] else "this torch_ext was built without CUDA"


needs_gpu = pytest.mark.skipif(bool(_reason()), reason=_reason())


def assert_same_on_both(actual, expected):
    """Results of CUDA, to the bit those of the CPU."""
    for result, expectation in zip(actual, expected, strict=True):
        assert result.is_cuda and not expectation.is_cuda
        assert_same_bits(result.cpu(), expectation)


def run(input, weight, grad_output):
    """Output and both gradients, through autograd."""
    return forward_backward(prelu, input, weight, grad_output)


@contextlib.contextmanager
def side_stream():
    """A stream that does not wait for the default one, current inside; joined on both ends."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.current_stream().wait_stream(stream)


class Busy:
    """Work on another stream: matrix products, enqueued by `more()`, that leave no SM idle long."""

    def __init__(self, size=2048):
        self.stream = torch.cuda.Stream()
        self.matrix = torch.ones((size, size), device="cuda")
        self.product = torch.empty_like(self.matrix)
        self.stream.wait_stream(torch.cuda.current_stream())

    def more(self, times=1):
        with torch.cuda.stream(self.stream):
            for _ in range(times):
                torch.mm(self.matrix, self.matrix, out=self.product)

    def finish(self):
        self.stream.synchronize()


def free_bytes():
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def need_memory(bytes_):
    """Skips the test on a GPU that has less."""
    if free_bytes() < bytes_:
        pytest.skip(f"needs {bytes_ / 1e9:.0f} GB on the GPU")

"""Whose kernels PReLU ran on, by PyTorch's profiler."""

import pytest
import torch
import torch.nn.functional as F
from cases import finite_slopes, forward_backward, random_values
from torch.profiler import ProfilerActivity, profile

import torch_ext

OURS = {"torch_ext::prelu"}
OURS_AND_BACKWARD = {"torch_ext::prelu", "torch_ext::prelu_backward"}
STOCK = {"aten::_prelu_kernel"}
STOCK_AND_BACKWARD = {"aten::_prelu_kernel", "aten::_prelu_kernel_backward"}


def kernels(run):
    """Those of the operators above that `run` called, at any depth and in any thread of autograd."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        run()
    return {event.name for event in profiler.events()} & (OURS_AND_BACKWARD | STOCK_AND_BACKWARD)


@pytest.fixture
def stock_before_and_after():
    """No override is open, and PReLU is stock's."""
    input, weight = random_values((4, 3, 5), torch.float32), finite_slopes((3,), torch.float32)

    def check():
        assert (
            kernels(lambda: forward_backward(F.prelu, input, weight, input)) == STOCK_AND_BACKWARD
        )
        with pytest.raises(RuntimeError, match="left more often than entered"):
            torch_ext._C.leave_override_aten()

    with torch_ext.override_aten():  # the first of a process, which must not meet other threads
        pass
    check()
    yield
    check()

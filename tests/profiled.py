"""Whose kernels PReLU ran on, by PyTorch's profiler."""

from torch.profiler import ProfilerActivity, profile

OURS = {"torch_ext::prelu"}
OURS_AND_BACKWARD = {"torch_ext::prelu", "torch_ext::prelu_backward"}
STOCK = {"aten::_prelu_kernel"}
STOCK_AND_BACKWARD = {"aten::_prelu_kernel", "aten::_prelu_kernel_backward"}


def kernels(run):
    """Those of the operators above that `run` called, at any depth and in any thread of autograd."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        run()
    return {event.name for event in profiler.events()} & (OURS_AND_BACKWARD | STOCK_AND_BACKWARD)

"""A default device for tests that name none, with the CPU's random numbers."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors


class DefaultDevice(TorchFunctionMode):
    """As `torch.device(...)` used as a context; but what a generator of the CPU draws is moved.

    So a test has the same numbers on every device.
    """

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function not in _device_constructors() or kwargs.get("device") is not None:
            return function(*args, **kwargs)
        if kwargs.get("generator") is not None:
            requires_grad = kwargs.pop("requires_grad", False)
            return function(*args, **kwargs).to(self.device).requires_grad_(requires_grad)
        kwargs["device"] = self.device
        return function(*args, **kwargs)

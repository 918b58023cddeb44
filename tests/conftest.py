import os

import cases
import pytest
import torch
from cases import CASES, DTYPE_PAIRS, DTYPES, MIXED
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

import torch_ext

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
if chosen := os.environ.get("TORCH_EXT_TEST_DEVICES"):  # `make gpu` tests CUDA alone
    DEVICES = chosen.split(",")


def pytest_configure(config):
    config.addinivalue_line("markers", "cpu_only(reason): of a file that uses `on_device`")


def _dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def _pair_name(pair):
    return "_with_weight_".join(
        _dtype_name(dtype) for dtype in (pair if pair[0] != pair[1] else pair[:1])
    )


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch_ext.build_info()["cuda"]:
        pytest.skip("this torch_ext was built without CUDA")
    return request.param


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


@pytest.fixture
def on_device(request, device, monkeypatch):
    """What the test makes without naming a device is made on this one, random numbers too."""
    if device != "cpu" and (only := request.node.get_closest_marker("cpu_only")):
        pytest.skip(only.args[0])
    if device == "cpu":
        yield device
        return
    monkeypatch.setattr(cases, "default_device", device)
    with DefaultDevice(device):
        yield device


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=_dtype_name)
def dtype(request):
    return request.param


@pytest.fixture(params=DTYPE_PAIRS, ids=_pair_name)
def dtypes(request):
    """The dtypes of input and weight."""
    return request.param


@pytest.fixture(params=MIXED, ids=_pair_name)
def mixed_dtypes(request):
    return request.param


@pytest.fixture(params=(torch.bfloat16, torch.float16), ids=_dtype_name)
def autocast_dtype(request):
    return request.param


@pytest.fixture
def threads():
    """torch.set_num_threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _leave_no_trace():
    """A test that changed a process-wide switch would change the tests after it."""
    default = torch.get_default_dtype()
    yield
    assert torch.get_default_dtype() == default
    assert not torch.are_deterministic_algorithms_enabled()

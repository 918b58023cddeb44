"""The worlds of processes that all tests of a session share: `pytest_plugins = "process_fixtures"`."""

import pytest
import torch
import torch.distributed as dist
from processes import World

import torch_ext

FIXTURES = {"two_processes", "four_processes", "gpu_processes", "processes"}
_worlds = []


def _shared(*arguments):
    _worlds.append(World(*arguments))
    return _worlds[-1]


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    return _shared(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="session")
def four_processes(tmp_path_factory):
    return _shared(4, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="session")
def gpu_processes(tmp_path_factory):
    """One process for each of up to two GPUs: NCCL refuses two on one."""
    if not torch.cuda.is_available():
        pytest.skip("NCCL needs a GPU, and there is none")
    if not torch_ext.build_info()["cuda"]:
        pytest.skip("this torch_ext was built without CUDA")
    if not dist.is_nccl_available():
        pytest.skip("this torch was built without NCCL")
    size = min(torch.cuda.device_count(), 2)
    return _shared(size, tmp_path_factory.mktemp("gpus"), "nccl")


@pytest.fixture(params=["gloo", "nccl"])
def processes(request):
    """Two processes on the CPU; and one for each of up to two GPUs."""
    return request.getfixturevalue("two_processes" if request.param == "gloo" else "gpu_processes")


def pytest_runtest_teardown(nextitem):
    """Idle processes hold memory, which other tests may need."""
    if nextitem is None or not FIXTURES & {*nextitem.fixturenames}:
        for world in _worlds:
            world.close()

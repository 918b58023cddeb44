"""The kernels are compiled once per instruction set; each of them must pass the tests of values."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch

import torch_ext

pytestmark = pytest.mark.contract

HERE = pathlib.Path(__file__).parent
FILES = ("values", "sums", "layouts")
SELECTION = "definition or exact_data or special or finite or long or half or vector_width or start"


def _others():
    """Those that this processor has as well, below the one that this process uses."""
    built = list(torch_ext.build_info()["cpu_capabilities"])  # from the simplest to the widest
    current = torch.backends.cpu.get_cpu_capability()
    return built[: built.index(current)] if current in built else ["DEFAULT"]


@pytest.mark.parametrize("capability", _others())
def test_values_hold_with_every_instruction_set(capability):
    """In a process of its own, as the choice is made once."""
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": capability.lower(),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",  # bits do not depend on it, and test_battery_threads.py shows that
    }
    chosen = subprocess.run(
        [sys.executable, "-c", "from torch_ext import _C; print(_C.instruction_set())"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert chosen.stdout.strip() == capability
    files = [str(HERE / f"test_battery_{name}.py") for name in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SELECTION, *files],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-4000:]

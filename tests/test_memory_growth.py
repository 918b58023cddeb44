"""No path of the operators keeps memory: less than 1 KiB per 1,000 calls."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOST = 1.0  # KiB per 1,000 calls
PROGRAM = Path(__file__).parent / "memory_growth.py"
PATHS = (
    "forward",
    "backward",
    "backward_of_a_module",
    "graph_without_a_backward",
    "backward_as_an_operator",
    "second_order",
    "wrong_arguments",
    "backward_twice",
    "override",
)


@pytest.fixture(scope="module")
def growth():
    """KiB per 1,000 calls of every path, resident and given out by malloc."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
        "PYTHONMALLOC": "malloc",
    }
    done = subprocess.run(
        [sys.executable, PROGRAM], check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("leak", ["leak_in_python", "leak_in_c"])
def test_a_leak_of_a_few_bytes_is_seen(growth, leak):
    assert growth[leak]["allocated"] > 10 * MOST


@pytest.mark.parametrize("path", PATHS)
def test_calls_leave_no_memory_behind(growth, path):
    assert growth[path]["resident"] < MOST
    assert growth[path]["allocated"] < MOST


def test_every_path_is_judged(growth):
    assert set(growth) == {*PATHS, "leak_in_python", "leak_in_c"}

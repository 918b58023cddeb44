"""No path of the operators keeps memory: less than 1 KiB per 1,000 calls."""

import json
import os
import sys

import memory_growth
import pytest
from installed import output_of
from memory_growth import CANARIES, PATHS

MOST = 1.0  # KiB per 1,000 calls


@pytest.fixture(scope="module")
def growth():
    """KiB per 1,000 calls of every path, resident and given out by malloc."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
        "PYTHONMALLOC": "malloc",
    }
    return json.loads(output_of(sys.executable, memory_growth.__file__, env=environment))


@pytest.mark.parametrize("leak", CANARIES)
def test_a_leak_of_a_few_bytes_is_seen(growth, leak):
    assert growth[leak.__name__]["allocated"] > 10 * MOST


@pytest.mark.parametrize("path", PATHS)
def test_calls_leave_no_memory_behind(growth, path):
    assert growth[path.__name__]["resident"] < MOST
    assert growth[path.__name__]["allocated"] < MOST

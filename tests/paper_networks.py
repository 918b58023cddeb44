"""benchmarks/networks.py, by its path: benchmarks/ and tests/ have modules of the same names."""

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location(
    "benchmark_networks", Path(__file__).parents[1] / "benchmarks" / "networks.py"
)
networks = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = networks  # where pickles look
_SPEC.loader.exec_module(networks)

"""Stage: what is here. GPU, driver, CUDA, torch, and the tools that stages look for."""

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys

from gpu import events

TOOLS = ("nvcc", "cmake", "ninja", "c++", "compute-sanitizer", "ctest", "nvidia-smi")
MODULES = (
    *("torch", "numpy", "pybind11", "setuptools", "pytest", "pytest-xdist", "triton"),
    *("expecttest", "hypothesis", "onnxscript", "onnxruntime", "matplotlib", "rich"),
)


def _output(*command):
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def _version(module):
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return None


def software():
    nvcc = re.search(r"release ([\d.]+)", _output("nvcc", "--version"))
    return {
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "nvcc": nvcc[1] if nvcc else None,
        "tools": {tool: shutil.which(tool) is not None for tool in TOOLS},
        "modules": {module: _version(module) for module in MODULES},
        "googletest": os.path.exists("/usr/include/gtest/gtest.h"),
    }


def hardware(device):
    import torch

    facts = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if device == "cpu":
        return facts | {"gpu": "none (rehearsal)"}
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    driver = _output(*query).splitlines()
    return facts | {
        "gpu": properties.name,
        "gpus": torch.cuda.device_count(),
        "arch": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "memory_bytes": total,
        "free_bytes": free,
        "driver": driver[0] if driver else None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    facts = software()
    try:
        facts |= hardware(options.device)
    finally:  # what is known without a GPU is told even if there is none
        for name, value in facts.items():
            events.fact(name, value)
            print(f"{name}: {value}")


if __name__ == "__main__":
    sys.exit(main())

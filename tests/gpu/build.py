"""Stage: builds in place with what is there: torch, CMake, Ninja, pybind11, nvcc. No network.

The three steps of setup.py, without setuptools. The C++ tests are built if they can be; if they
cannot, the rest of the session need not wait for them.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from gpu import events
from gpu.results import ROOT


def search_path():
    """The environment's own tools first, activated or not."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def configure(build, cuda, tests):
    import pybind11
    import torch

    return [
        *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
        f"-DTORCH_EXT_TORCH_ROOT={Path(torch.__file__).parent}",
        f"-DTORCH_EXT_CUDA={'ON' if cuda else 'OFF'}",
        f"-DTORCH_EXT_TESTS={'ON' if tests else 'OFF'}",
        "-DTORCH_EXT_IN_PLACE=ON",
        "-DTORCH_EXT_PYTHON=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]


def cmake(*arguments):
    program = shutil.which("cmake", path=search_path())
    if program is None:
        sys.exit("CMake was not found")
    environment = {**os.environ, "PATH": search_path()}
    return subprocess.run([program, *arguments], env=environment, check=False).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cuda", help="cpu: a rehearsal, which only configures")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    if not cuda:
        good = cmake(*configure(options.build, cuda=False, tests=False))
        events.outcome("configures", events.PASSED if good else events.FAILED)
        return 0 if good else 1
    for tests in (True, False):
        if cmake(*configure(options.build, cuda, tests)) and cmake("--build", str(options.build)):
            break
        if tests:
            events.outcome("C++ tests", events.SKIPPED, "they do not build here; see the log")
    else:
        events.outcome("builds", events.FAILED, "see the log")
        return 1
    if not cmake("--install", str(options.build), "--prefix", str(ROOT / "torch_ext")):
        events.outcome("installs", events.FAILED, "see the log")
        return 1
    code = "import torch_ext; assert torch_ext.build_info()['cuda'], 'built without CUDA'"
    if subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode != 0:
        events.outcome("imports", events.FAILED, "see the log")
        return 1
    events.outcome("builds, installs and imports", events.PASSED)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Builds torch_ext: runs CMake, which knows every source and flag, and packs what it installs.

Environment: FORCE_CUDA=1 (fail without nvcc), FORCE_CPU=1 (no CUDA kernels), TORCH_CUDA_ARCH_LIST,
MAX_JOBS, TORCH_EXT_CMAKE_ARGS (more -D options), TORCH_EXT_BUILD_DIR (of an in-place build).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r"VERSION (\d+\.\d+\.\d+)", (ROOT / "CMakeLists.txt").read_text().split("project(")[1]
)[1]


def installed_torch():
    """torch, or None: metadata and source distributions do not need it."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def flag(name):
    return os.environ.get(name, "0") not in ("", "0")


def cuda_version(torch):
    """Version of the CUDA compiler to build with ("13.0"), or None for a CPU build."""
    if flag("FORCE_CPU"):
        return None
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if nvcc is None and "CUDA_HOME" in os.environ:
        nvcc = shutil.which("nvcc", path=os.path.join(os.environ["CUDA_HOME"], "bin"))
    if torch.version.cuda is not None and nvcc is not None:
        output = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, check=True
        ).stdout
        return re.search(r"release (\d+\.\d+)", output)[1]
    if flag("FORCE_CUDA"):
        missing = (
            "this PyTorch has no CUDA" if nvcc else "nvcc was not found (CUDA Toolkit, CUDA_HOME)"
        )
        sys.exit(f"torch_ext: FORCE_CUDA=1, but {missing}.")
    return None


def torch_minor(torch):
    return ".".join(torch.__version__.split(".")[:2])


def full_version(torch):
    """0.1.0+pt2.15cu130: binaries fit one torch minor."""
    if torch is None:
        return VERSION
    cuda = cuda_version(torch)
    return f"{VERSION}+pt{torch_minor(torch)}" + (f"cu{cuda.replace('.', '')}" if cuda else "cpu")


def torch_requirement(torch):
    if torch is None:
        return "torch>=2.11,<2.16"
    major, minor = map(int, torch_minor(torch).split("."))
    return f"torch>={major}.{minor}.0,<{major}.{minor + 1}"


class CMakeBuild(build_ext):
    """Installs the native part into the package: the built one, or with --inplace the source tree's."""

    def run(self):
        torch = installed_torch()
        if torch is None:
            sys.exit(
                "torch_ext: building needs the PyTorch it is meant for: install torch, then run"
                " `pip install --no-build-isolation .`"
            )
        cmake = shutil.which("cmake", path=self.search_path()) or sys.exit(
            "torch_ext: CMake was not found; `pip install cmake ninja pybind11`."
        )
        if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")):
            sys.exit("torch_ext: no C++ compiler was found (install g++, or set CXX).")
        package = (ROOT if self.inplace else Path(self.build_lib).resolve()) / "torch_ext"
        environment = dict(os.environ, PATH=self.search_path())
        for arguments in self.steps(torch, package):
            if subprocess.run([cmake, *arguments], env=environment, check=False).returncode != 0:
                sys.exit(f"torch_ext: `cmake {arguments[0]}` failed; its message is above.")

    def steps(self, torch, package):
        cuda = cuda_version(torch)
        if self.inplace:
            build = Path(os.environ.get("TORCH_EXT_BUILD_DIR", ROOT / "build" / "in-place"))
        else:
            build = Path(self.build_temp).resolve()
        import pybind11

        yield [
            *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DTORCH_EXT_TORCH_ROOT={Path(torch.__file__).parent}",
            f"-DTORCH_EXT_CUDA={'ON' if cuda else 'OFF'}",
            f"-DTORCH_EXT_IN_PLACE={'ON' if self.inplace else 'OFF'}",
            "-DTORCH_EXT_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *shlex.split(os.environ.get("TORCH_EXT_CMAKE_ARGS", "")),
        ]
        jobs = os.environ.get("MAX_JOBS")
        yield ["--build", str(build), *(["--parallel", jobs] if jobs else [])]
        yield ["--install", str(build), "--prefix", str(package)]

    @staticmethod
    def search_path():
        """The environment's own tools first, activated or not."""
        return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


torch_found = installed_torch()
setup(
    version=full_version(torch_found),
    install_requires=[torch_requirement(torch_found)],
    ext_modules=[Extension("torch_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

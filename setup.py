"""Builds torch_ext: runs CMake, which knows every source and flag, and packs what it installs.

Environment: FORCE_CUDA=1 (fail without nvcc), FORCE_CPU=1 (no CUDA kernels), TORCH_CUDA_ARCH_LIST (else
all supported GPUs; in place, those of this machine or one), CUDA_HOME, MAX_JOBS, DEBUG=1 (unoptimised,
with debug information), CMAKE_ARGS (more -D options), TORCH_EXT_TORCH_ROOT (the torch to build for, if not
the installed one), TORCH_EXT_ANY_TORCH=1 (try one that is not supported, too), TORCH_EXT_BUILD_DIR (where
objects stay, for the next build).
"""

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

# Older versions reject pyproject.toml, with a long message about its schema.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"torch_ext: setuptools {setuptools.__version__} is too old to build with;"
        ' `pip install "setuptools>=77,<82"`.'
    )

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))
from find_torch import MINORS, SUPPORTED, find_torch

VERSION = re.search(
    r"VERSION (\d+\.\d+\.\d+)", (ROOT / "CMakeLists.txt").read_text().split("project(")[1]
)[1]


def flag(name):
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE", "Y")


def find_supported_torch():
    torch = find_torch()
    if torch and not torch.is_supported and not flag("TORCH_EXT_ANY_TORCH"):
        sys.exit(
            f"torch_ext: torch {torch.version} was found, but 2.{MINORS[0]} to 2.{MINORS[-1]} are"
            " supported: install one of these, or set TORCH_EXT_ANY_TORCH=1 to try this one."
        )
    return torch


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return (
        shutil.which(os.environ.get("CUDACXX", ""))
        or (home and shutil.which("nvcc", path=os.path.join(home, "bin")))
        or shutil.which("nvcc")
    )


def cuda_version(torch):
    """Version of the CUDA compiler to build with ("13.0"), or None for a CPU build."""
    if flag("FORCE_CPU"):
        return None
    nvcc = find_nvcc()
    if torch.cuda is None or nvcc is None:
        if flag("FORCE_CUDA"):
            missing = (
                "this PyTorch has no CUDA"
                if nvcc
                else "nvcc was not found (CUDA Toolkit, CUDA_HOME)"
            )
            sys.exit(f"torch_ext: FORCE_CUDA=1, but {missing}.")
        return None
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"release (\d+\.\d+)", output)[1]
    if version.split(".")[0] != torch.cuda.split(".")[0]:
        sys.exit(
            f"torch_ext: {nvcc} is of CUDA {version}, but torch {torch.version} was built with CUDA"
            f" {torch.cuda}: set CUDA_HOME to a toolkit of CUDA {torch.cuda.split('.')[0]}, or"
            " FORCE_CPU=1 to build without CUDA kernels."
        )
    return version


def full_version(torch):
    """0.1.0+pt2.15cu130: a binary fits one minor version of torch."""
    if torch is None:
        return VERSION
    cuda = cuda_version(torch)
    return f"{VERSION}+pt{torch.minor}" + (f"cu{cuda.replace('.', '')}" if cuda else "cpu")


def torch_requirement(torch):
    if torch is None:
        return SUPPORTED
    from packaging.version import Version  # a dependency of setuptools

    found = Version(torch.version)
    # A pre-release ("2.15.0a0+git…") comes before the release that it is named after.
    oldest = found.public if found.is_prerelease else f"{found.major}.{found.minor}.0"
    return f"torch>={oldest},<{found.major}.{found.minor + 1}"


class CMakeBuild(build_ext):
    """Installs the native part into the built package or, with --inplace, into the source tree."""

    def run(self):
        torch = find_supported_torch()
        cmake = self.tools(torch)
        package = (ROOT if self.inplace else Path(self.build_lib).resolve()) / "torch_ext"
        environment = dict(os.environ, PATH=self.search_path())
        if nvcc := find_nvcc():
            environment["CUDACXX"] = nvcc
        for arguments in self.steps(torch, package):
            if subprocess.run([cmake, *arguments], env=environment, check=False).returncode != 0:
                sys.exit(f"torch_ext: `cmake {arguments[0]}` failed; its message is above.")

    def tools(self, torch):
        """The path of cmake, after a check that everything else is there that a build needs."""
        if torch is None:
            sys.exit(
                "torch_ext: building needs the PyTorch it is meant for: install torch, then run"
                " `pip install --no-build-isolation .`"
            )
        cmake = shutil.which("cmake", path=self.search_path()) or sys.exit(
            "torch_ext: CMake was not found; `pip install cmake ninja pybind11`."
        )
        if "CMAKE_GENERATOR" not in os.environ and self.ninja() is None:
            sys.exit("torch_ext: Ninja was not found; `pip install cmake ninja pybind11`.")
        if pybind11_cmake_dir() is None:
            sys.exit("torch_ext: pybind11 was not found; `pip install cmake ninja pybind11`.")
        if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")):
            sys.exit("torch_ext: no C++ compiler was found (install g++, or set CXX).")
        if not Path(sysconfig.get_path("include"), "Python.h").is_file():
            sys.exit("torch_ext: Python.h was not found (Debian, Ubuntu: install python3-dev).")
        return cmake

    def steps(self, torch, package):
        if "TORCH_EXT_BUILD_DIR" in os.environ:
            build = Path(os.environ["TORCH_EXT_BUILD_DIR"]).resolve()
        else:
            build = ROOT / "build" / "in-place" if self.inplace else Path(self.build_temp).resolve()
        build_type = "Debug" if flag("DEBUG") or self.debug else "Release"
        build_type = os.environ.get("CMAKE_BUILD_TYPE", build_type)
        # A multi-config generator would build one configuration and install another.
        several = "Multi-Config" in os.environ.get("CMAKE_GENERATOR", "")
        configuration = ["--config", build_type] if several else []
        yield [
            *("-S", str(ROOT), "-B", str(build)),
            *([] if "CMAKE_GENERATOR" in os.environ else self.with_ninja()),
            f"-DCMAKE_BUILD_TYPE={build_type}",
            f"-DTORCH_EXT_TORCH_ROOT={torch.root}",
            f"-DTORCH_EXT_CUDA={'ON' if cuda_version(torch) else 'OFF'}",
            f"-DTORCH_EXT_IN_PLACE={'ON' if self.inplace else 'OFF'}",
            "-DTORCH_EXT_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11_cmake_dir()}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
            *shlex.split(os.environ.get("TORCH_EXT_CMAKE_ARGS", "")),
        ]
        jobs = os.environ.get("MAX_JOBS")
        yield ["--build", str(build), *configuration, *(["--parallel", jobs] if jobs else [])]
        yield ["--install", str(build), *configuration, "--prefix", str(package)]

    def ninja(self):
        return shutil.which("ninja", path=self.search_path())

    def with_ninja(self):
        # By its path: a kept build folder may remember one that was removed with an isolated build.
        return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={self.ninja()}"]

    @staticmethod
    def search_path():
        """The environment's own tools first, whether it is activated or not.

        Those of its Python packages come before all: in an isolated build they are not in the folder
        of the interpreter, which for a system's Python also contains the system's CMake.
        """
        of_packages = filter(None, map(package_folder, ("cmake", "ninja")))
        folders = [*of_packages, Path(sys.executable).parent]
        return os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])


def package_folder(program):
    """The folder in which the Python package of a program's name has the program.

    Found by its metadata, because ninja.BIN_DIR looks in the interpreter's own folders first, and
    `import cmake` may find the folder of that name in this source tree.
    """
    try:
        files = importlib.metadata.files(program) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    programs = (Path(f.locate()) for f in files if f.name == program and f.parent.name == "bin")
    return next((path.resolve().parent for path in programs if path.is_file()), None)


def pybind11_cmake_dir():
    try:
        import pybind11
    except ImportError:
        return None
    return pybind11.get_cmake_dir()


class SourceDistribution(sdist):
    """Adds the commit of the sources, for build_info()."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        if (ROOT / ".git").exists() and shutil.which("git"):
            describe = ["git", "describe", "--always", "--dirty"]
            commit = subprocess.run(
                describe, cwd=ROOT, capture_output=True, text=True, check=False
            ).stdout
            Path(base_dir, "COMMIT").write_text(commit)


# A source distribution is for every torch, whichever is installed where it is built.
torch_found = None if "sdist" in sys.argv else find_supported_torch()
setup(
    version=full_version(torch_found),
    install_requires=[torch_requirement(torch_found)],
    ext_modules=[Extension("torch_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "sdist": SourceDistribution},
)

"""The package as it is installed, and programs that look at it from outside."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torch_ext

PACKAGE = Path(torch_ext.__file__).parent
LIBRARY_NAME = "lib/libtorch_ext.so"
LIBRARY = PACKAGE / LIBRARY_NAME
REPOSITORY = Path(__file__).parent.parent


def run_python(program, *arguments):
    """What a program prints in a fresh interpreter that imports this torch_ext."""
    return output_of(
        *(sys.executable, *arguments, *(["-c", program] if program else [])),
        env={**without_library_path(), "PYTHONPATH": str(PACKAGE.parent)},
    )


def without_library_path():
    """The environment of a process that finds libraries as a user's would: by their RPATHs alone."""
    return {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}


def tool(name, *folders):
    """A program of the environment, of the system or of one of these folders; skips without it."""
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"], *map(str, folders)]
    )
    return shutil.which(name, path=path) or pytest.skip(f"{name} is not installed")


def output_of(*command, **options):
    result = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def openmp_runtimes(paths):
    return {path for path in paths if re.search(r"/lib(gomp|omp|iomp5)\b[^/]*$", path)}

"""The package as it is installed, and programs that look at it from outside."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import torch_ext

PACKAGE = Path(torch_ext.__file__).parent
LIBRARY_NAME = "lib/libtorch_ext.so"
LIBRARY = PACKAGE / LIBRARY_NAME
REPOSITORY = Path(__file__).parent.parent


def run_python(program, *arguments, options=(), code=0, **variables):
    """A program in a fresh interpreter that imports this torch_ext, with more environment variables."""
    program = ["-c", textwrap.dedent(program)] if program else []
    return run(
        *(sys.executable, *options, *program, *arguments),
        code=code,
        env={**without_library_path(), "PYTHONPATH": str(PACKAGE.parent), **variables},
        timeout=300,
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


def run(*command, code=0, **options):
    """A process that has to end with this exit status; `stdout` and `stderr` are what it wrote."""
    done = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, **options
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def output_of(*command, **options):
    return run(*command, **options).stdout


def cmake_build(source, build, *options):
    """Configures and builds a project that uses the package; with ccache, if there is one."""
    environment = {**os.environ, "PATH": f"{Path(tool('ninja')).parent}:{os.environ['PATH']}"}
    if shutil.which("ccache"):
        environment |= {"CMAKE_CXX_COMPILER_LAUNCHER": "ccache", "CCACHE_BASEDIR": str(source)}
    prefix = f"-DCMAKE_PREFIX_PATH={torch_ext.cmake_prefix_path}"
    tool("c++")
    configure = (tool("cmake"), "-S", source, "-B", build, "-G", "Ninja", prefix, *options)
    output_of(*configure, env=environment)
    output_of(tool("cmake"), "--build", build, env=environment)


def openmp_runtimes(paths):
    return {path for path in paths if re.search(r"/lib(gomp|omp|iomp5)\b[^/]*$", path)}

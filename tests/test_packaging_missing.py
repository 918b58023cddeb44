"""A build in an environment that lacks something says in one sentence what, and how to get it.

tests/test_build.py does without torch, a compiler and nvcc; here the environment's own tools are missing.
"""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter with this one's packages and none of its programs."""
    folder = tmp_path_factory.mktemp("bare environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def failed_build(python, tools, before="pass", **environment):
    """The last line of a build's errors; PATH holds programs of the names `tools` only."""
    programs = Path(environment["TMP_TOOLS"])
    programs.mkdir(exist_ok=True)
    for name in tools:
        (programs / name).write_text("#!/bin/sh\necho release 99.1\n")
        (programs / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if k not in ("CXX", "CUDACXX", "CUDA_HOME")}
    program = (
        f"import runpy, sys; {before}; sys.argv = ['setup.py', *sys.argv[1:]]; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    result = subprocess.run(
        [python, "-c", program, "-q", "build_ext", "--build-lib", programs / "lib"],
        cwd=ROOT,
        env={**kept, "PATH": str(programs), "FORCE_CPU": "1", "FORCE_CUDA": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr, result.stderr
    return result.stderr.strip().splitlines()[-1]


NO_PACKAGES = "import importlib.metadata; importlib.metadata.files = lambda name: None"
MISSING = {
    "CMake": {"tools": ["c++"], "before": NO_PACKAGES},
    "Ninja": {"tools": ["c++", "cmake"], "before": NO_PACKAGES},
    "pybind11": {
        "tools": ["c++", "cmake", "ninja"],
        "before": "sys.modules['pybind11'] = None",
    },
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_tool_is_named_with_the_command_that_installs_it(bare_python, tmp_path, name):
    message = failed_build(bare_python, **MISSING[name], TMP_TOOLS=str(tmp_path / "tools"))
    assert message == f"torch_ext: {name} was not found; `pip install cmake ninja pybind11`."


def test_a_setuptools_that_cannot_read_the_project_is_told_so_before_it_tries(
    bare_python, tmp_path
):
    """Python 3.11 puts 65.5 into a new environment, and without isolation that is what builds."""
    before = "import setuptools; setuptools.__version__ = '65.5.0'"
    message = failed_build(bare_python, [], before, TMP_TOOLS=str(tmp_path / "tools"))
    assert message.startswith("torch_ext: setuptools 65.5.0 is too old to build with; `pip install")
    oldest = re.search(r'"setuptools>=(\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert f">={oldest}," in message


def test_missing_python_headers_are_named(bare_python, tmp_path):
    message = failed_build(
        bare_python,
        tools=["c++", "cmake", "ninja"],
        before="import sysconfig; sysconfig.get_path = lambda name: '/nonexistent'",
        TMP_TOOLS=str(tmp_path / "tools"),
    )
    assert "Python.h was not found" in message and "python3-dev" in message


def test_a_torch_root_without_torch_is_named(bare_python, tmp_path):
    message = failed_build(
        bare_python,
        tools=[],
        TORCH_EXT_TORCH_ROOT=str(tmp_path),
        TMP_TOOLS=str(tmp_path / "tools"),
    )
    assert f"TORCH_EXT_TORCH_ROOT={tmp_path} is no PyTorch" in message


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch with CUDA")
def test_a_toolkit_of_another_cuda_is_refused_before_it_compiles(bare_python, tmp_path):
    message = failed_build(
        bare_python, tools=["nvcc"], FORCE_CPU="0", TMP_TOOLS=str(tmp_path / "tools")
    )
    assert re.search(r"nvcc is of CUDA 99\.1, but torch \S+ was built with CUDA", message)
    assert "CUDA_HOME" in message and "FORCE_CPU=1" in message


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch with CUDA")
def test_cuda_home_comes_before_the_path(bare_python, tmp_path):
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "nvcc").write_text("#!/bin/sh\necho release 98.7\n")
    (home / "bin" / "nvcc").chmod(0o755)
    message = failed_build(
        bare_python,
        tools=["nvcc"],
        FORCE_CPU="0",
        CUDA_HOME=str(home),
        TMP_TOOLS=str(tmp_path / "tools"),
    )
    assert f"{home}/bin/nvcc is of CUDA 98.7" in message

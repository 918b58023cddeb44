"""A build in an environment that lacks something says in one sentence what, and how to get it.

The errors that troubleshooting shows are provoked by tests/documentation_errors.py: no torch, CMake or nvcc, an old
setuptools, an nvcc of another CUDA.
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
NO_PACKAGES = "import importlib.metadata; importlib.metadata.files = lambda name: None"


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter with this one's packages and none of its programs."""
    folder = tmp_path_factory.mktemp("bare environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@pytest.fixture
def failed_build(bare_python, tmp_path):
    """The last line of a build's errors; PATH holds programs of the names `tools` only."""

    def run(*tools, before="pass", **environment):
        programs = tmp_path / "tools"
        programs.mkdir()
        for name in tools:
            (programs / name).write_text("#!/bin/sh\necho release 99.1\n")
            (programs / name).chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if k not in ("CXX", "CUDACXX", "CUDA_HOME")}
        kept |= {"PATH": str(programs), "FORCE_CPU": "1", "FORCE_CUDA": "0"}
        program = (
            f"import runpy, sys; {before}; sys.argv = ['setup.py', *sys.argv[1:]]; "
            "runpy.run_path('setup.py', run_name='__main__')"
        )
        command = [bare_python, "-c", program, "-q", "build_ext", "--build-lib", tmp_path / "lib"]
        result = subprocess.run(
            command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=False
        )
        assert result.returncode != 0
        assert "Traceback" not in result.stderr, result.stderr
        return result.stderr.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("missing", "there", "before"),
    [
        ("Ninja", ["c++", "cmake"], NO_PACKAGES),
        ("pybind11", ["c++", "cmake", "ninja"], "sys.modules['pybind11'] = None"),
    ],
)
def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    missing, there, before, failed_build
):
    message = failed_build(*there, before=before)
    assert message == f"torch_ext: {missing} was not found; `pip install cmake ninja pybind11`."


def test_missing_python_headers_are_named(failed_build):
    hidden = "import sysconfig; sysconfig.get_path = lambda name: '/nonexistent'"
    assert "python3-dev" in failed_build("c++", "cmake", "ninja", before=hidden)


def test_a_missing_compiler_is_named(failed_build):
    assert "no C++ compiler was found" in failed_build("cmake", "ninja")


def test_the_setuptools_that_is_asked_for_is_the_projects(failed_build):
    before = "import setuptools; setuptools.__version__ = '65.5.0'"
    oldest = re.search(r'"setuptools>=(\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert f">={oldest}," in failed_build(before=before)


def test_a_torch_root_without_torch_is_named(failed_build, tmp_path):
    message = failed_build(TORCH_EXT_TORCH_ROOT=str(tmp_path))
    assert f"TORCH_EXT_TORCH_ROOT={tmp_path} is no PyTorch" in message


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch with CUDA")
def test_cuda_home_comes_before_the_path(failed_build, tmp_path):
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho release 98.7\n")
    nvcc.chmod(0o755)
    message = failed_build("nvcc", FORCE_CPU="0", CUDA_HOME=str(tmp_path / "cuda"))
    assert f"{nvcc} is of CUDA 98.7" in message

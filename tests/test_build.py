"""A build that cannot succeed says in one sentence what is missing."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK_TORCH = (
    "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', *sys.argv[1:]]; "
)


def _failed_build(tmp_path, *python, **environment):
    """The last line of the error output of a build in `environment`, on a path without tools."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CXX", "CUDACXX", "CUDA_HOME")}
    done = subprocess.run(
        [sys.executable, *(python or ["setup.py"]), "-q", "build_ext", "--build-lib", tmp_path],
        cwd=ROOT,
        env=kept | {"PATH": str(tmp_path), "FORCE_CPU": "0", "FORCE_CUDA": "0"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_missing_torch_is_named(tmp_path):
    message = _failed_build(
        tmp_path, "-c", BLOCK_TORCH + "runpy.run_path('setup.py', run_name='__main__')"
    )
    assert "torch" in message and "--no-build-isolation" in message


def test_a_missing_compiler_is_named(tmp_path):
    assert "no C++ compiler was found" in _failed_build(tmp_path, FORCE_CPU="1")


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch with CUDA")
def test_a_missing_nvcc_is_named_where_cuda_is_demanded(tmp_path):
    assert "nvcc was not found" in _failed_build(tmp_path, FORCE_CUDA="1")

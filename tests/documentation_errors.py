"""Provokes the errors that docs/troubleshooting.md shows, each by the name in front of its text."""

import functools
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import pytest
import torch
from documentation import REPOSITORY
from torch import nn

import torch_ext
from torch_ext import _library


def raised(function, *arguments):
    """The last part of the traceback: the exception's name and text."""
    try:
        function(*arguments)
    except Exception as error:  # noqa: BLE001  (what is raised is what is looked at)
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")


def stderr_of(*command, **environment):
    """Of a program that fails, in a fresh process."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0, done.stdout
    return done.stderr


# ---- Building and importing --------------------------------------------------------------------


def build(folder, before="pass", **environment):
    """A build after these lines of Python, that finds no tools but those of the interpreter's own folder."""
    program = (
        f"import runpy, shutil, sys; {before}; sys.argv = ['setup.py', *sys.argv[1:]]; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    bare = {"PATH": str(folder), "CUDACXX": "", "CUDA_HOME": "", "FORCE_CPU": "0"}
    command = (sys.executable, "-c", program, "-q", "build_ext", "--build-lib", folder)
    return stderr_of(*command, **{**bare, **environment})


def unsupported_torch(folder):
    (folder / "version.py").write_text("__version__ = '2.10.0'\ncuda = None\n")
    return build(folder, FORCE_CPU="1", TORCH_EXT_TORCH_ROOT=str(folder))


def no_cmake(folder):
    # A path without the environment's own folder, where CMake is.
    hide = "shutil.which = lambda n, w=shutil.which, **k: None if n == 'cmake' else w(n, **k)"
    return build(folder, hide, FORCE_CPU="1")


def needs_cuda(build):
    return build if torch.version.cuda else lambda _: pytest.skip("needs a torch with CUDA")


def other_nvcc(folder):
    compiler = folder / "nvcc"
    compiler.write_text("#!/bin/sh\necho Cuda compilation tools, release 12.4, V12.4.131\n")
    compiler.chmod(0o755)
    return build(folder, CUDACXX=str(compiler))


def loaded(folder, build=(), text=None):
    """Loads a copy of the package that notes another build, or has another library."""
    note = json.loads((_library.PACKAGE / "_build.json").read_text())
    (folder / "_build.json").write_text(json.dumps({**note, **dict(build)}))
    (folder / "_C.abi3.so").touch()
    library = folder / "lib" / "libtorch_ext.so"
    library.parent.mkdir()
    if text is not None:
        library.write_text(text)
    # A user's process has no other copy, as this one has.
    alone = mock.patch.object(_library, "_check_other_copies")
    with mock.patch.multiple(_library, PACKAGE=folder, LIBRARY=library), alone:
        return raised(_library.load)


def other_cuda(folder):
    with mock.patch("torch.version.cuda", None):
        return loaded(folder, {"cuda": "13.0", "version": "0.1.0+pt2.15cu130"})


# ---- Saved and compiled models -----------------------------------------------------------------


def network():
    return nn.Sequential(nn.Linear(3, 3), torch_ext.PReLU(3)).eval()


LOAD = """
import sys, torch
for load in (
    lambda: torch.export.load(sys.argv[1]),
    lambda: torch.jit.load(sys.argv[2]),
    lambda: torch._C._dispatch_find_schema_or_throw("torch_ext::prelu", ""),
):
    try:
        load()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
sys.exit(1)
"""


@functools.cache
def load_errors():
    """Of one process that does not know torch_ext.

    The last one stands for packages of AOTInductor: it is where they end that lack an operator, as
    tests/test_aot_inductor.py shows with real ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/model.pt2", f"{folder}/model.ts"]
        torch.export.save(torch.export.export(network(), (torch.randn(2, 3),)), files[0])
        torch.jit.script(network()).save(files[1])
        return stderr_of(sys.executable, "-c", LOAD, *files)


def onnx_packages(_):
    with mock.patch.dict(sys.modules, {"onnxscript": None}):
        return raised(torch_ext.onnx.translation_table)


def monitored(_):
    model = network().train()
    with torch_ext.ActivationMonitor(model):
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        return raised(compiled, torch.randn(2, 3))


def policy(_):
    with mock.patch.dict(os.environ, {"TORCH_EXT_COMPILE": "never"}):
        return raised(runpy.run_path, torch_ext.inductor.__file__)


# ---- Models with fused norms -------------------------------------------------------------------


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2


def used(use):
    """How the result of a changed norm is used."""
    model, x = nn.Sequential(nn.BatchNorm2d(8), nn.PReLU(8)), torch.randn(2, 8, 4, 4)
    torch_ext.fuse_norm_prelu(model)
    return raised(use, x, model[0](x), model[1])


def norm_gradient(x, z, prelu):
    prelu(z)
    z.retain_grad()


# ---- C++ and CMake -----------------------------------------------------------------------------


def configured(folder, *options):
    """A CMake project like the guide's, in an environment that knows of no torch_ext."""
    cmake = shutil.which("cmake", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    if cmake is None:
        pytest.skip("cmake is not installed")
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(app LANGUAGES NONE)\n"
        "find_package(torch_ext CONFIG REQUIRED)\n"
    )
    return stderr_of(cmake, "-S", folder, "-B", folder / "build", *options, CMAKE_PREFIX_PATH="")


def cmake_torch(folder):
    other = folder / "torch" / "include"
    (other / "ATen" / "core").mkdir(parents=True)
    (other / "ATen" / "core" / "Tensor.h").touch()
    header = other / "torch" / "csrc" / "api" / "include" / "torch" / "version.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define TORCH_VERSION_MAJOR 1\n#define TORCH_VERSION_MINOR 13\n")
    prefix = f"-DCMAKE_PREFIX_PATH={torch_ext.cmake_prefix_path}"
    return configured(folder, prefix, f"-DTORCH_EXT_TORCH_ROOT={folder / 'torch'}")


# ---- By name; each is given an empty folder ----------------------------------------------------

quint8 = functools.partial(torch.quantize_per_tensor, torch.randn(2, 3), 0.1, 0, torch.quint8)
bfloat16 = torch.ones(3, dtype=torch.bfloat16)

NAMES = {
    "no_torch": lambda folder: build(folder, "sys.modules['torch'] = None"),
    "unsupported_torch": unsupported_torch,
    "old_setuptools": lambda folder: build(
        folder, "import setuptools; setuptools.__version__ = '65.5.0'"
    ),
    "no_cmake": no_cmake,
    "no_nvcc": needs_cuda(lambda folder: build(folder, FORCE_CUDA="1")),
    "other_nvcc": needs_cuda(other_nvcc),
    "other_torch": lambda folder: loaded(folder, {"torch": "1.13"}),
    "other_cuda": other_cuda,
    "not_built": loaded,
    "broken": lambda folder: loaded(folder, text="broken"),
    "dtypes": lambda _: raised(torch_ext.prelu, torch.randn(2, 3), bfloat16),
    "quantized": lambda _: raised(torch_ext.PReLU(3), quint8()),
    "channels": lambda _: raised(torch_ext.PReLU(64), torch.randn(8, 3, 28, 28)),
    "integers": lambda _: raised(torch_ext.prelu, torch.arange(3), torch.tensor(1)),
    "example_inputs": lambda _: raised(torch_ext.parametrize_relu, nn.Sequential(nn.ReLU())),
    **dict.fromkeys(("export_load", "jit_load", "aoti_load"), lambda _: load_errors()),
    "norm_input_changed": lambda _: used(lambda x, z, prelu: prelu(z + x.add_(1))),
    "norm_in_a_function": lambda _: used(lambda x, z, prelu: _Double.apply(z)),
    "norm_gradient": lambda _: used(norm_gradient),
    "onnx_packages": onnx_packages,
    "monitored": monitored,
    "policy": policy,
    "cmake_prefix": configured,
    "cmake_torch": cmake_torch,
}

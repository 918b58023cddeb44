"""`build.py FOLDER`: builds in place with what is there, for the GPU that TORCH_CUDA_ARCH_LIST names.

The steps of setup.py without setuptools, of which a lent machine may have an old one, and without network. The operator
library has no Python in it: one that came here from a machine without a GPU (`make gpu-prepare`) is kept if it is of
these sources, this torch and this GPU, and only the small module for this Python is compiled.
"""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "torch_ext"
LIBRARY = PACKAGE / "lib" / "libtorch_ext.so"
MADE_FOR = LIBRARY.with_name("made_for.json")
OPTIONS = {
    "TORCH_EXT_CUDA": "ON",
    "TORCH_EXT_IN_PLACE": "ON",
    "TORCH_EXT_PYTHON": "ON",
    "TORCH_EXT_TORCH_ROOT": Path(torch.__file__).parent,
    "Python_EXECUTABLE": sys.executable,
    "pybind11_DIR": pybind11.get_cmake_dir(),
}


def made_for():
    """What the library must be of; with itself, because other builds may have replaced it."""
    digest = hashlib.sha256()
    files = [*ROOT.glob("csrc/**/*.*"), *ROOT.glob("cmake/*"), ROOT / "CMakeLists.txt", LIBRARY]
    for path in sorted(files):
        digest.update(path.read_bytes())
    version = torch.__version__.partition("+")[0]
    return [digest.hexdigest(), version, os.environ["TORCH_CUDA_ARCH_LIST"]]


def module():
    """The command that compiles torch_ext._C alone."""
    includes = (ROOT / "csrc", ROOT / "csrc/include", pybind11.get_include())
    options = [f"-I{path}" for path in (*includes, sysconfig.get_path("include"))]
    target = PACKAGE / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    libraries = (
        f"-L{LIBRARY.parent}",
        "-ltorch_ext",
        "-Wl,-rpath,$ORIGIN/lib,--allow-shlib-undefined",
    )
    options += ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-shared", "-o", target]
    return ["c++", *options, ROOT / "csrc/python/module.cpp", *libraries]


[folder] = sys.argv[1:]
if MADE_FOR.exists() and LIBRARY.exists() and json.loads(MADE_FOR.read_text()) == made_for():
    subprocess.run(module(), check=True)
else:
    for step in (
        ("-S", ROOT, "-B", folder, "-G", "Ninja", *(f"-D{k}={v}" for k, v in OPTIONS.items())),
        ("--build", folder),
        ("--install", folder, "--prefix", PACKAGE),
    ):
        subprocess.run(["cmake", *step], check=True)
    MADE_FOR.write_text(json.dumps(made_for()))
check = "import torch_ext; assert torch_ext.build_info()['cuda'], 'built without CUDA'"
subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)

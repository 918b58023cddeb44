"""`build.py FOLDER`: builds in place with what is there, for the GPU that TORCH_CUDA_ARCH_LIST names.

The steps of setup.py without setuptools, of which a lent machine may have an old one, and without network.
"""

import subprocess
import sys
from pathlib import Path

import pybind11
import torch

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "TORCH_EXT_CUDA": "ON",
    "TORCH_EXT_IN_PLACE": "ON",
    "TORCH_EXT_PYTHON": "ON",
    "TORCH_EXT_TORCH_ROOT": Path(torch.__file__).parent,
    "Python_EXECUTABLE": sys.executable,
    "pybind11_DIR": pybind11.get_cmake_dir(),
}

[folder] = sys.argv[1:]
for step in (
    ("-S", ROOT, "-B", folder, "-G", "Ninja", *(f"-D{k}={v}" for k, v in OPTIONS.items())),
    ("--build", folder),
    ("--install", folder, "--prefix", ROOT / "torch_ext"),
):
    subprocess.run(["cmake", *step], check=True)
check = "import torch_ext; assert torch_ext.build_info()['cuda'], 'built without CUDA'"
subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)

"""The wheel, installed into a fresh environment: it works there, type checkers know it, it may be moved."""

import importlib.util
import os
import re
import sys
import sysconfig

import pytest
import torch
from programs import ROOT, TORCH, TORCH_MINOR, error_of, output_of

SMOKE = """
import torch, torch_ext
x = torch.tensor([-2.0, 3.0], dtype=torch.float64, requires_grad=True)
layer = torch_ext.PReLU(dtype=torch.float64)
layer(x).sum().backward()
assert x.grad.tolist() == [0.25, 1.0], x.grad
assert layer.weight.grad.tolist() == [-2.0], layer.weight.grad
print(torch_ext.__file__)
"""


def test_it_works_where_it_was_installed(installed):
    assert str(installed.packages) in installed.run(SMOKE)


def test_it_tells_what_it_was_built_from(installed):
    text = output_of(installed.python, "-m", "torch_ext.info", cwd=installed.folder)
    assert f"pt{TORCH_MINOR}" in text
    assert str(installed.packages) in text


def test_it_passes_the_tests_of_the_package_in_the_source_tree(installed):
    """All but those that compare paths: torch is a link here, and paths have spaces."""
    tests = ROOT / "tests"
    printed = output_of(
        *(
            installed.python,
            "-m",
            "pytest",
            "-c",
            ROOT / "pyproject.toml",
            "-p",
            "no:cacheprovider",
        ),
        *("-k", "not shares_torchs_openmp_runtime and not one_operator_library_is_in"),
        *(tests / "test_native_library.py", tests / "test_package.py"),
        cwd=installed.folder,
    )
    assert re.search(r"\b[3-9]\d passed", printed), printed


def test_importing_it_into_another_torch_is_refused(installed, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("__version__ = '1.13.1'\n")
    error = error_of(
        installed.python, "-c", "import torch_ext", cwd=tmp_path, PYTHONPATH=str(tmp_path)
    )
    assert error.splitlines()[-1].startswith("ImportError: torch_ext")
    assert f"was built for torch {TORCH_MINOR}, but torch 1.13.1 is installed" in error


# ---- Types -------------------------------------------------------------------------------------

USER = """
import torch
import torch_ext
from torch import nn


def build(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), torch_ext.PReLU(width), nn.ReLU())


model = build(8)
report: torch_ext.SwapReport = torch_ext.replace_prelu(model, filter_fn=lambda module, name: True)
print(report)
torch_ext.restore_prelu(model)
torch_ext.parametrize_relu(model, (torch.zeros(2, 3),), per_channel=False)
slopes: list[nn.Parameter] = list(torch_ext.slope_parameters(model))
y: torch.Tensor = torch_ext.prelu(torch.zeros(2, 8), slopes[0])
with torch_ext.ActivationMonitor(model) as monitor, torch_ext.override_aten():
    model(torch.zeros(2, 3)).sum().backward()
print(monitor.summary())
version: str = torch_ext.__version__
prefix: str = torch_ext.cmake_prefix_path
"""
MISUSE = {
    'torch_ext.PReLU("many")': "arg-type",
    "torch_ext.prelu(1, 2)": "arg-type",
    "torch_ext.no_such_name": "attr-defined",
}

needs_mypy = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is not installed"
)


@needs_mypy
def test_a_users_program_passes_mypy_strict_and_its_mistakes_do_not(installed, tmp_path):
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "misuse.py").write_text("\n".join(["import torch_ext", *MISUSE, ""]))
    mypy = [
        *(sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache"),
        *("--python-executable", installed.python),
    ]
    output_of(*mypy, "user.py", cwd=tmp_path)
    errors = error_of(*mypy, "misuse.py", cwd=tmp_path)
    for number, code in enumerate(MISUSE.values(), start=2):
        assert re.search(rf"misuse\.py:{number}: error: .*\[{code}\]", errors), errors


@needs_mypy
def test_the_stub_of_the_native_module_is_what_the_module_has(installed, tmp_path):
    """stubtest imports the installed module, and compares names, arguments and defaults."""
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")
    output_of(
        *(installed.python, "-m", "mypy.stubtest", "torch_ext._C"),
        *("--mypy-config-file", "mypy.ini"),
        cwd=tmp_path,
    )


# ---- Another place -----------------------------------------------------------------------------


def test_it_works_after_it_was_moved(installed):
    moved = installed.folder.with_name("moved elsewhere")
    os.rename(installed.packages, moved)
    try:
        path = f"{moved}:{sysconfig.get_path('purelib')}"  # what torch needs stays where it is
        printed = output_of(installed.python, "-c", SMOKE, cwd=moved.parent, PYTHONPATH=path)
        assert str(moved / "torch_ext") in printed
        load = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print(open('/proc/self/maps').read())"
        maps = output_of(
            installed.python, "-c", load, moved / "torch_ext/lib/libtorch_ext.so", cwd=moved.parent
        )
        assert str(TORCH.resolve() / "lib" / "libtorch_cpu.so") in maps
    finally:
        os.rename(moved, installed.packages)


def test_pip_refuses_it_where_another_torch_is_installed(installed, wheel, tmp_path):
    """By its metadata, before it copies a file."""
    fake = tmp_path / "torch-1.13.1.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.13.1\n")
    (fake / "RECORD").touch()
    (fake / "INSTALLER").write_text("pip\n")
    error = error_of(
        *(sys.executable, "-m", "pip", "install", "--no-index", "--dry-run"),
        *("--target", tmp_path / "target", wheel),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
        PIP_FIND_LINKS="",
    )
    assert re.search(rf"torch<\S+,>={TORCH_MINOR}\.0", error)
    assert "No matching distribution found for torch" in error
    assert torch.__version__  # this process's torch is another one


def test_pip_refuses_it_for_another_python(wheel, tmp_path):
    """`make pythons` has the other way, too: pip of another Python, and a wheel for it."""
    error = error_of(
        *(sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--dry-run"),
        *("--only-binary=:all:", "--python-version=3.99", "--target", tmp_path / "target", wheel),
        cwd=tmp_path,
    )
    assert f"{wheel.name} is not a supported wheel on this platform" in error

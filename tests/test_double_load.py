"""The library twice in a process: it is said what happened."""

import shutil
import signal

import pytest
import torch
from installed import LIBRARY, PACKAGE, run_python

import torch_ext

SCHEMA = "prelu(Tensor input, Tensor weight) -> Tensor"

LOAD_AGAIN = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import torch_ext
for path in sys.argv[2:]:
    torch.ops.load_library(path)
print(torch_ext.prelu(torch.tensor([-2.0]), torch.tensor(0.25)).item())
"""


def test_loading_the_file_again_by_any_of_its_names_changes_nothing(tmp_path):
    link = tmp_path / "link.so"
    link.symlink_to(LIBRARY)
    assert run_python(LOAD_AGAIN, PACKAGE.parent, LIBRARY, link).stdout.strip() == "-0.5"


def test_a_second_copy_of_the_package_is_an_import_error_that_says_so(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "torch_ext", ignore=shutil.ignore_patterns("__pycache__"))
    program = """
import sys, torch
torch.ops.load_library(sys.argv[1])
sys.path.insert(0, sys.argv[2])
try:
    import torch_ext
except ImportError as error:
    print(error)
"""
    said = run_python(program, LIBRARY, tmp_path).stdout
    assert "another copy of torch_ext is loaded in this process already" in said


def test_a_copy_of_the_file_ends_the_process_and_says_why(tmp_path):
    """PyTorch's own answer, which no library can change: its dispatcher knows one of each name."""
    copy = shutil.copy(LIBRARY, tmp_path)
    done = run_python(LOAD_AGAIN, PACKAGE.parent, copy, code=-signal.SIGABRT)
    assert done.stdout == ""
    assert "Only a single TORCH_LIBRARY can be used to register the namespace torch_ext" in (
        done.stderr
    )


def test_defining_the_operator_again_is_an_error_that_names_it():
    with pytest.raises(RuntimeError, match=r"torch_ext::prelu"):
        torch.library.define("torch_ext::prelu", SCHEMA.removeprefix("prelu"))
    with pytest.raises(RuntimeError, match=r"Only a single TORCH_LIBRARY .* namespace torch_ext"):
        torch.library.Library("torch_ext", "DEF")
    with pytest.raises(RuntimeError, match="prelu"):
        torch.library.Library("torch_ext", "FRAGMENT").define(SCHEMA)
    assert torch_ext.prelu(torch.tensor([-2.0]), torch.tensor(0.25)).item() == -0.5

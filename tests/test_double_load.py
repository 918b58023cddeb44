"""Library files that are not ours, and ours twice in a process: it is said what happened."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torch_ext

PACKAGE = Path(torch_ext.__file__).parent
LIBRARY = PACKAGE / "lib" / "libtorch_ext.so"

SCHEMA = "prelu(Tensor input, Tensor weight) -> Tensor"


def _run(program, *arguments):
    """A program in a process that finds no torch_ext but by the paths it is given."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


# ---- Foreign and damaged files -----------------------------------------------------------------


def _package_with_library(folder, content):
    """A copy of the package whose library is another file."""
    copy = folder / "torch_ext"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("lib", "include", "__pycache__"))
    (copy / "lib").mkdir()
    (copy / "lib" / LIBRARY.name).write_bytes(content)


def _for_another_processor(content):
    machine = 18  # e_machine of an ELF header
    return content[:machine] + (243).to_bytes(2, "little") + content[machine + 2 :]  # RISC-V


FILES = {
    "empty": lambda ours, other: b"",
    "text": lambda ours, other: b"#!/bin/sh\n",
    "header_only": lambda ours, other: ours[:64],
    "first_half": lambda ours, other: ours[: len(ours) // 2],  # loading it would be fatal
    "for_another_processor": lambda ours, other: _for_another_processor(ours),
    "another_library": lambda ours, other: other,
}

IMPORT_EACH = """
import json, sys, torch
refusals = {}
for name in sys.argv[2:]:
    sys.path.insert(0, f"{sys.argv[1]}/{name}")
    try:
        import torch_ext
    except ImportError as error:
        refusals[name] = [str(error), error.name]
    for module in [module for module in sys.modules if module.split(".")[0] == "torch_ext"]:
        del sys.modules[module]
print(json.dumps(refusals))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What each import raised, one after the other in one process."""
    folder = tmp_path_factory.mktemp("foreign")
    other = Path(torch.__file__).parent / "lib" / "libshm.so"
    for kind, make in FILES.items():
        _package_with_library(folder / kind, make(LIBRARY.read_bytes(), other.read_bytes()))
    done = _run(IMPORT_EACH, folder, *FILES)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_not_our_library_is_an_import_error_that_says_so(kind, refusals):
    message, name = refusals[kind]
    assert message.startswith("the native library of torch_ext does not load: ")
    assert "Build it again: `make build`" in message
    assert name == "torch_ext"


# ---- Twice in a process ------------------------------------------------------------------------

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
    done = _run(LOAD_AGAIN, PACKAGE.parent, LIBRARY, link)
    assert (done.returncode, done.stdout.strip()) == (0, "-0.5"), done.stderr


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
    done = _run(program, LIBRARY, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "another copy of torch_ext is loaded in this process already" in done.stdout


def test_a_copy_of_the_file_ends_the_process_and_says_why(tmp_path):
    """PyTorch's own answer, which no library can change: its dispatcher knows one of each name."""
    copy = shutil.copy(LIBRARY, tmp_path)
    done = _run(LOAD_AGAIN, PACKAGE.parent, copy)
    assert done.returncode == -signal.SIGABRT and done.stdout == ""
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

"""What the compiler made of the kernels: AVX code only where AVX was asked for."""

import pathlib
import platform
import re
import shutil
import subprocess

import pytest

import torch_ext

LIBRARY = pathlib.Path(torch_ext.__file__).parent / "lib" / "libtorch_ext.so"
FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
# VEX and EVEX instructions: all have names that begin with v, and no others of x86 in our code do.
AVX = re.compile(r"^\s*[0-9a-f]+:\s+v[a-z0-9]+ ")


@pytest.fixture(scope="module")
def code():
    """Pairs of function and instruction, one for each instruction of the library."""
    if platform.machine() != "x86_64" or shutil.which("objdump") is None:
        pytest.skip("needs objdump (Debian: binutils) on x86-64")
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", LIBRARY],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    pairs, function = [], ""
    for line in listing.splitlines():
        if found := FUNCTION.match(line):
            function = found.group(1)
        else:
            pairs.append((function, line))
    return pairs


def test_only_functions_for_avx_use_it(code):
    users = {function for function, instruction in code if AVX.match(instruction)}
    assert [name for name in users if "AVX2::" not in name and "AVX512::" not in name] == []
    assert any("::AVX2::" in name for name in users), "this test would not see AVX where it is"


def test_only_functions_for_avx512_use_it(code):
    users = {function for function, instruction in code if "%zmm" in instruction}
    assert [name for name in users if "AVX512::" not in name] == []
    assert users, "this test would not see AVX-512 where it is"

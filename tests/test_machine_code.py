"""What the compiler made of the kernels: AVX code only where AVX was asked for; and nothing, anywhere,
that changes the processor's mode of arithmetic."""

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
# Rounding, denormals and exceptions of SSE and of the x87 unit.
ARITHMETIC_MODE = re.compile(
    r"\b(v?ldmxcsr|v?stmxcsr|fldcw|fn?stcw|fldenv|fx?rstor\d*|xrstor\w*)\b"
)

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("objdump") is None,
    reason="needs objdump (Debian: binutils) on x86-64",
)


def disassembled(binary):
    """Pairs of function and instruction, one for each instruction."""
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", binary],
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


@pytest.fixture(scope="module")
def code():
    return disassembled(LIBRARY)


def test_only_functions_for_avx_use_it(code):
    users = {function for function, instruction in code if AVX.match(instruction)}
    assert [name for name in users if "AVX2::" not in name and "AVX512::" not in name] == []
    assert any("::AVX2::" in name for name in users), "this test would not see AVX where it is"


def test_only_functions_for_avx512_use_it(code):
    users = {function for function, instruction in code if "%zmm" in instruction}
    assert [name for name in users if "AVX512::" not in name] == []
    assert users, "this test would not see AVX-512 where it is"


def mode_changes(pairs):
    return {function for function, instruction in pairs if ARITHMETIC_MODE.search(instruction)}


def test_no_code_touches_the_mode_of_arithmetic(code):
    assert len(code) > 10000
    assert mode_changes(code) == set()


def test_a_planted_change_of_it_is_found(tmp_path):
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("needs g++")
    (tmp_path / "planted.cpp").write_text(
        '#include <xmmintrin.h>\nextern "C" void planted() { _mm_setcsr(_mm_getcsr() | 0x8040); }\n'
    )
    library = tmp_path / "planted.so"
    subprocess.run([compiler, "-shared", tmp_path / "planted.cpp", "-o", library], check=True)
    assert mode_changes(disassembled(library)) == {"planted"}

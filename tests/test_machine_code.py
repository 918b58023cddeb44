"""What the compiler made of the kernels: AVX code only where AVX was asked for; and nothing, anywhere,
that changes the processor's mode of arithmetic."""

import os
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


def shared_symbols(listing):
    """Of `nm -C`: what an object defines for other objects, too, and not under its own namespace."""
    symbols = (line.split(maxsplit=2) for line in listing.splitlines())
    return {
        name
        for _, kind, name in (parts for parts in symbols if len(parts) == 3)
        if kind in "TWVBDRGu" and not re.search(r"::AVX\w+::|^DW\.ref\.", name)
    }


def test_objects_for_avx_share_no_function_with_others():
    """A linker takes one copy of an inline function; it must not find one that uses AVX, in any
    configuration of the build."""
    build = os.environ.get("TORCH_EXT_BUILD_DIR")
    objects = sorted(pathlib.Path(build or "none").glob("CMakeFiles/*_AVX*.dir/**/*.o"))
    if not objects:
        pytest.skip("no objects: run by `make pytest`, or set TORCH_EXT_BUILD_DIR")
    assert len(objects) >= 2
    for path in objects:
        listing = subprocess.run(
            ["nm", "-C", "--defined-only", path], check=True, capture_output=True, text=True
        ).stdout
        assert "run_tasks<torch_ext::" in listing
        assert shared_symbols(listing) == set(), path


def test_a_planted_function_of_all_is_found():
    own = "0 W void torch_ext::cpu::AVX2::run_tasks<torch_ext::PreluForward, float>(int)"
    planted = "0000000000000000 W torch_ext::cpu::Plan::size() const"
    assert shared_symbols(f"{own}\n{planted}\n") == {"torch_ext::cpu::Plan::size() const"}


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

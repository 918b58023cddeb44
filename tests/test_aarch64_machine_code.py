"""What the compiler made of the CPU kernels for aarch64: instructions of NEON. `make aarch64` runs it."""

import collections
import os
import re
from pathlib import Path

import pytest
from installed import output_of

BUILD = os.environ.get("TORCH_EXT_AARCH64")
pytestmark = pytest.mark.skipif(BUILD is None, reason="run by `make aarch64`")

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
# An instruction and what it is on: "fmul 4s" of four floats, "fcvt h" of one half.
INSTRUCTION = re.compile(r"^\s*[0-9a-f]+:\s+([a-z]\w*)\s+([a-z])\d*(?:\.(\d+[a-z]))?")

# The main loop of runs of one channel: in PReLU, that of most of its work.
LOOPS = {
    "double": "runs_apart<2, 4l>",
    "float": "runs_apart<2, 4l>",
    "c10::Half": "runs_apart<2, 2l>",
    "c10::BFloat16": "runs_apart<2, 2l>",
}
LANES = {scalar: "2d" if scalar == "double" else "4s" for scalar in LOOPS}
# By the vector: to the compute type and back.
WIDENED = {"c10::Half": {"fcvtl 4s", "fcvtl2 4s"}, "c10::BFloat16": {"shl 4s", "and 16b"}}
ROUNDED = {"c10::Half": {"fcvtn 4h", "fcvtn2 8h"}, "c10::BFloat16": {"ushr 4s", "orr 16b"}}
SELECTS = {"bsl 16b", "bit 16b", "bif 16b"}  # by which of their operands the result replaces
# Arithmetic and conversions of single numbers.
OF_ONE = re.compile(r"(f(cvt|mul|add|sub|madd|cmpe?|csel)|[su]cvtf) [hsd]$")


@pytest.fixture(scope="module")
def functions():
    """By function, how often it has each instruction."""
    counts = {}
    for name in ("prelu", "norm_prelu"):
        path = Path(BUILD, f"CMakeFiles/{name}_cpu_DEFAULT.dir/csrc/kernels/cpu/{name}.cpp.o")
        listing = output_of("aarch64-linux-gnu-objdump", "-dC", "--no-show-raw-insn", path)
        for line in listing.splitlines():
            if found := FUNCTION.match(line):
                counts[found[1]] = here = collections.Counter()
            elif found := INSTRUCTION.match(line):
                here[f"{found[1]} {found[3] or found[2]}"] += 1
    return counts


def loop(functions, operation, scalar):
    start = (
        f"void torch_ext::cpu::DEFAULT::Planes<torch_ext::{operation}, {scalar}>::{LOOPS[scalar]}("
    )
    [found] = [counts for name, counts in functions.items() if name.startswith(start)]
    return found


@pytest.mark.parametrize("scalar", LOOPS)
@pytest.mark.parametrize("operation", ["PreluForward", "PreluBackward"])
def test_selects_products_and_conversions_are_of_whole_vectors(functions, operation, scalar):
    found = loop(functions, operation, scalar)
    lanes = LANES[scalar]
    wanted = {f"fcmgt {lanes}", f"fmul {lanes}"}
    wanted |= WIDENED.get(scalar, set()) | ROUNDED.get(scalar, set())
    assert wanted - set(found) == set()
    assert SELECTS & set(found)
    assert {name for name in found if OF_ONE.match(name)} == set()


@pytest.mark.parametrize("scalar", LOOPS)
def test_sums_take_a_fused_multiplication_and_addition(functions, scalar):
    found = loop(functions, "PreluBackward", scalar)
    assert found[f"fmla {LANES[scalar]}"] >= 4


def test_no_kernel_rounds_halves_one_by_one(functions):
    assert len(functions) > 200
    assert any("NormPrelu" in name for name in functions)
    assert {name for name, counts in functions.items() if counts["fcvt h"]} == set()

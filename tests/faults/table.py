"""Faults to plant, one at a time, each with the check that has to find it.

A fault is a text of a file and what to put in its place; an entry whose text is not there, or there
more than once, is an error, so the table cannot go stale unseen.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """How a fault is looked for: what to copy, and commands that all pass without it."""

    folders: tuple[str, ...]  # what the commands need, as it lies in the repository
    commands: tuple[
        str, ...
    ]  # {cxx}: the compiler; {headers}: torch's; {libraries}: its and GoogleTest
    edits: tuple[tuple[str, str, str], ...] = ()  # file, old, new: what makes them quick enough


@dataclass(frozen=True)
class Fault:
    name: str
    check: str  # a key of CHECKS
    file: str
    old: str
    new: str
    finding: str  # a regular expression: what the failing command says, so the right reason


def _built_alone(test, flags, filter="*", edits=()):
    """A test of the CUDA kernels on the CPU."""
    return Check(
        ("csrc", "tests/cpp"),
        (
            f"{{cxx}} {flags} -g1 -Wno-unknown-pragmas -Icsrc {{headers}} tests/cpp/{test}.cpp {{libraries}}",
            f"TSAN_OPTIONS=halt_on_error=1 ./a.out --gtest_brief=1 --gtest_filter='{filter}'",
        ),
        edits,
    )


# One pair of types instead of six: a sixth of the time to compile.
FLOAT_ONLY = (
    (
        "tests/cpp/channelwise_cuda_test.cpp",
        """\
    std::pair<double, double>,
    std::pair<float, float>,
    std::pair<Half, Half>,
    std::pair<BFloat16, BFloat16>,
    std::pair<Half, float>,
    std::pair<BFloat16, float>>;
""",
        "    std::pair<float, float>>;\n",
    ),
)

CHECKS = {
    "plan": _built_alone("launch_plan_test", "-O1"),
    "kernels under asan": _built_alone(
        "channelwise_cuda_test", "-O1 -fsanitize=address", "*Tails:*Misalignment", FLOAT_ONLY
    ),
    "kernels under tsan": _built_alone(
        "channelwise_cuda_test", "-O1 -fsanitize=thread", "*Determinism:*MaskedOutputs", FLOAT_ONLY
    ),
    "compiler": Check(
        ("csrc",), ("{cxx} -fsyntax-only -x c++ -Icsrc csrc/kernels/cuda/launch_plan.h",)
    ),
}

FAULTS = [
    Fault(
        "a missing barrier before the second kernel's sums",
        "kernels under tsan",
        "csrc/kernels/cuda/channelwise.cuh",
        "columns[thread] = sum;\n    __syncthreads();\n",
        "columns[thread] = sum;\n",
        r"SUMMARY: ThreadSanitizer: data race csrc/kernels/cuda/",
    ),
    Fault(
        "a missing barrier between lanes and their sum",
        "kernels under tsan",
        "csrc/kernels/cuda/reduction.cuh",
        "  __syncthreads();\n  if (thread < channels) {",
        "  if (thread < channels) {",
        r"SUMMARY: ThreadSanitizer: data race csrc/kernels/cuda/",
    ),
    Fault(
        "a missing barrier before a cluster's sums",
        "kernels under tsan",
        "csrc/kernels/cuda/reduction.cuh",
        "  cluster_barrier();\n  const int blocks",
        "  const int blocks",
        r"SUMMARY: ThreadSanitizer: data race csrc/kernels/cuda/",
    ),
    Fault(
        "a load past the end",
        "kernels under asan",
        "csrc/kernels/cuda/walk.h",
        "position + kVector + guard <= numel",
        "position + guard <= numel",
        r"AddressSanitizer: heap-buffer-overflow",
    ),
    Fault(
        "one element past the end of a tail",
        "kernels under asan",
        "csrc/kernels/cuda/vector_access.cuh",
        "slot.begin <= i && i < slot.end;",
        "slot.begin <= i && i <= slot.end;",
        r"AddressSanitizer: heap-buffer-overflow[^=]*READ[^=]*load_part",
    ),
    Fault(
        "rows rounded down",
        "plan",
        "csrc/kernels/cuda/launch_plan.h",
        "walk.rows = ceil_div(view.outer, merged);",
        "walk.rows = view.outer / merged;",
        r"launch_plan_test\.cpp:\d+: Failure",
    ),
    Fault(
        "an int32 position of a plane",
        "compiler",
        "csrc/kernels/cuda/walk.h",
        "int64_t start;       // the plane's first element",
        "int32_t start;       // the plane's first element",
        r"walk\.h:\d+:\d+: error: static assertion failed",
    ),
    Fault(
        "an int32 position of a column",
        "compiler",
        "csrc/kernels/cuda/walk.h",
        "int64_t position;  // flat index of the slot's element 0 in the next row",
        "int32_t position;  // flat index of the slot's element 0 in the next row",
        r"walk\.h:\d+:\d+: error: static assertion failed",
    ),
]

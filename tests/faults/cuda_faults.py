"""Faults of the CUDA kernels, each with the check that has to find it on the CPU.

One for each mistake that such kernels are known for. plant.py plants them one at a time; a text to replace
that is not there, or there more than once, is an error, so the table cannot go stale unseen.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """How a fault is looked for: what to copy, and commands that all pass without it."""

    folders: tuple[str, ...]  # what the commands need, as it lies in the repository
    commands: tuple[
        str, ...
    ]  # {cxx}: the compiler; {headers}: torch's; {libraries}: its and GoogleTest


@dataclass(frozen=True)
class Fault:
    name: str
    check: str  # a key of CHECKS
    file: str
    old: str
    new: str
    finding: str  # a regular expression: what the failing command says, so the right reason


def _built_alone(test, flags, filter="*"):
    """A test of the CUDA kernels on the CPU."""
    return Check(
        ("csrc", "tests/cpp"),
        (
            f"{{cxx}} {flags} -g1 -ffp-contract=off -Wno-unknown-pragmas -Icsrc {{headers}} tests/cpp/{test}.cpp {{libraries}}",
            f"TSAN_OPTIONS=halt_on_error=1 ./a.out --gtest_brief=1 --gtest_filter='{filter}'",
        ),
    )


# One type instead of four: a quarter of the time to compile.
FLOAT = "-O1 -DCUDA_TESTED_TYPES=float"

CHECKS = {
    "plan": _built_alone("launch_plan_test", "-O1"),
    "kernels under asan": _built_alone(
        "cuda_engine_test", f"{FLOAT} -fsanitize=address", "*Tails:*Misalignment"
    ),
    "kernels under tsan": _built_alone(
        "cuda_engine_test", f"{FLOAT} -fsanitize=thread", "*Determinism:*MaskedOutputs"
    ),
    "operations under tsan": _built_alone(
        "cuda_operations_test", f"{FLOAT} -fsanitize=thread", "*TailsAndMisalignment"
    ),
    "compiler": Check(
        ("csrc",), ("{cxx} -fsyntax-only -x c++ -Icsrc {headers} csrc/kernels/cuda/plan.h",)
    ),
}

FAULTS = [
    Fault(
        "a missing barrier between lanes and their sum",
        "kernels under tsan",
        "csrc/kernels/cuda/sums.cuh",
        "  __syncthreads();\n  if (thread < totals) {",
        "  if (thread < totals) {",
        r"SUMMARY: ThreadSanitizer: data race csrc/kernels/",
    ),
    Fault(
        "a missing barrier before a cluster's sums",
        "kernels under tsan",
        "csrc/kernels/cuda/sums.cuh",
        "  cluster_barrier();\n  const int blocks",
        "  const int blocks",
        r"SUMMARY: ThreadSanitizer: data race csrc/kernels/",
    ),
    Fault(
        "one element past the end of a tail",
        "kernels under asan",
        "csrc/kernels/cuda/traversal.h",
        "return begin <= element && element < end;",
        "return begin <= element && element <= end;",
        r"AddressSanitizer: heap-buffer-overflow[^=]*READ[^=]*load_part",
    ),
    Fault(
        "an absent element that is summed",
        "operations under tsan",
        "csrc/kernels/cuda/sums.cuh",
        "chain = select(present && where, chain + term, chain);",
        "chain = select(where, chain + term, chain);",
        r"cuda_operations_test\.cpp:\d+: Failure",
    ),
    Fault(
        "one sum in the place of another",
        "operations under tsan",
        "csrc/kernels/cuda/kernels.cuh",
        "const int64_t row = sum * tasks.splits + tasks.split_of(task);",
        "const int64_t row = tasks.split_of(task);",
        r"SUMMARY: ThreadSanitizer: data race csrc/kernels/",
    ),
    Fault(
        "rows rounded down",
        "plan",
        "csrc/kernels/cuda/plan.h",
        "traversal.rows = ceil_div(view.outer, merged);",
        "traversal.rows = view.outer / merged;",
        r"launch_plan_test\.cpp:\d+: Failure",
    ),
    Fault(
        "an int32 position of a column",
        "compiler",
        "csrc/kernels/cuda/traversal.h",
        "int64_t position;  // flat index of the pack's element 0 in the next row",
        "int32_t position;  // flat index of the pack's element 0 in the next row",
        r"traversal\.h:\d+:\d+: error: static assertion failed",
    ),
]

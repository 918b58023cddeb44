"""The record of `make gpu`, and what `make gpu-status` reads in it: have the CUDA sources of this tree run on a GPU?

One JSON file a GPU, of one state of the sources: how each stage ended, and the benchmark's rows.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))

# What a GPU executes, and what decides how it is launched.
CUDA_SOURCES = (
    "csrc/kernels/cuda/*",
    "csrc/kernels/*.h",
    "csrc/ops/*_cuda.cpp",
    "csrc/ops/*_run.h",
)

# The stages without which a GPU has not proven the kernels.
PROOFS = ("build", "smallest", "cuda", "alone", "contract", "sanitizers", "suite")

# What the README has to say of each state, the worst first.
PHRASES = {
    "failed": "Their last run on a GPU found faults",
    "verified": "They have passed every check on",  # ... an NVIDIA H200
    "incomplete": "They have run on a GPU, but not through every check",
    "stale": "They have changed since they last ran on a GPU",
    "never": "They have not run on a GPU yet",
}


def sources_hash(root=ROOT):
    """Of the code alone: comments and spaces may change."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in CUDA_SOURCES for path in root.glob(pattern)):
        code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", path.read_text(), flags=re.DOTALL)
        digest.update(f"{path.relative_to(root)} {' '.join(code.split())}\n".encode())
    return digest.hexdigest()[:16]


def state_of(record, sources):
    """The state, and the reason in one line."""
    where = f"{record['gpu']}, {record['dates'][-1]}, {record['commit'] or 'commit not noted'}"
    if record["sources"] != sources:
        return "stale", f"have changed since they ran on a GPU ({where})"
    stages = record["stages"]
    if bad := [n for n, s in stages.items() if s["failures"] or s["status"] == "failed"]:
        return "failed", f"failed on a GPU ({where}) in: {', '.join(bad)}"
    if missing := [n for n in PROOFS if stages.get(n, {}).get("status") != "passed"]:
        return "incomplete", f"were run on a GPU ({where}), but without: {', '.join(missing)}"
    passed = sum(stage["passed"] for stage in stages.values())
    missed = [target["what"] for target in record["targets"] if target["held"] is False]
    speed = f"; speed targets missed: {', '.join(missed)}" if missed else ""
    return "verified", f"are verified on {where}: {passed} tests passed{speed}"


def status(folder, sources):
    """Of these sources, by the records of a folder; a failure on one GPU counts more than a pass on another."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("gpu-*.json"))]
    found = [state_of(record, sources) for record in records]
    order = list(PHRASES)
    never = ("never", "have not been run on a GPU, ever")
    return min(found, key=lambda one: order.index(one[0]), default=never)


if __name__ == "__main__":
    state, line = status(RESULTS, sources_hash())
    print(f"The CUDA sources of this tree {line}")
    sys.exit("--strict" in sys.argv and state != "verified")

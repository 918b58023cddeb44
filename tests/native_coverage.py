"""How much of csrc/ the tests run: a table, and two lower bounds.

    python native_coverage.py SUMMARY     what `llvm-cov export -summary-only` wrote; see full.mk

A line or branch of a template counts once, taken if any of its instances takes it: the kernels for
AVX-512 are the same source as those that run here. A branch is one that the source has, not one that
an exception takes. The .cu file, which needs a GPU, is no part of it; the kernels that it calls are.
"""

import json
import sys
from pathlib import Path

LEAST = {"lines": 95, "branches": 85}


def summaries(export: dict) -> dict[str, dict[str, tuple[int, int]]]:
    """For each file of csrc/, by its path in there: how many lines and branches, (run, all)."""
    return {
        file["filename"].partition("csrc/")[2]: {
            what: (file["summary"][what]["covered"], file["summary"][what]["count"])
            for what in LEAST
        }
        for file in export["data"][0]["files"]
        if "csrc/" in file["filename"]
    }


def percent(counts: tuple[int, int]) -> float:
    covered, count = counts
    return 100 * covered / count if count else 100


def main() -> None:
    files = summaries(json.loads(Path(sys.argv[1]).read_text()))
    for name, summary in files.items():
        cells = [
            f"{percent(summary[what]):5.1f} % of {summary[what][1]:4} {what}" for what in LEAST
        ]
        print(f"{name:32} {'   '.join(cells)}")
    totals = {
        what: percent(tuple(map(sum, zip(*(file[what] for file in files.values()), strict=True))))
        for what in LEAST
    }
    print("C++: " + ", ".join(f"{totals[what]:.1f} % of {what}" for what in LEAST))
    if missed := [what for what, least in LEAST.items() if totals[what] < least]:
        sys.exit(f"fewer {' and '.join(missed)} than {LEAST}")


if __name__ == "__main__":
    main()

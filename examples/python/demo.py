"""torch_ext on real input: a trained face detector, three activations on digits, times, norms.

Run by `make demo`, or:  python examples/python/demo.py [--quick] [--part 1 2 3 4] [--output DIR]
Exits with status 1 when a check fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import digits_demo
import mtcnn_demo
import norms_demo
import timing
import torch
from rich.console import Console

import torch_ext

PARTS = {
    1: ("A trained face detector on a photograph", mtcnn_demo.run),
    2: ("ReLU, Leaky ReLU and PReLU on digits", digits_demo.run),
    3: ("Time per forward and backward", timing.run),
    4: ("Norm and PReLU as one operator, in a whole network", norms_demo.run),
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    default = Path(__file__).resolve().parents[2] / "build" / "demo"
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--output", type=Path, default=default, help="folder for the pictures (%(default)s)"
    )
    parser.add_argument(
        "--part", type=int, nargs="+", choices=PARTS, default=list(PARTS), help="parts to run"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small run that only shows that all works"
    )
    return parser.parse_args()


def main() -> int:
    """Run the parts; 0 when every check held."""
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not console.is_terminal:
        console.width = 100  # written to a file or pipe: the tables need about 80
    start = time.perf_counter()
    total, failed = 0, []
    console.print(f"torch_ext {torch_ext.__version__}, torch {torch.__version__}", highlight=False)
    for part in arguments.part:
        title, run = PARTS[part]
        console.rule(f"[bold]{part}. {title}")
        began = time.perf_counter()
        checks = run(console, arguments.output, arguments.quick)
        console.print(f"part {part}: {time.perf_counter() - began:.0f} s\n", highlight=False)
        total += checks.total
        failed += checks.failed
    console.rule()
    console.print(
        f"{total - len(failed)} of {total} checks held, {time.perf_counter() - start:.0f} s",
        highlight=False,
    )
    for what in failed:
        console.print(f"FAILED: {what}", style="bold red", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's chatter
    sys.exit(main())

"""Times `import torch_ext` in fresh processes: what it adds to `import torch`, and which modules.

Two programs take turns, each in a new interpreter: one imports torch, the other torch and then
torch_ext. What torch_ext adds is taken twice, because torch's own import varies by more than that:
as the difference of the two medians, and as the median of the time that `import torch_ext` itself
took after torch, which is the figure to judge by. An untimed round comes first, so that files are
in the page cache and bytecode is compiled, as it is for an installed package.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import records

LIMIT = 0.1  # seconds that it may add

# Prints a line of JSON. Nothing else may be imported before the clock runs.
PROGRAM = """
import sys, time
start = time.perf_counter()
import torch
between, before = time.perf_counter(), set(sys.modules)
{statement}
end = time.perf_counter()
import json
new = sorted(set(sys.modules) - before - {{"json"}})
print(json.dumps({{
    "total": end - start, "after_torch": end - between, "new": new, "version": torch.__version__,
    "cuda_initialized": torch.cuda.is_initialized(),
}}))
"""
PROGRAMS = {
    "torch": PROGRAM.format(statement="pass"),
    "torch, torch_ext": PROGRAM.format(statement="import torch_ext"),
}


@dataclass
class Run:
    """What one process says. Times are in seconds."""

    total: float
    after_torch: float
    new: list[str]
    version: str
    cuda_initialized: bool


@dataclass
class Measured:
    """Medians over rounds, in seconds."""

    torch: str
    rounds: int
    import_torch: float
    import_both: float
    spread: float  # of import_torch: half the distance of its quartiles
    after_torch: float
    slowest_after_torch: float
    new_modules: list[str]
    cuda_initialized: bool

    @property
    def difference(self) -> float:
        """What torch_ext adds to the whole, with all the noise of torch's import."""
        return self.import_both - self.import_torch


def run(program: str) -> Run:
    """Runs it in a fresh interpreter that writes bytecode, as pip does when it installs."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    here = str(Path(__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"the import failed:\n{done.stderr}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def announced(rounds: Iterable[int], count: int) -> Iterator[int]:
    """The rounds, with a bar on a terminal."""
    if sys.stderr.isatty() and find_spec("tqdm"):
        from tqdm import tqdm

        rounds = tqdm(rounds, total=count, leave=False, unit="round")
    yield from rounds


def measure(rounds: int) -> Measured:
    """Runs both programs in turn, once untimed and then so many times."""
    runs: dict[str, list[Run]] = {name: [] for name in PROGRAMS}
    for number in announced(range(rounds + 1), rounds + 1):
        for name, program in PROGRAMS.items():
            result = run(program)
            if number > 0:
                runs[name].append(result)
    alone, both = runs.values()
    totals = [result.total for result in alone]
    quartiles = statistics.quantiles(totals, n=4)
    after = [result.after_torch for result in both]
    return Measured(
        torch=both[0].version,
        rounds=rounds,
        import_torch=statistics.median(totals),
        import_both=statistics.median(result.total for result in both),
        spread=(quartiles[2] - quartiles[0]) / 2,
        after_torch=statistics.median(after),
        slowest_after_torch=max(after),
        new_modules=both[0].new,
        cuda_initialized=any(result.cuda_initialized for result in both),
    )


def table(measured: Measured) -> str:
    """The figures in milliseconds, and what they rest on."""

    def line(name: str, seconds: float, note: str = "") -> str:
        return f"{name:34}{seconds * 1e3:9.1f}{note and '  ' + note}"

    ours = [name for name in measured.new_modules if name.split(".")[0] == "torch_ext"]
    others = [name for name in measured.new_modules if name not in ours]
    verdict = "kept" if measured.after_torch < LIMIT else "EXCEEDED"
    return "\n".join(
        [
            f"{'':34}{'ms':>9}",
            line("import torch", measured.import_torch, f"± {measured.spread * 1e3:.0f}"),
            line("import torch, torch_ext", measured.import_both),
            line("  difference", measured.difference),
            line(
                "import torch_ext, after torch",
                measured.after_torch,
                f"slowest {measured.slowest_after_torch * 1e3:.1f}; "
                f"limit {LIMIT * 1e3:.0f}: {verdict}",
            ),
            "",
            f"new modules: {len(measured.new_modules)}",
            f"  of torch_ext: {', '.join(ours) or 'none'}",
            f"  others: {', '.join(others) or 'none'}",
            f"CUDA initialised: {'yes' if measured.cuda_initialized else 'no'}",
        ]
    )


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="at least 7 (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    arguments = parser.parse_args()
    if arguments.rounds < 7:
        parser.error("--rounds: fewer than 7 say little")
    return arguments


def main() -> None:
    """Measures, prints the table, and writes the figures."""
    arguments = parse_arguments()
    load = os.getloadavg()[0]
    measured = measure(arguments.rounds)
    print(
        f"torch {measured.torch}, Python {sys.version.split()[0]}, {os.cpu_count()} cores; "
        f"medians of {measured.rounds} fresh processes each, in turn; load before: {load:.1f}\n"
    )
    print(table(measured))
    if arguments.json:
        record = {**asdict(measured), "difference": measured.difference, "load_before": load}
        records.write(record, arguments.json)


if __name__ == "__main__":
    main()

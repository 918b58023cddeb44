"""Everything that is too long for CI, one stage after the other; a table of what came of it.

    make full                          all of it: hours on two cores
    make full FULL_ARGS="fuzz tsan"    these stages; the other lines of the table stay

The table, tests/full_result.txt, is meant to be committed. Each line says when and of which commit.
Logs stay in build/full. A stage that fails does not keep the others from running.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "full"
RESULT = ROOT / "tests" / "full_result.txt"


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    command: str  # for make
    what: str  # of its output: a regular expression for the lines to quote


_PYTEST = r"^=*\s*(\d+ (?:passed|failed).* in [\d.]+s.*)$"
_CTEST = r"^(\d+% tests passed.*)$"
STAGES = (
    Stage("long-tests", "pytest PYTEST_ARGS='-m full'", _PYTEST),
    Stage("asan", "asan FULL=1", f"{_PYTEST}|{_CTEST}"),
    Stage("leaks", "leaks FULL=1", f"{_PYTEST}|^(\\d+ calls of every path)$"),
    Stage("tsan", "tsan FULL=1", r"^\[==========\] (\d+ tests .* ran)"),
    Stage("valgrind", "valgrind FULL=1", r"^\[==========\] (\d+ tests .* ran)|^(\d+ calls of .*)$"),
    Stage("fuzz", "fuzz FULL=1", r"^(fuzzing for .*)$|^stat::(number_of_executed_units: \d+)$"),
    Stage("mutants", "mutants MUTANTS='--output tests/mutants_result.txt'", r"^(\d+ mutants, .*)$"),
    Stage("coverage", "coverage", r"^(C\+\+: .*|TOTAL .*)$"),
    Stage("torches", "torches", rf"^(torch [\d.]+)$|{_PYTEST}"),
    Stage("aarch64", "aarch64", rf"{_PYTEST}|{_CTEST}"),
    Stage("pythons", "pythons", r"^(3\.\w+ (?:passed|FAILED) .*)$"),
    Stage("cuda-package", "check-package FORCE_CUDA=1", _PYTEST),
    Stage("repeated-runs", "repeat", r"^(\d+ of \d+ runs without .*)$"),
)


def commit() -> str:
    """Of HEAD, with a + if the tree has changed since, but for the tables of results."""
    head = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
    tree = ("git", "status", "--porcelain", "-uno", ".", ":!tests/*_result.txt")
    changed = subprocess.check_output(tree, cwd=ROOT, text=True)
    return head.strip() + ("+" if changed else "")


def heading() -> str:
    version = importlib.metadata.version("torch")
    return f"make full, torch {version}, {os.cpu_count()} cores, no GPU"


def run(stage: Stage) -> tuple[bool, str]:
    """Whether it passed, and its lines of the table."""
    start = time.monotonic()
    log = LOGS / f"{stage.name}.log"
    with log.open("w") as output:
        done = subprocess.run(
            f"make {stage.command}",
            shell=True,
            check=False,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    passed = done.returncode == 0
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    minutes = (time.monotonic() - start) / 60
    how = "passed" if passed else "FAILED"
    found = re.finditer(stage.what, log.read_text(errors="replace"), re.MULTILINE)
    said = [next(filter(None, line.groups())) for line in found]
    head = f"{stage.name:14} {how}  {date}, {commit()}, {minutes:.0f} min"
    return passed, "\n".join([head, *(f"{'':14}   {line}" for line in said)])


def saved() -> dict[str, str]:
    """By stage, its lines of the table that is there."""
    text = RESULT.read_text() if RESULT.exists() else ""
    entries = re.finditer(r"^(\S+) +(?:passed|FAILED).*(?:\n +.*)*", text, re.MULTILINE)
    return {match.group(1): match.group(0) for match in entries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help=", ".join(stage.name for stage in STAGES))
    wanted = parser.parse_args().stages
    chosen = [stage for stage in STAGES if not wanted or stage.name in wanted]
    LOGS.mkdir(parents=True, exist_ok=True)
    entries = saved()
    failed = False
    for stage in track(chosen, "make full"):
        passed, entries[stage.name] = run(stage)
        failed |= not passed
        lines = [entries.get(each.name, f"{each.name:14} not run") for each in STAGES]
        RESULT.write_text("\n".join([heading(), "", *lines]) + "\n")
        print(f"{stage.name}: {'passed' if passed else 'FAILED'}", flush=True)
    print(RESULT.read_text())
    sys.exit(failed)


if __name__ == "__main__":
    main()

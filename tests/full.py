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
import json
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
    Stage("cuda-package", "check-package FORCE_CUDA=1", _PYTEST),
    Stage("repeated-runs", "repeat", r"^(\d+ of \d+ runs without .*)$"),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    date: str
    commit: str
    minutes: float
    passed: bool
    said: list[str]


def commit() -> str:
    """Of HEAD, with a + if the tree has changed since, but for the tables of results."""
    head = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
    tree = ("git", "status", "--porcelain", "-uno", ".", ":!tests/*_result.txt")
    changed = subprocess.check_output(tree, cwd=ROOT, text=True)
    return head.strip() + ("+" if changed else "")


def run(stage: Stage) -> Outcome:
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
    lines = re.finditer(stage.what, log.read_text(errors="replace"), re.MULTILINE)
    return Outcome(
        datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        commit(),
        (time.monotonic() - start) / 60,
        done.returncode == 0,
        [next(filter(None, line.groups())) for line in lines],
    )


def table(outcomes: dict[str, Outcome]) -> str:
    lines = [
        f"make full, torch {importlib.metadata.version('torch')}, {os.cpu_count()} cores, no GPU",
        "",
    ]
    for stage in STAGES:
        if (outcome := outcomes.get(stage.name)) is None:
            lines.append(f"{stage.name:14} not run")
            continue
        how = "passed" if outcome.passed else "FAILED"
        when = f"{outcome.date}, {outcome.commit}, {outcome.minutes:.0f} min"
        lines.append(f"{stage.name:14} {how}  {when}")
        lines += [f"{'':14}   {said}" for said in outcome.said]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help=", ".join(stage.name for stage in STAGES))
    wanted = parser.parse_args().stages
    chosen = [stage for stage in STAGES if not wanted or stage.name in wanted]
    LOGS.mkdir(parents=True, exist_ok=True)
    record = LOGS / "outcomes.json"
    saved = json.loads(record.read_text()) if record.exists() else {}
    outcomes = {name: Outcome(**fields) for name, fields in saved.items()}
    for stage in track(chosen, "make full"):
        outcomes[stage.name] = run(stage)
        record.write_text(json.dumps({k: dataclasses.asdict(v) for k, v in outcomes.items()}))
        RESULT.write_text(table(outcomes))
        print(f"{stage.name}: {'passed' if outcomes[stage.name].passed else 'FAILED'}", flush=True)
    print(RESULT.read_text())
    sys.exit(not all(outcomes[stage.name].passed for stage in chosen))


if __name__ == "__main__":
    main()

"""The tests, tested: plants the mutants of mutants.py, and says what killed each.

    make mutants                        all of them; a table of what killed each
    make mutants MUTANTS="--only tail"  those whose rule or file has it (a regular expression)

A mutant is planted in a copy of the sources, which is rebuilt where it has to be, and its tests run
until the first one fails. One that nothing kills is an error, and so is one whose text is no longer
there. The faults of table.py, in the CUDA kernels, are looked for as `make test` does it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import plant
from mutants import MUTANTS, Mutant
from plant import ROOT, replace
from rich.progress import track
from table import CHECKS, FAULTS, Fault

COPY = ROOT / "build" / "mutants"


class Tree:
    """A built copy of the sources, in which mutants are planted one after the other."""

    def __init__(self) -> None:
        files = subprocess.check_output(
            ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT
        ).split(b"\0")
        self.root = COPY / "tree"
        shutil.rmtree(self.root, ignore_errors=True)
        for name in filter(None, map(os.fsdecode, files)):
            if (ROOT / name).exists():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TORCH_EXT_BUILD_DIR": str(COPY / "native"),
            "TORCH_EXT_CMAKE_ARGS": "-DTORCH_EXT_TESTS=ON -DTORCH_EXT_SANITIZED_TESTS=OFF",
            "FORCE_CPU": "1",
            "OMP_WAIT_POLICY": "passive",
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            check=False,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            errors="replace",
        )

    def build(self, tests: str) -> str | None:
        """What the compiler said, if it refused."""
        configured = (COPY / "native" / "build.ninja").exists()
        targets = ["torch_ext", "torch_ext_C"] if tests.endswith(".py") else [tests]
        if configured:
            built = self.run("cmake", "--build", str(COPY / "native"), "--target", *targets)
        if not configured or (built.returncode == 0 and tests.endswith(".py")):
            built = self.run(sys.executable, "setup.py", "-q", "build_ext", "--inplace")
        return None if built.returncode == 0 else built.stdout + built.stderr

    def first_failure(self, tests: str) -> str | None:
        """The first test that fails, or None."""
        if not tests.endswith(".py"):
            done = self.run(str(COPY / "native" / "tests" / "cpp" / tests), "--gtest_brief=1")
            failed = re.search(r"\[  FAILED  \] ([^\s,]+)", done.stdout)
        else:
            files = [f"tests/{name}" for name in tests.split()]
            done = self.run(
                sys.executable, "-m", "pytest", "-x", "--tb=no", "-p", "no:cacheprovider", *files
            )
            failed = re.search(
                r"^(?:FAILED|ERROR) (?:tests/)?(.+?)(?: - |$)", done.stdout, re.MULTILINE
            )
        if done.returncode == 0:
            return None
        return failed[1] if failed else f"{tests}: {(done.stdout + done.stderr)[-300:]}"


def killer(tree: Tree, mutant: Mutant) -> str | None:
    """What notices the mutant: a test, or the compiler; None if nothing does."""
    path = tree.root / mutant.file
    text = path.read_text(encoding="utf-8")
    replace(path, mutant.old, mutant.new)
    try:
        native = mutant.file.startswith("csrc") and not mutant.file.endswith(".cu")
        if native and (said := tree.build(mutant.tests)) is not None:
            if assertion := re.search(r"error: (static assertion failed.*)", said):
                return f"the compiler: {assertion[1]}"
            sys.exit(f"{mutant.rule}: the mutant does not compile\n{said[-2000:]}")
        return tree.first_failure(mutant.tests)
    finally:
        path.write_text(text, encoding="utf-8")


def finder(fault: Fault) -> str | None:
    """The check that finds a fault of table.py, for the right reason."""
    with tempfile.TemporaryDirectory() as folder:
        said = plant.run(CHECKS[fault.check], Path(folder), fault)
    return fault.check if plant.problem_of(fault, said) is None else None


def title(mutant: Mutant | Fault) -> str:
    return mutant.rule if isinstance(mutant, Mutant) else mutant.name


def table(killed: dict[Mutant | Fault, str | None]) -> str:
    """One line for each mutant: the rule it breaks, where, and what noticed."""
    survivors = sum(by is None for by in killed.values())
    lines = [f"{len(killed)} mutants, {len(killed) - survivors} killed, {survivors} survived", ""]
    for mutant, by in killed.items():
        lines.append(f"{title(mutant):54} {mutant.file:36} {by or 'SURVIVED'}")
    return "\n".join(lines)


def fits(pattern: str, mutant: Mutant | Fault) -> bool:
    return re.search(pattern, f"{title(mutant)} {mutant.file}") is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression for rule and file")
    parser.add_argument("--output", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if fits(arguments.only, mutant)]
    faults = [fault for fault in FAULTS if fits(arguments.only, fault)]

    start = time.monotonic()
    tree = Tree()
    all_tests = sorted({mutant.tests for mutant in chosen})
    for tests in track(all_tests, "without a mutant"):
        if (said := tree.build(tests) or tree.first_failure(tests)) is not None:
            sys.exit(f"without a mutant, {tests} fails: {said}")
    killed: dict[Mutant | Fault, str | None] = {}
    for mutant in track(chosen, "mutants"):
        killed[mutant] = killer(tree, mutant)
        print(f"{mutant.rule}: {killed[mutant] or 'SURVIVED'}", flush=True)
    for fault in track(faults, "faults of the CUDA kernels"):
        killed[fault] = finder(fault)
    report = f"{table(killed)}\n\n{(time.monotonic() - start) / 60:.0f} minutes\n"
    print(report)
    if arguments.output:
        arguments.output.write_text(report, encoding="utf-8")
    if None in killed.values():
        sys.exit(1)


if __name__ == "__main__":
    main()

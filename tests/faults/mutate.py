"""The tests, tested: plants the mutants of mutants.py, and says what killed each.

    make mutants                     all of them; a table of what killed each
    make mutants MUTANTS="tail sum"  those whose rule, file or tests fit one of these regular expressions

A mutant is planted in a copy of the sources, which is rebuilt where it has to be, and its tests run until the
first one fails. One that nothing kills is an error. The copy and its build stay in build/mutants for the next
call. The faults of cuda_faults.py are looked for as `make test` does it.
"""

import argparse
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import plant
import pybind11
import torch
from cuda_faults import CHECKS, FAULTS, Fault
from mutants import MUTANTS, Mutant
from plant import ROOT

COPY = ROOT / "build" / "mutants"
NATIVE = COPY / "native"


class Tree:
    """A copy of the sources and its build, in which mutants are planted one after the other."""

    def __init__(self) -> None:
        self.root = COPY / "tree"
        listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT)
        names = [name for name in listed.decode().splitlines() if (ROOT / name).is_file()]
        for name in names:
            copy = self.root / name
            # A file that has not changed keeps its date, so that nothing is built anew.
            if not copy.exists() or not filecmp.cmp(ROOT / name, copy, shallow=False):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy)
        for copy in self.root.glob("tests/**/*.py"):
            if str(copy.relative_to(self.root)) not in names:
                copy.unlink()
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TORCH_EXT_BUILD_DIR": str(NATIVE),
            "OMP_WAIT_POLICY": "passive",
        }
        configured = self.run(
            *("cmake", "-S", str(self.root), "-B", str(NATIVE), "-G", "Ninja"),
            *("-DTORCH_EXT_TESTS=ON", "-DTORCH_EXT_SANITIZED_TESTS=OFF", "-DTORCH_EXT_CUDA=OFF"),
            *("-DTORCH_EXT_PYTHON=ON", "-DTORCH_EXT_IN_PLACE=ON"),
            f"-DTORCH_EXT_TORCH_ROOT={Path(torch.__file__).parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        )
        if configured.returncode != 0:
            sys.exit(configured.stdout + configured.stderr)

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
        """Builds what these tests need; what the compiler said, if it refused."""
        python = tests.endswith(".py")
        targets = ["torch_ext", "torch_ext_C"] if python else [tests]
        built = self.run("cmake", "--build", str(NATIVE), "--target", *targets)
        if built.returncode == 0 and python:
            package = str(self.root / "torch_ext")
            built = self.run("cmake", "--install", str(NATIVE), "--prefix", package)
        return None if built.returncode == 0 else built.stdout + built.stderr

    def first_failure(self, tests: str) -> str | None:
        """The first test that fails, or None."""
        if not tests.endswith(".py"):
            done = self.run(str(NATIVE / "tests" / "cpp" / tests), "--gtest_brief=1")
            failed = re.search(r"\[  FAILED  \] ([^\s,]+)", done.stdout)
        else:
            files = [f"tests/{name}" for name in tests.split()]
            options = ("-x", "--tb=no", "-p", "no:cacheprovider")
            done = self.run(sys.executable, "-m", "pytest", *options, *files)
            line = r"^(?:FAILED|ERROR) (?:tests/)?(.+?)(?: - |$)"
            failed = re.search(line, done.stdout, re.MULTILINE)
        if done.returncode == 0:
            return None
        return failed[1] if failed else f"{tests}: {(done.stdout + done.stderr)[-300:]}"

    def killer(self, mutant: Mutant) -> str | None:
        """What notices the mutant: a test, or the compiler; None if nothing does."""
        path = self.root / mutant.file
        text = path.read_text(encoding="utf-8")
        plant.replace(path, mutant.old, mutant.new)
        try:
            native = mutant.file.startswith("csrc") and "cuda" not in mutant.file
            if native and (said := self.build(mutant.tests)) is not None:
                if assertion := re.search(r"error: (static assertion failed.*)", said):
                    return f"the compiler: {assertion[1]}"
                sys.exit(f"{mutant.rule}: the mutant does not compile\n{said[-2000:]}")
            return self.first_failure(mutant.tests)
        finally:
            path.write_text(text, encoding="utf-8")


def finder(fault: Fault) -> str | None:
    """The check that finds a fault of cuda_faults.py, for the right reason."""
    with tempfile.TemporaryDirectory() as folder:
        said = plant.run(CHECKS[fault.check], Path(folder), fault)
    return fault.check if plant.problem_of(fault, said) is None else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="regular expressions for rule, file and tests")
    parser.add_argument("--output", type=Path, help="also write the table there")
    arguments = parser.parse_args()

    def chosen(mutant: Mutant | Fault) -> bool:
        words = " ".join(vars(mutant).values())
        return not arguments.only or any(re.search(one, words) for one in arguments.only)

    start = time.monotonic()
    tree = Tree()
    mutants = [mutant for mutant in MUTANTS if chosen(mutant)]
    for tests in sorted({mutant.tests for mutant in mutants}):
        if (said := tree.build(tests) or tree.first_failure(tests)) is not None:
            sys.exit(f"without a mutant, {tests} fails: {said}")
    lines = []
    for mutant in [*mutants, *filter(chosen, FAULTS)]:
        native = isinstance(mutant, Mutant)
        by = tree.killer(mutant) if native else finder(mutant)
        name = mutant.rule if native else mutant.name
        lines.append(f"{name:58} {mutant.file:34} {by or 'SURVIVED'}")
        print(lines[-1], flush=True)
    survivors = sum(line.endswith("SURVIVED") for line in lines)
    head = f"{len(lines)} mutants, {len(lines) - survivors} killed, {survivors} survived"
    report = "\n".join([head, "", *lines, "", f"{(time.monotonic() - start) / 60:.0f} minutes", ""])
    print(f"\n{head}")
    if arguments.output:
        arguments.output.write_text(report, encoding="utf-8")
    if survivors:
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Stage: one tool of compute-sanitizer over our kernels, after it has proven that it works here.

The canary of the tool must be found guilty and its twin innocent. A tool that is missing, or cannot
run on this machine even on the innocent twin, is a skip with the reason; one that overlooks the
canary is a failure.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu import events

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 86  # the exit status we ask for where errors were found
SOURCE = Path(__file__).with_name("canaries.cu")
PLACES = (
    "/usr/local/cuda/bin",
    "/usr/local/cuda/compute-sanitizer",
    "/usr/local/cuda/extras/compute-sanitizer",
    "/opt/nvidia/compute-sanitizer",
)


class Unavailable(Exception):
    """The tool cannot be used here, and why."""


def find(tool, places=PLACES):
    if cuda_home := os.environ.get("CUDA_HOME"):
        places = (f"{cuda_home}/bin", f"{cuda_home}/compute-sanitizer", *places)
    path = shutil.which(tool) or shutil.which(tool, path=os.pathsep.join(places))
    if path is None:
        raise Unavailable(f"{tool} was not found")
    return path


def build_canaries(folder, arch):
    """For this GPU; -lineinfo, so that a report names the line."""
    program = Path(folder) / "canaries"
    target = f"-arch=sm_{(arch or '9.0').replace('.', '')}"
    command = [find("nvcc"), "-O1", "-lineinfo", target, "-o", str(program), str(SOURCE)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise Unavailable(f"nvcc could not build the canaries: {run.stderr.strip()[:300]}")
    return program


class Sanitizer:
    def __init__(self, tool):
        self.tool = tool
        self.path = find("compute-sanitizer")

    def run(self, *command):
        """Exit status and output; FOUND for a program that ends well, but with errors found."""
        options = ["--tool", self.tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
        # The caching allocator hands out parts of large blocks, whose ends no tool knows.
        variables = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        run = subprocess.run(
            [self.path, *options, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=variables,
            check=False,
        )
        print(f"$ {self.tool}: {' '.join(map(str, command))}\n{run.stdout}", flush=True)
        return run.returncode, run.stdout


def prove(sanitizer, canaries):
    """That it works here: raises Unavailable if it cannot run, AssertionError if it is blind."""
    status, output = sanitizer.run(canaries, sanitizer.tool, "clean")
    if status != 0:
        raise Unavailable(
            f"compute-sanitizer does not work here: status {status} on an innocent program: "
            f"{_complaint(output)}"
        )
    status, output = sanitizer.run(canaries, sanitizer.tool, "faulty")
    assert status == FOUND, f"the planted fault was not reported: status {status}"


def _complaint(output):
    lines = [line.strip("= ") for line in output.splitlines() if line.startswith("===")]
    lines = [line for line in lines if line and "COMPUTE-SANITIZER" not in line]
    return "; ".join(lines[:3]) or output.strip()[-200:]


def check(tool, arch, device):
    if device != "cuda":
        raise Unavailable("needs a GPU")
    sanitizer = Sanitizer(tool)
    with tempfile.TemporaryDirectory() as folder:
        prove(sanitizer, build_canaries(folder, arch))
    events.outcome(f"{tool} reports the planted fault", events.PASSED)
    command = (sys.executable, "-m", "gpu.reduced", "--quiet")
    status, output = sanitizer.run(*command)
    assert status == 0, f"{_complaint(output)} (status {status})"
    assert "ERROR SUMMARY" in output or "RACECHECK SUMMARY" in output, "there is no summary"
    events.outcome(f"{tool} has nothing to report of our kernels", events.PASSED)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--arch", default="")
    options = parser.parse_args()
    try:
        check(options.tool, options.arch, options.device)
    except Unavailable as reason:
        events.outcome(options.tool, events.SKIPPED, str(reason))
    except AssertionError as reason:
        print(f"FAILED: {reason}")
        events.outcome(options.tool, events.FAILED, str(reason))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
